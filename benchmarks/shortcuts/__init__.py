"""Shortcuts planted into photographs, and networks that learned them: what an audit should find."""

"""Run a network, watched, and leave it as it was."""

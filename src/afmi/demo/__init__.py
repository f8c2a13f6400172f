"""The tour on real photographs."""

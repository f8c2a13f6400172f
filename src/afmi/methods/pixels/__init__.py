"""Methods whose features are pixels."""

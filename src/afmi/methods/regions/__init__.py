"""Methods whose features are regions of the image."""

"""Methods whose features are the maps of a convolutional layer."""

"""Labelled and unlabelled sources of images."""

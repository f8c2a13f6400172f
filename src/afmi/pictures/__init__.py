"""What pixels are: files, tensors, maps over them, references and drawings."""

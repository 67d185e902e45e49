"""One module a dataset format."""

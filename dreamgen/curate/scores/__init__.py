"""Built-in curation scores, one module each."""

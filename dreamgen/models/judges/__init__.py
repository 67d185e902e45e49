"""Built-in judges, one module each; other packages add theirs with the entry-point group `dreamgen.judges`."""

"""Ray: worker pool, scheduling and fault handling."""

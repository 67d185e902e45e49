"""The run folder on disk: layout, jobs, journal, records, leases, object store."""

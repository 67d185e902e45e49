"""First frames x instructions x seeds -> jobs."""

"""Extension points: what a score, a judge, a format or a source declares, and where it registers."""

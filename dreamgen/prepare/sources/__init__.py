"""One module a kind of demonstration source."""

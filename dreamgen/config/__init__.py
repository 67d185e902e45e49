"""Settings: what they are, how they are read, and where presets lie."""

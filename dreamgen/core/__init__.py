"""Words that all stages share. Imports none of our other packages, and nothing heavy at import time."""

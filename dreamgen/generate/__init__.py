"""Jobs -> clips.

`stage` is the story and `standing` says what is left. `clip` makes one with what `maker` holds and `texts` gives, and
knows nothing of Ray; `pool` spreads clips over a cluster with `schedule`, `actors`, `worker`, `cluster` and `faults`.
"""

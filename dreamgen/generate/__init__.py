"""Jobs -> clips.

`stage` runs the stage and `clip_status` tells which clips are left. `clip` makes one clip with a `ClipGenerator` and
the prompts that `texts` stores, without Ray; `worker` is the Ray actor around it, which `dreamgen.cluster` schedules.
"""

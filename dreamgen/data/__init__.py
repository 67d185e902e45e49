"""Video and image I/O, trajectories, timelines and camera views."""

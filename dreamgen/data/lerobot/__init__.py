"""LeRobot datasets: metadata, episodes, rows and GR00T's modality.json."""

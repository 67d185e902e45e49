"""NVIDIA Cosmos Predict 2.5 and its small twin, mini."""

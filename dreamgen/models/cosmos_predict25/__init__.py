"""NVIDIA Cosmos Predict 2.5, and mini, a small model of the same classes."""

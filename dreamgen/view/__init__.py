"""Clips and episodes -> Rerun."""

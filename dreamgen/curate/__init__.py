"""Clips -> verdicts."""

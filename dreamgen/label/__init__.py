"""Clips -> actions."""

"""Demonstrations -> training set."""

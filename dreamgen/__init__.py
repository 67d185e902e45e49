"""DreamGen: robot demonstrations in, a policy-ready synthetic dataset out."""

__version__ = "0.1.0"

"""The inverse-dynamics model."""

"""The world model and its adapters, and the inverse-dynamics model. Imports core."""

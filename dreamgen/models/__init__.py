"""World models and their adapters, the inverse-dynamics model, and judges."""

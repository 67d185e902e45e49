"""Training of a world model's adapter, and of the inverse-dynamics model."""

from finetune.train import finetune

__all__ = ["finetune"]

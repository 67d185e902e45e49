"""Training: the world model's adapter, and the inverse-dynamics model."""

from finetune.train import finetune

__all__ = ["finetune"]

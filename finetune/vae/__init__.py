"""Training of the VAE that turns video into latents."""

from finetune.vae.train import finetune_vae

__all__ = ["finetune_vae"]

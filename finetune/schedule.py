"""The learning rate by optimizer step."""

from __future__ import annotations

from dreamgen.config.settings import FinetuneSettings, FinetuneVaeSettings, IdmSettings


def learning_rate(
    step: int, tune: FinetuneSettings | FinetuneVaeSettings | IdmSettings, time_share: float = 0.0
) -> float:
    """Return the learning rate of one optimizer step: linear warm-up, then linear decay to the last step.

    It counts optimizer steps, so it is the same on any number of GPUs. The warm-up is at most half of the training.

    Args:
        step: 0 for the first.
        tune: Peak rate, length and the multipliers after the warm-up and at the end.
        time_share: Share of `max_minutes` that has passed; the decay follows it where it is ahead of the steps.

    Returns:
        The rate; `learning_rate * decay_to` at step `num_steps - 1`.
    """
    num_warmup = min(tune.warmup_steps, tune.num_steps // 2)
    if step < num_warmup:
        return tune.learning_rate * tune.decay_from * (step + 1) / num_warmup
    done = min(max((step - num_warmup + 1) / (tune.num_steps - num_warmup), time_share), 1.0)
    return tune.learning_rate * (tune.decay_from + (tune.decay_to - tune.decay_from) * done)

"""Seeds for every random choice of a training, from what the choice is for and never from who makes it."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *parts: str | int) -> int:
    """Return a seed of its own for one random choice.

    Args:
        seed: Of the run.
        parts: What the choice is for, such as `"noise", 17`.

    Returns:
        0 to 2**63 - 1: the first bytes of a SHA-256, so that neighbouring parts give unrelated seeds.
    """
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "little") >> 1

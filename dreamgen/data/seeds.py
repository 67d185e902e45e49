"""Seeds of random choices, derived from the purpose of a choice and never from the process that makes it."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *parts: str | int) -> int:
    """Return the seed of one random choice.

    Args:
        seed: Of the run.
        parts: Purpose of the choice, such as `"noise", 17`.

    Returns:
        0 to 2**63 - 1: the first bytes of a SHA-256, so that similar parts give unrelated seeds.
    """
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "little") >> 1

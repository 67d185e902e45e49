"""Shards: disjoint parts of a run's clips, so that several drivers never generate the same clip."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from dreamgen.errors import UserError

TEXT = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
DIGITS = (12, 20)  # of the id that are used; the first ones name the folder


@dataclass(frozen=True)
class Shard:
    """The clips whose id modulo `count` equals `index`.

    Args:
        index: 0 to count - 1.
        count: Number of shards.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse `i/n`.

        Raises:
            UserError: if the text does not have this form, or i is not less than n.
        """
        match = TEXT.fullmatch(text.strip())
        if not match or int(match[1]) >= int(match[2]):
            raise UserError(
                "generate.shard is not a valid share", actual=text, allowed="i/n with i from 0 to n - 1, such as 0/4"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def overlaps(self, other: Shard) -> bool:
        """Return whether some ids belong to both shards."""
        return (self.index - other.index) % math.gcd(self.count, other.count) == 0

    def holds(self, ids: Any) -> Any:
        """Return for each id whether it belongs to this shard.

        Args:
            ids: pyarrow strings of 20 hex digits.

        Returns:
            bool, one per id.
        """
        import numpy as np
        import pyarrow.compute as pc

        if self.count == 1:
            return np.ones(len(ids), bool)
        digits = "".join(pc.utf8_slice_codeunits(ids, *DIGITS).to_pylist())
        return np.frombuffer(bytes.fromhex(digits), ">u4") % self.count == self.index

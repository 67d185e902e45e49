"""What a world model returns for a job.

Axes: T frames, H height, W width, C channels, A action, S state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Rejected(Exception):
    """The safety checker refused a prompt or a clip: a result, not an error."""


@dataclass(frozen=True)
class Prediction:
    """What a model generates for one job.

    Args:
        video_THWC: On the model's device.
        actions_TA: One action for each frame, in the robot's units; None from a model that predicts video only.
        states_TS: Likewise.
    """

    video_THWC: torch.Tensor
    actions_TA: torch.Tensor | None = None
    states_TS: torch.Tensor | None = None

    def first(self, num_frames: int) -> Prediction:
        """Return the first frames."""
        actions_TA, states_TS = (None if part is None else part[:num_frames] for part in self._vectors())
        return Prediction(self.video_THWC[:num_frames], actions_TA, states_TS)

    @classmethod
    def joined(cls, pieces: Sequence[Prediction]) -> Prediction:
        """Return predictions that follow one another as one."""
        import torch

        columns = zip(*(piece._vectors() for piece in pieces), strict=True)
        actions_TA, states_TS = (None if column[0] is None else torch.cat(column) for column in columns)
        return cls(torch.cat([piece.video_THWC for piece in pieces]), actions_TA, states_TS)

    def _vectors(self) -> tuple[Any, Any]:
        return self.actions_TA, self.states_TS

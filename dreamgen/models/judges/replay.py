"""The judge `replay`: a function of the user's executes a clip's actions, as a simulator can.

"The video looks right and the robot fails" is seen by no picture: only execution shows whether labels carry out a task.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from typing import TYPE_CHECKING, Any

from dreamgen.errors import UserError
from dreamgen.extensions.judge import Judge, Judgment
from dreamgen.extensions.score import Metric, Threshold

if TYPE_CHECKING:
    from dreamgen.config.settings import Settings
    from dreamgen.data.clip_context import ClipContext


class Replay:
    """Calls `function(action_TA, state_TS, job)`; it returns success as a bool or a number from 0 to 1.

    Args:
        settings: `judge.replay` names the function as `module:function`.

    Raises:
        UserError: if it cannot be imported.
    """

    def __init__(self, settings: Settings) -> None:
        reference = settings.judge.replay
        module, _, name = (reference or "").partition(":")
        if not module or not name:
            raise UserError("the judge replay has no function", actual=reference, allowed="module:function",
                            next_step="--judge.replay=my_simulator:replay")  # fmt: skip
        try:
            self._function: Any = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"the replay function {reference} cannot be imported", actual=f"{type(error).__name__}: {error}",
                next_step="install its package, or add its folder to PYTHONPATH",
            ) from error  # fmt: skip
        try:
            source = inspect.getsource(self._function)
        except (OSError, TypeError):  # a builtin, or made at run time
            source = ""
        self.version = f"{reference} {hashlib.sha256(source.encode()).hexdigest()[:12]}"

    def judge_clip(self, clip: ClipContext) -> dict[str, Judgment]:
        """Execute one clip; a clip without actions cannot succeed, and none are asked of it."""
        if clip.action_TA is None:
            return {"replay_success": Judgment(None, "the clip has no actions: dreamgen label")}
        return {"replay_success": Judgment(float(self._function(clip.action_TA, clip.state_TS, clip.job)))}


JUDGE = Judge(
    name="replay",
    summary="success of a clip's actions, executed by a function of yours",
    metrics=(
        Metric(
            name="replay_success",
            summary="success of the clip's actions when they are executed, 0 to 1",
            threshold=Threshold(
                setting="min_replay_success", default=0.5, low=0.0, high=1.0,
                help="judge replay: success of the executed actions, below which a clip is rejected",
            ),
            rejection="its actions fail: success {value:g} < {limit:g}",
            missing="its actions could not be executed",
        ),
    ),
    load=Replay,
)  # fmt: skip

"""The judge `vlm`: a vision-language model says whether a clip follows its instruction and the laws of physics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamgen.errors import UserError
from dreamgen.extensions.judge import Judge, Judgment
from dreamgen.extensions.score import Metric, Threshold

if TYPE_CHECKING:
    import numpy as np

    from dreamgen.config.settings import Settings

PATCH_PX = 28  # many vision-language models use one token for so many pixels squared
TEXT_TOKENS, ANSWER_TOKENS = 120, 8  # of a question and its answer, for the estimate


class VlmJudge:
    """Asks each question in one request, with a few frames of the clip.

    Args:
        settings: `judge` says which model, where it runs and what it is asked.

    Raises:
        UserError: if no model is named, or it cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        from dreamgen.models.judges.questions import read_questions

        judge = settings.judge
        if not judge.model:
            raise UserError(
                "the judge vlm has no model", next_step="--judge.model=NAME, with --judge.endpoint=http://HOST:8000/v1 "
                "for a server, or alone for a hub id or folder that is loaded in this process",
            )  # fmt: skip
        self._settings = judge
        self._questions = read_questions(judge.prompts, judge.scale)
        if judge.endpoint is not None:
            from dreamgen.models.judges.endpoint import Endpoint

            self.model: Any = Endpoint(judge)
            self.num_concurrent = judge.num_concurrent
        else:
            from dreamgen.models.devices import resolve_device
            from dreamgen.models.judges.in_process import InProcess

            self.model = InProcess(judge.model, judge.revision, resolve_device(settings.model.device))
            self.num_concurrent = 1
        prompts = ",".join(question.sha256 for question in self._questions)
        self.version = f"{self.model.name} {judge.scale} {judge.num_frames}x{judge.image_px}px prompts {prompts}"

    def judge(self, video_THWC: np.ndarray, instruction: str) -> dict[str, Judgment]:
        """Ask all questions about one clip."""
        from dreamgen.models.judges.questions import sampled_frames, value_of_logprobs, value_of_text

        frames = sampled_frames(video_THWC, self._settings.num_frames, self._settings.image_px)
        judgments = {}
        for question in self._questions:
            logprobs, text = self.model.answer(question, frames, instruction)
            value = value_of_logprobs(logprobs, question.scale)
            if value is None:  # it thinks first, or the endpoint gives no log probabilities
                value = value_of_text(text, question.scale)
            judgments[question.name] = Judgment(value, " ".join(text.split())[-300:] or None)
        return judgments

    def estimate(self, num_clips: int, height: int, width: int) -> str:
        """Return how many requests and tokens so many clips take, and their price where it is known."""
        judge = self._settings
        scale = min(1.0, judge.image_px / max(height, width))
        image_tokens = -(-round(height * scale) // PATCH_PX) * -(-round(width * scale) // PATCH_PX)
        num_requests = num_clips * len(self._questions)
        num_input = num_requests * (judge.num_frames * image_tokens + TEXT_TOKENS)
        cost_usd = (
            num_input * judge.usd_per_million_input_tokens
            + num_requests * ANSWER_TOKENS * judge.usd_per_million_output_tokens
        ) / 1e6
        price = f", {cost_usd:.2f} USD" if cost_usd else ""
        return f"{num_clips} clips, {num_requests} requests, about {num_input / 1e6:.2g} M input tokens{price}"


def _metric(name: str, summary: str, rejection: str) -> Metric:
    return Metric(
        name=name,
        summary=summary,
        threshold=Threshold(
            setting=f"min_{name}", default=0.5, low=0.0, high=1.0, help=f"judge vlm: {summary}; below it is rejected",
        ),
        rejection=rejection + ": {value:.2f} < {limit:g}",
        missing=f"the judge gave no rating of {name}",
    )  # fmt: skip


JUDGE = Judge(
    name="vlm",
    summary="instruction following and physical plausibility, by a vision-language model",
    metrics=(
        _metric("instruction_following", "whether the clip shows its instruction, 0 to 1",
                "does not follow the instruction"),
        _metric("physical_plausibility", "whether the clip could have been filmed, 0 to 1", "not plausible"),
    ),
    load=VlmJudge,
)  # fmt: skip

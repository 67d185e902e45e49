"""A vision-language model behind an OpenAI-compatible endpoint: vLLM, SGLang, or a hosted one."""

from __future__ import annotations

import base64
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import cv2
import httpx

from dreamgen.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from dreamgen.config.settings import JudgeSettings
    from dreamgen.models.judges.questions import Question

TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
NUM_LOGPROBS = 10
ANSWER_TOKENS = 1024  # room for a model that thinks first
JPEG_QUALITY = 90


class Endpoint:
    """Sends requests from several threads, at a bounded rate, and tries again what may succeed later.

    Args:
        settings: Address, model, key, rate and prices.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        self._settings = settings
        key = os.environ.get(settings.api_key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=str(settings.endpoint).rstrip("/") + "/", headers=headers,
                                    timeout=settings.timeout_s)  # fmt: skip
        self._lock, self._next_s = threading.Lock(), 0.0
        self.num_requests = self.num_input_tokens = self.num_output_tokens = 0

    @property
    def name(self) -> str:
        """Return the model's name."""
        return str(self._settings.model)

    @property
    def cost_usd(self) -> float:
        """Return what the requests so far cost, by the prices of the settings."""
        prices = (self._settings.usd_per_million_input_tokens, self._settings.usd_per_million_output_tokens)
        return (self.num_input_tokens * prices[0] + self.num_output_tokens * prices[1]) / 1e6

    def answer(self, question: Question, frames: list[np.ndarray], instruction: str) -> tuple[dict[str, float], str]:
        """Ask one question about one clip.

        Returns:
            Log probabilities of the likeliest first tokens (empty where the endpoint gives none), and the text.

        Raises:
            UserError: if the endpoint refuses the request, or still fails at the last attempt.
        """
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data_url(f)}} for f in frames]
        content.append({"type": "text", "text": question.text(instruction, len(frames))})
        body = {
            "model": self._settings.model, "messages": [{"role": "user", "content": content}], "temperature": 0,
            "max_tokens": ANSWER_TOKENS, "logprobs": True, "top_logprobs": NUM_LOGPROBS, "seed": 0,
        }  # fmt: skip
        reply = self._post(body)
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] or ""
            tokens = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
            return {token["token"]: float(token["logprob"]) for token in tokens}, text
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                "the judge's endpoint gave no chat completion", actual=f"{reply}"[:200],
                allowed="choices[0].message.content, as OpenAI's API has it", next_step="check --judge.endpoint",
            ) from error  # fmt: skip

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        wait_s, problem = FIRST_WAIT_S, ""
        for attempt in range(self._settings.max_attempts):
            if attempt:
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            self._keep_rate()
            try:
                response = self._client.post("chat/completions", json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.status_code == httpx.codes.OK:
                reply = response.json()
                usage = reply.get("usage") or {}
                with self._lock:
                    self.num_requests += 1
                    self.num_input_tokens += int(usage.get("prompt_tokens") or 0)
                    self.num_output_tokens += int(usage.get("completion_tokens") or 0)
                return reply
            problem = f"HTTP {response.status_code}: {response.text[:200]}"
            if response.status_code not in TRY_AGAIN:
                break
            asked_s = response.headers.get("retry-after", "")
            wait_s = min(float(asked_s), LONGEST_WAIT_S) if asked_s.replace(".", "", 1).isdigit() else wait_s
        raise UserError(
            f"the judge's endpoint {self._client.base_url} does not answer", actual=problem,
            next_step=f"check --judge.endpoint, --judge.model and the key in {self._settings.api_key_variable}",
        )  # fmt: skip

    def _keep_rate(self) -> None:
        """Wait until the next request may be sent."""
        if self._settings.requests_per_minute is None:
            return
        with self._lock:
            now_s = time.monotonic()
            begin_s = max(now_s, self._next_s)
            self._next_s = begin_s + 60.0 / self._settings.requests_per_minute
        time.sleep(max(0.0, begin_s - now_s))


def _data_url(frame_HWC: np.ndarray) -> str:
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    assert done, "JPEG encoding of a uint8 array does not fail"
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")

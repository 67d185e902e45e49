"""The judges: a tiny real vision-language model behind a real HTTP server and in process; ratings; replay."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dreamgen.config.loading import settings_from_dict
from dreamgen.curate.stage import curate
from dreamgen.errors import UserError
from dreamgen.models.judges.endpoint import Endpoint
from dreamgen.models.judges.in_process import InProcess
from dreamgen.models.judges.questions import (
    ANSWERS,
    read_questions,
    sampled_frames,
    value_of_logprobs,
    value_of_text,
)
from dreamgen.models.judges.ratings import read_ratings
from dreamgen.models.judges.vlm import VlmJudge
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from tests.curate.test_curate import moving_square, static
from tests.generate.clips import write_generated_run

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def tiny_vlm(tmp_path_factory):
    """Qwen2.5-VL with small random weights and its processor, as `save_pretrained` writes them."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    from dreamgen.models.cosmos_predict25.mini import build_text_encoder, byte_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("vlm"), byte_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
             "num_key_value_heads": 2, "mrope_section": [1, 1, 2]}  # fmt: skip
    torch.manual_seed(0)
    build_text_encoder(sizes, tokenizer).save_pretrained(folder)
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    pixels = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**pixels), tokenizer, Qwen2VLVideoProcessor(**pixels), chat_template=TEMPLATE
    )
    processor.save_pretrained(folder)
    return folder


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server; the first requests fail as `failures` says: status and seconds to wait."""

    def __init__(self, model: InProcess) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.failures, self.requests = model, [], []
        self.lock, self.num_now, self.most_at_once = threading.Lock(), 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.requests.append((self.path, self.headers.get("authorization"), body))
            failure = server.failures.pop(0) if server.failures else None
            server.num_now += 1
            server.most_at_once = max(server.most_at_once, server.num_now)
        time.sleep(0.05)
        if failure:
            status, headers, reply = failure[0], {"retry-after": str(failure[1])}, {"error": "later"}
        else:
            status, headers, reply = 200, {}, self.complete(body)
        with server.lock:
            server.num_now -= 1
        data = json.dumps(reply).encode()
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(data)), "content-type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def complete(self, body):
        """Answer with the model, which may say a word of the scale only, as with structured output."""
        *images, last = body["messages"][0]["content"]
        frames = []
        for part in images:
            data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            frames.append(cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), 1), cv2.COLOR_BGR2RGB))

        class Asked:
            scale = "five" if "one number" in last["text"] else "binary"

            @staticmethod
            def text(instruction, num_frames):
                return last["text"]

        with self.server.lock:
            logprobs, text = self.server.model.answer(Asked, frames, "")
        top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
        choice = {"message": {"role": "assistant", "content": text}, "logprobs": {"content": [{"top_logprobs": top}]}}
        return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 1}}

    def log_message(self, *words):
        pass


@pytest.fixture
def server(tiny_vlm):
    server = Server(InProcess(str(tiny_vlm), None, torch.device("cpu")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def settings_for(root, judges=("vlm",), curate_settings=None, **judge):
    return settings_from_dict({
        "out": str(root), "model": {"path": "mini", "device": "cpu"},
        "judge": {"num_frames": 3, "image_px": 56, **judge},
        "curate": {"judges": list(judges), "min_instruction_following": 0.0, "min_physical_plausibility": 0.0,
                   **(curate_settings or {})},
    })  # fmt: skip


def test_a_run_is_judged_through_an_endpoint_once(server, tmp_path, monkeypatch):
    jobs = write_generated_run(tmp_path, [moving_square(), moving_square(1), moving_square(2), static()])
    server.failures = [(503, 0), (429, 0.1)]
    monkeypatch.setenv("JUDGE_KEY", "secret")
    judge = {"model": "tiny", "endpoint": server.url, "api_key_variable": "JUDGE_KEY", "num_concurrent": 3}
    result = curate(settings_for(tmp_path, **judge))
    assert result.metrics["num_accepted"] == 3 and not result.partial
    assert len(server.requests) == 3 * 2 + 2 and server.most_at_once > 1
    path, key, body = server.requests[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret" and body["model"] == "tiny"
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url"] * 3 + ["text"]
    rows = {row["clip_id"]: row for row in pq.read_table(tmp_path / "scores/scores.parquet").to_pylist()}
    values = [rows[job.clip_id]["instruction_following"] for job in jobs]
    assert values[3] is None and len(set(values[:3])) == 3 and all(0 < value < 1 for value in values[:3])
    assert rows[jobs[0].clip_id]["vlm_version"].startswith("tiny binary 3x56px prompts ")
    again = curate(
        settings_for(tmp_path, **judge, curate_settings={"min_instruction_following": min(values[:3]) + 1e-6})
    )
    assert len(server.requests) == 8, "what was said is kept"
    assert again.metrics["num_accepted"] == 2
    record = read_journal(RunFolder(tmp_path).journal, "curate")[jobs[int(np.argmin(values[:3]))].clip_id]
    assert record.reason.startswith("does not follow the instruction: 0.")
    curate(settings_for(tmp_path, **judge, scale="five"))
    assert len(server.requests) == 14, "other questions are asked anew"
    lines = (tmp_path / "scores/instruction_following.csv").read_text().splitlines()
    assert lines[0] == "video_path,prompt,prediction" and len(lines) == 4
    assert read_ratings(tmp_path / "scores/instruction_following.csv").keys() == {job.clip_id for job in jobs[:3]}


def test_in_process_and_through_the_endpoint_the_same_model_says_the_same(server, tiny_vlm):
    frames = sampled_frames(moving_square(), 3, 56)
    encoded = [cv2.imdecode(cv2.imencode(".jpg", f[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1], 1)[..., ::-1]
               for f in frames]  # fmt: skip
    question = read_questions(None, "binary")[0]
    here = InProcess(str(tiny_vlm), None, torch.device("cpu")).answer(question, encoded, "push")
    there = Endpoint(settings_for("run", model="tiny", endpoint=server.url).judge).answer(question, frames, "push")
    assert there[1] == here[1] and there[0] == pytest.approx(here[0])
    judge = VlmJudge(settings_for("run", model=str(tiny_vlm)))
    judgments = judge.judge(moving_square(), "push")
    assert (
        judge.num_concurrent == 1 and all(0 < judgments[name].value < 1 for name in judgments) and len(judgments) == 2
    )


def test_a_refusal_is_told_and_is_not_tried_again(server, tmp_path):
    write_generated_run(tmp_path, [moving_square()])
    server.failures = [(401, 0)]
    judge = {"model": "tiny", "endpoint": server.url}
    result = curate(settings_for(tmp_path, **judge))
    assert result.partial and result.metrics["num_failed"] == 1 and len(server.requests) == 1
    assert "HTTP 401" in result.notes[0]
    assert curate(settings_for(tmp_path, **judge)).metrics["num_accepted"] == 1, "the next curate asks again"


def test_requests_keep_the_rate_and_attempts_end(server):
    settings = settings_for("run", model="tiny", endpoint=server.url, requests_per_minute=600, max_attempts=2).judge
    endpoint, question = Endpoint(settings), read_questions(None, "binary")[0]
    frames = sampled_frames(moving_square(), 2, 28)
    begun_s = time.monotonic()
    for _ in range(4):
        endpoint.answer(question, frames, "push")
    assert time.monotonic() - begun_s > 0.3, "four requests at ten a second"
    assert (endpoint.num_requests, endpoint.num_input_tokens) == (4, 400)
    server.failures = [(503, 0), (503, 0)]
    with pytest.raises(UserError, match="does not answer"):
        endpoint.answer(question, frames, "push")


def test_the_estimate_counts_clips_questions_and_tokens(server):
    judge = VlmJudge(settings_for("run", model="tiny", endpoint=server.url, image_px=448, num_frames=8,
                                  usd_per_million_input_tokens=1.0))  # fmt: skip
    # 448 x 252 pixels are 16 x 9 tokens; 8 frames and 120 tokens of text, two questions, 1000 clips.
    tokens = 1000 * 2 * (8 * 16 * 9 + 120)
    text = judge.estimate(1000, 432, 768)
    assert text == f"1000 clips, 2000 requests, about {tokens / 1e6:.2g} M input tokens, {tokens / 1e6:.2f} USD"


@pytest.mark.parametrize(("text", "scale", "value"), [
    ("Yes, it does.", "binary", 1.0), ("no", "binary", 0.0), ("<think>Yes, or no?</think> No.", "binary", 0.0),
    ("<think>1</think><answer>4</answer>", "five", 0.75), ("I rate it 5 of 5", "five", 1.0), ("maybe", "binary", None),
    ("nobody knows", "binary", None),
])  # fmt: skip
def test_answers_in_words(text, scale, value):
    assert value_of_text(text, scale) == value


def test_answers_by_probability():
    assert value_of_logprobs({"Yes": np.log(0.6), " no": np.log(0.2), "Well": np.log(0.2)}, "binary") == pytest.approx(
        0.75
    )
    assert value_of_logprobs({"5": np.log(0.5), "3": np.log(0.5)}, "five") == pytest.approx(0.75)
    assert value_of_logprobs({"<think>": 0.0}, "binary") is None
    assert set(ANSWERS["five"]) == set("12345")


def test_prompts_of_ones_own(tmp_path):
    (tmp_path / "instruction_following.binary.txt").write_text("Is this {instruction}? {num_frames}")
    own, shipped = read_questions(str(tmp_path), "binary")
    assert own.text("a {brace}", 3) == "Is this a {brace}? 3" and "filmed" in shipped.template
    (tmp_path / "instruction_following.binary.txt").write_text("Is this {task}?")
    with pytest.raises(UserError, match="unknown field"):
        read_questions(str(tmp_path), "binary")
    with pytest.raises(UserError, match="no prompt"):
        read_questions(str(tmp_path / "none"), "binary")


def test_ratings_of_the_benchmark_decide(tmp_path):
    jobs = write_generated_run(tmp_path / "run", [moving_square(), moving_square(1), moving_square(2)])
    table = tmp_path / "ratings.csv"
    table.write_text(f"video_path,prompt,prediction\n/x/{jobs[0].clip_id}.mp4,push,1\n{jobs[1].clip_id}.mp4,push,0\n")
    result = curate(settings_for(tmp_path / "run", ("ratings",), ratings=str(table)))
    records = read_journal(RunFolder(tmp_path / "run").journal, "curate")
    assert result.metrics["num_accepted"] == 2 and records[jobs[1].clip_id].reason == "rating 0 < 0.5"
    table.write_text("video,score\n1,1\n")
    with pytest.raises(UserError, match="not a table of ratings"):
        curate(settings_for(tmp_path / "run", ("ratings",), ratings=str(table)))


def test_a_function_of_the_user_executes_actions(tmp_path, monkeypatch):
    jobs = write_generated_run(tmp_path / "run", [moving_square(), moving_square(1), moving_square(2)])
    for number, job in enumerate(jobs[:2]):
        path = RunFolder(tmp_path / "run").label_file(job.clip_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        vectors = pa.array([[float(number), 0.0]] * job.num_frames, pa.list_(pa.float32()))
        pq.write_table(pa.table({"action": vectors, "observation.state": vectors}), path)
    (tmp_path / "my_simulator.py").write_text(
        "def replay(action_TA, state_TS, job):\n    return action_TA.sum() > 0 and len(state_TS) == job.num_frames\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    curate(settings_for(tmp_path / "run", ("replay",), replay="my_simulator:replay"))
    records = read_journal(RunFolder(tmp_path / "run").journal, "curate")
    assert [records[job.clip_id].reason for job in jobs] == [
        "its actions fail: success 0 < 0.5", None,
        "its actions could not be executed (the clip has no actions: dreamgen label)",
    ]  # fmt: skip
    with pytest.raises(UserError, match="cannot be imported"):
        curate(settings_for(tmp_path / "run", ("replay",), replay="my_simulator:nothing"))

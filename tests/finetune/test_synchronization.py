"""A step between two log lines reads no number of a tensor: on a GPU each read would wait until its queue is empty."""

import traceback
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finetune import finetune
from finetune.training_log import TrainingLog
from tests.finetune.conftest import training_settings, write_training_set

READS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
)


class HostReads(TorchDispatchMode):
    """Records where our code, or a library, reads a tensor's number."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in READS:
            stack = traceback.extract_stack()
            # A cached file is read on the host, ahead of the step, without a GPU.
            if not any(frame.name == "read_tensor" for frame in stack):
                self.places.append("".join(traceback.format_list(stack[-9:-1])))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("tune", [{}, {"method": "dora", "ema_decay": 0.5, "gradient_accumulation_steps": 2}],
                         ids=["lora", "dora, average, accumulation"])  # fmt: skip
def test_only_log_lines_read_a_tensors_number(world, tmp_path, monkeypatch, tune):
    write_training_set(tmp_path, num_clips=3, num_frames=13)
    settings = training_settings(tmp_path, world, finetune={"num_steps": 8, "log_every": 4, "tracker": "none", **tune})
    reads, by_step = HostReads(), Counter()
    step_before = TrainingLog.step

    def step(log: TrainingLog, number: int, *values) -> None:
        step_before(log, number, *values)
        by_step[number] = len(reads.places)

    monkeypatch.setattr(TrainingLog, "step", step)
    # As on a GPU: the optimizer's other loops read their step counters.
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, **kwargs: adamw(*args, **{**kwargs, "fused": True}))
    with reads:
        finetune(settings)
    since = {number: by_step[number] - by_step[number - 1] for number in range(2, 9)}
    lines = {number: count for number, count in since.items() if number % 4 == 0}
    between = {number: count for number, count in since.items() if number not in lines}
    assert all(count > 0 for count in lines.values())  # the line itself is seen, so the others would be
    assert not any(between.values()), "\n".join([str(between), *reads.places[by_step[1] : by_step[3]][:2]])

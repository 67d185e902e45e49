"""The holder around the network: windows, votes, constants, and files."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamgen.errors import UserError
from dreamgen.models.idm.model import InverseDynamics, covering_gaps, small_frames
from dreamgen.models.idm.network import IdmConfig, pair_loss
from dreamgen.models.idm.vector_stats import VectorStats

DEMO_TA = np.array([[0.1, 0, -1.5, 7], [0.2, 0, 1.5, 7], [0.4, 0, 1.5, 7.5], [0.1, 0, -1.5, 8]], np.float32)
MEASURED = {"action": {"mae": 0.1, "r2": 0.5}}


def small_model(horizon: int = 4, states: bool = True) -> InverseDynamics:
    torch.manual_seed(0)
    actions = VectorStats.measure(DEMO_TA, ("arm", "leg", "grip", "wrist"))
    state = VectorStats.measure(DEMO_TA[:, :2], ("arm", "leg")) if states else None
    return InverseDynamics(IdmConfig(horizon, 32, 16, 16, actions, state, MEASURED))


def noise(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(num_frames).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def test_stats_tell_the_kinds_apart_and_come_back():
    stats = VectorStats.measure(DEMO_TA, ())
    assert stats.kinds == ("varied", "constant", "binary", "varied")
    assert stats.names == ("dim_0", "dim_1", "dim_2", "dim_3")
    back_TD = stats.from_network(stats.to_network(DEMO_TA))
    np.testing.assert_allclose(back_TD, DEMO_TA, atol=1e-6)
    np.testing.assert_array_equal(back_TD[:, 1:3], DEMO_TA[:, 1:3])


def test_a_split_vote_is_never_fractional():
    stats = VectorStats.measure(DEMO_TA, ())
    outputs_TP = np.zeros((3, 3), np.float32)
    outputs_TP[:, 1] = (0.4, 0.5, 0.6)
    assert stats.from_network(outputs_TP)[:, 2].tolist() == [-1.5, 1.5, 1.5]


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 6, 23])
def test_clips_of_any_length_get_a_row_a_frame(num_frames):
    action_TA, state_TS = small_model().predict(noise(num_frames))
    assert action_TA.shape == (num_frames, 4) and state_TS.shape == (num_frames, 2)
    assert np.isfinite(action_TA).all() and np.isfinite(state_TS).all()
    assert (action_TA[:, 1] == 0).all() and set(np.unique(action_TA[:, 2])) <= {-1.5, 1.5}


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 17, 93])
def test_pairs_cover_every_frame_and_stay_within_the_clip(num_frames):
    gaps = covering_gaps(num_frames, horizon=16)
    assert max(gaps) == min(16, num_frames - 1)
    for gap in gaps:
        covered = {start + row for start in range(num_frames - gap) for row in range(gap + 1)}
        assert covered == set(range(num_frames))


def test_every_row_comes_from_the_pairs_that_hold_its_frame():
    """Rows that say where they stand: the mean over pairs has to give each frame its own number back."""
    model = small_model(horizon=4, states=False)
    times = iter(range(100))

    def encode(picture_NCHW, background_NCHW):
        return torch.tensor([[float(next(times))] for _ in range(len(picture_NCHW))])

    def rows(first_NF, last_NF, gap_N):
        assert torch.equal(last_NF[:, 0] - first_NF[:, 0], gap_N)
        return (first_NF + torch.arange(5.0)).unsqueeze(-1).expand(-1, -1, 3)

    model.network.encode, model.network.rows = encode, rows
    action_TA, _ = model.predict(noise(9))
    arm = model.config.actions
    np.testing.assert_allclose(action_TA[:, 0], np.arange(9) * arm.std[0] + arm.mean[0], rtol=1e-5)


def test_long_clips_are_encoded_in_parts_without_a_seam():
    model, video_THWC = small_model(), noise(130)
    whole_TA, _ = model.predict(video_THWC)
    assert whole_TA.shape == (130, 4)
    again_TA, _ = model.predict(video_THWC)
    np.testing.assert_array_equal(whole_TA, again_TA)


def test_loss_counts_only_rows_within_the_pair():
    votes_P = torch.tensor([False, True])
    target_NKP = torch.zeros(1, 5, 2)
    outputs_NKP = torch.zeros(1, 5, 2)
    loss = pair_loss(outputs_NKP, target_NKP, torch.tensor([2]), votes_P)
    assert loss == pytest.approx(np.log(2) / 2)
    outputs_NKP[:, 3:] = 100
    assert pair_loss(outputs_NKP, target_NKP, torch.tensor([2]), votes_P) == pytest.approx(float(loss))
    assert pair_loss(outputs_NKP, target_NKP, torch.tensor([3]), votes_P) > loss


def test_small_frames_are_square_and_rgb():
    video_THWC = np.zeros((2, 48, 80, 3), np.uint8)
    video_THWC[..., 0] = 200
    small_TCHW = small_frames(video_THWC, 32)
    assert small_TCHW.shape == (2, 3, 32, 32) and small_TCHW.dtype == np.uint8
    assert (small_TCHW[:, 0] == 200).all() and (small_TCHW[:, 1:] == 0).all()


@pytest.mark.parametrize("states", [True, False])
def test_save_and_load(tmp_path, states):
    model = small_model(states=states)
    model.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = InverseDynamics.load(tmp_path)
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded.predict(noise(7))[0], model.predict(noise(7))[0])


def test_damaged_files_are_named(tmp_path):
    model = small_model()
    model.save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        InverseDynamics.load(tmp_path)
    InverseDynamics(replace(model.config, width=8)).save(tmp_path / ".")
    (tmp_path / "model.safetensors").write_bytes(whole)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        InverseDynamics.load(tmp_path)
    (tmp_path / "config.json").write_text('{"horizon": 4}')
    with pytest.raises(UserError, match=r"config\.json"):
        InverseDynamics.load(tmp_path)

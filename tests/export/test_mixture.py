"""Real and generated episodes in one dataset, added or mixed by a share, resized, resampled; sources are only read."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from dreamgen.config.loading import check_values, settings_from_dict
from dreamgen.config.settings import CheckSettings, ConvertSettings, ExportSettings
from dreamgen.data.timeline import resampled_indices
from dreamgen.data.video import probe, read_video
from dreamgen.errors import UserError
from dreamgen.run.files import read_json, write_json
from dreamgen.run.jobs import accepted_clips
from export import export_datasets
from export.check import check, check_stage
from export.convert import convert_dataset
from export.episodes import read_label
from export.manifest import present_files, read_manifest
from export.mixture import _times_written, choose_by_frames, counts_for_share
from tests.fixtures import demos
from tests.fixtures.runs import make_run, run_settings

NAMES = list(demos.NAMES)
V30, BOTH = ["lerobot-v3.0"], ["lerobot-v3.0", "lerobot-v2.1"]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The same four demonstrations as LeRobot v2.0 (with quirks), v2.1 and v3.0."""
    folder = tmp_path_factory.mktemp("real")
    for name in ("v20", "v21", "v30"):
        getattr(demos, f"write_lerobot_{name}")(folder / name, num_episodes=4, num_frames=12, height=32, width=48)
    return folder


def run_like_the_demos(folder, num_clips=4, **how):
    run = make_run(folder, num_clips=num_clips, rejected=0, action_dim=3, state_dim=3, **how)
    features = read_json(run.train / "features.json")
    write_json(run.train / "features.json", {**features, "action_names": NAMES, "state_names": NAMES, "modality": None})
    return run


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def loaded(run):
    return LeRobotDataset("dreamgen/test", root=run.datasets / "lerobot-v3.0", video_backend="pyav", return_uint8=True)


def provenance(run, name="lerobot-v3.0"):
    return pq.read_table(run.datasets / f"{name}.provenance.parquet").to_pylist()


@pytest.mark.parametrize("version", ["v20", "v21", "v30"])
def test_real_episodes_are_mixed_in_with_their_own_frames_and_actions(version, real, tmp_path):
    run, before = run_like_the_demos(tmp_path / "run"), files_of(real / version)
    result = export_datasets(run_settings(run.root, export={"formats": BOTH, "mix_with": str(real / version)}))
    assert result.metrics["episodes"] == 8 and result.metrics["left_out"] == 0, result.notes
    assert files_of(real / version) == before, "the source is only read"
    for name in BOTH:
        assert check(run.datasets / name) == []
        verified = check_stage(run.datasets / name, CheckSettings(verify=True)).metrics
        assert verified["manifest"] and verified["num_errors"] == 0 and not verified["findings"]
        assert set(read_manifest(run.datasets / name).entries) == set(present_files(run.datasets / name))
    rows, dataset = provenance(run), loaded(run)
    assert [row["kind"] for row in rows] == ["real"] * 4 + ["dreamed"] * 4
    assert rows[0]["seed"] is None and rows[0]["source"] == version and rows[4]["seed"] is not None
    encoded_again = any("encoded again" in note for note in result.notes)
    assert encoded_again == (version == "v30"), "lerobot wrote AV1; the others are H.264, which is copied"
    episode = demos.make_episode(2, 12, 16, 32, 48)
    for frame in (0, 7, 11):
        item = dataset[2 * 12 + frame]
        np.testing.assert_array_equal(item["action"].numpy(), episode.action_TA[frame])
        np.testing.assert_array_equal(item["observation.state"].numpy(), episode.state_TS[frame])
        difference = item[demos.CAMERA].permute(1, 2, 0).numpy().astype(int) - episode.video_THWC[frame]
        assert np.abs(difference).mean() < 12, "the same frame, except for the encoding"
        assert item["task"] == episode.instruction
    first = accepted_clips(run)[0]
    np.testing.assert_array_equal(dataset[48][demos.CAMERA].permute(1, 2, 0).numpy(), read_video(first.video)[0])
    assert "50.0 % of the episodes were generated" in (run.datasets / "lerobot-v3.0/README.md").read_text()


def write_image_dataset(root, num_episodes=2, num_frames=12):
    """Write the demonstrations as lerobot stores pictures: in the tables, with `video_path: null`."""
    vector = {"dtype": "float32", "shape": (3,), "names": NAMES}
    picture = {"dtype": "image", "shape": (32, 48, 3), "names": ["height", "width", "channels"]}
    features = {demos.CAMERA: picture, "observation.state": vector, "action": vector}
    dataset = LeRobotDataset.create("me/pictures", fps=16, features=features, root=root, use_videos=False)
    for index in range(num_episodes):
        episode = demos.make_episode(index, num_frames, 16, 32, 48)
        for frame_HWC, state_S, action_A in zip(episode.video_THWC, episode.state_TS, episode.action_TA, strict=True):
            values = {demos.CAMERA: frame_HWC, "observation.state": state_S, "action": action_A}
            dataset.add_frame({**values, "task": episode.instruction})
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_a_dataset_of_pictures_is_mixed_in_from_its_pixels(tmp_path, version):
    root = write_image_dataset(tmp_path / "pictures")
    assert read_json(root / "meta/info.json")["video_path"] is None
    if version == "v2.1":
        convert_dataset(root, tmp_path / "v21", ConvertSettings())
        root = tmp_path / "v21"
    before, run = files_of(root), run_like_the_demos(tmp_path / "run", num_clips=2)
    export = {"formats": BOTH, "mix_with": str(root), "real_share": 0.4, "real_share_of": "frames"}
    result = export_datasets(run_settings(run.root, export=export))
    assert result.metrics["episodes"] == 3 and result.metrics["left_out"] == 0, result.notes
    assert "1 of 2 real, 2 of 2 generated" in "\n".join(result.notes) and files_of(root) == before
    assert [row["kind"] for row in provenance(run)] == ["real", "dreamed", "dreamed"]
    for name in BOTH:
        assert check(run.datasets / name) == []
    dataset = loaded(run)
    truths = [demos.make_episode(index, 12, 16, 32, 48) for index in range(2)]
    (episode,) = [truth for truth in truths if truth.instruction == dataset[0]["task"]]
    for frame in (0, 5, 11):
        np.testing.assert_array_equal(dataset[frame]["action"].numpy(), episode.action_TA[frame])
        difference = dataset[frame][demos.CAMERA].permute(1, 2, 0).numpy().astype(int) - episode.video_THWC[frame]
        assert np.abs(difference).mean() < 6, "the pixels of the table, encoded once"


def test_copied_real_frames_are_bit_for_bit_those_of_the_source(real, tmp_path):
    run = run_like_the_demos(tmp_path / "run", num_clips=1)
    export_datasets(run_settings(run.root, export={"formats": V30, "mix_with": str(real / "v21")}))
    dataset = loaded(run)
    source = read_video(real / f"v21/videos/chunk-000/{demos.CAMERA}/episode_000003.mp4")
    for frame in range(12):
        np.testing.assert_array_equal(dataset[3 * 12 + frame][demos.CAMERA].permute(1, 2, 0).numpy(), source[frame])


def test_a_share_leaves_some_out_and_repeats_none(real, tmp_path):
    run = run_like_the_demos(tmp_path / "run", num_clips=6)
    export = {"formats": V30, "mix_with": str(real / "v21"), "real_share": 0.25}
    result = export_datasets(run_settings(run.root, export=export))
    rows = provenance(run)
    assert [row["kind"] for row in rows] == ["real"] * 2 + ["dreamed"] * 6 and len({r["clip_id"] for r in rows}) == 8
    assert any("2 of 4 real, 6 of 6 generated" in note for note in result.notes)


@pytest.mark.parametrize(("counted", "expected"), [("episodes", 7), ("frames", 3)])
def test_real_episodes_are_repeated_to_reach_a_share(real, tmp_path, counted, expected):
    run = run_like_the_demos(tmp_path / "run", num_clips=7, num_frames=5)  # 35 generated frames, 12 in a real episode
    demonstrations = tmp_path / "demonstrations"
    demos.write_lerobot_v30(demonstrations, num_episodes=2, num_frames=12, height=32, width=48)
    export = {"formats": BOTH, "mix_with": str(demonstrations), "real_share": 0.5, "real_share_of": counted,
              "repeat_real": True}  # fmt: skip
    result = export_datasets(run_settings(run.root, export=export))
    kinds = [row["kind"] for row in provenance(run)]
    assert kinds.count("dreamed") == 7 and kinds.count("real") == expected, result.notes
    assert any(f"2 of 2 real, written as {expected} episodes, 7 of 7" in note for note in result.notes), result.notes
    for name in BOTH:
        assert check(run.datasets / name) == []
    dataset, seen = loaded(run), []
    for episode in range(expected):
        first = dataset[episode * 12]
        video = [dataset[episode * 12 + frame][demos.CAMERA].numpy() for frame in range(12)]
        seen.append((first["task"], first["action"].numpy().tobytes(), np.stack(video).tobytes()))
    assert len(set(seen)) == 2, "each repetition has the pictures and actions of its episode"
    assert max(seen.count(one) for one in seen) - min(seen.count(one) for one in seen) <= 1


def test_repeating_needs_a_share():
    with pytest.raises(UserError, match="repeat_real needs a share to reach"):
        check_values(settings_from_dict({"export": {"repeat_real": True, "mix_with": "x"}}))


@pytest.mark.parametrize(("real_share", "real"), [(0.2, {0, 1}), (0.5, {1, 2}), (0.9, {13, 14})])
def test_only_too_few_real_episodes_are_repeated(real_share, real):
    export = ExportSettings(mix_with="x", real_share=real_share, repeat_real=True)
    real_times, generated_times = _times_written(np.full(4, 10), np.full(6, 10), export, np.random.default_rng(0))
    assert set(real_times) == real and generated_times.sum() == 6
    assert real_times.sum() == round(6 * real_share / (1 - real_share))


def test_a_share_of_the_frames_and_both_shares_are_told(real, tmp_path):
    run = run_like_the_demos(tmp_path / "run", num_clips=6, num_frames=5)  # 30 generated frames, 48 real ones
    export = {"formats": V30, "mix_with": str(real / "v21"), "real_share": 0.25, "real_share_of": "frames"}
    result = export_datasets(run_settings(run.root, export=export))
    assert [row["kind"] for row in provenance(run)] == ["real"] + ["dreamed"] * 6
    told = "1 of 4 real, 6 of 6 generated; real are 14.3 % of the episodes and 28.6 % of the frames"
    assert any(told in note for note in result.notes), result.notes
    assert "85.7 % of the episodes" in (card := (run.datasets / "lerobot-v3.0/README.md").read_text())
    assert "71.4 % of the frames" in card


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_shares_by_frames(share):
    random = np.random.default_rng(0)
    real_R, generated_G = np.full(100, 10), np.full(1000, 1)
    used = choose_by_frames(real_R, generated_G, share, random)
    real_share = real_R[used[0]].sum() / (real_R[used[0]].sum() + generated_G[used[1]].sum())
    assert abs(real_share - share) < 0.005
    with pytest.raises(UserError, match="real_share cannot be reached"):
        choose_by_frames(np.array([1000]), np.array([1]), 0.4, random)


def test_shares():
    assert counts_for_share(10, 90, 0.1) == (10, 90)
    assert counts_for_share(10, 90, 0.5) == (10, 10)
    assert counts_for_share(100, 10, 0.5) == (10, 10)
    assert counts_for_share(10, 90, 0.0) == (0, 90)
    assert counts_for_share(10, 90, 1.0) == (10, 0)
    with pytest.raises(UserError, match="real_share cannot be reached"):
        counts_for_share(1, 2, 0.01)


def test_appending_keeps_what_is_there_and_adds_only_what_is_new(tmp_path):
    old, run = (make_run(tmp_path / name, num_clips=count, rejected=0) for name, count in (("old", 3), ("run", 5)))
    for name in BOTH:
        export_datasets(run_settings(old.root, export={"formats": [name]}))
    before = files_of(old.datasets)
    for name in BOTH:
        export_datasets(run_settings(run.root, export={"formats": [name], "append_to": str(old.datasets / name)}))
    assert files_of(old.datasets) == before
    for name in BOTH:
        assert check(run.datasets / name) == []
        rows = provenance(run, name)
        assert [row["clip_id"] for row in rows] == [clip.job.clip_id for clip in accepted_clips(run)], "none twice"
        assert {row["kind"] for row in rows} == {"dreamed"} and rows[0]["prompt"] and rows[0]["score_motion"] > 0
    dataset = loaded(run)
    for number, clip in enumerate(accepted_clips(run)):
        video_THWC, (action_TA, _) = read_video(clip.video), read_label(clip.label, include_state=False)
        item = dataset[number * 9 + 4]
        np.testing.assert_array_equal(item[demos.CAMERA].permute(1, 2, 0).numpy(), video_THWC[4])
        np.testing.assert_array_equal(item["action"].numpy(), action_TA[4])


def test_the_policys_rate_and_size_are_an_explicit_choice(real, tmp_path):
    run = run_like_the_demos(tmp_path / "run", num_frames=13)
    export = {"formats": BOTH, "mix_with": str(real / "v30"), "fps": 8, "height": 64, "width": 64}
    result = export_datasets(run_settings(run.root, export=export))
    assert any("8 clips were encoded again: 64 x 64, 8 fps" in note for note in result.notes)
    for name in BOTH:
        assert check(run.datasets / name) == []
    info = read_json(run.datasets / "lerobot-v3.0/meta/info.json")
    assert info["fps"] == 8 and info["features"][demos.CAMERA]["shape"] == [64, 64, 3]
    dataset, clip = loaded(run), accepted_clips(run)[1]
    action_TA, _ = read_label(clip.label, include_state=False)
    wanted = resampled_indices(13, 16, 8)
    start = 4 * len(resampled_indices(12, 16, 8)) + len(wanted)
    for number, index in enumerate(wanted):
        np.testing.assert_array_equal(dataset[start + number]["action"].numpy(), action_TA[index])
    assert probe(next((run.datasets / "lerobot-v2.1").rglob("episode_000005.mp4"))).num_frames == len(wanted)


def test_datasets_that_differ_are_an_error_that_names_the_setting(real, tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0, action_dim=3, state_dim=3, height=64, width=64, fps=15)
    with pytest.raises(UserError, match="other dimensions"):
        export_datasets(run_settings(run.root, export={"formats": V30, "mix_with": str(real / "v21")}))
    run = run_like_the_demos(tmp_path / "other", num_clips=1, height=64, width=64, fps=15)
    with pytest.raises(UserError) as refused:
        export_datasets(run_settings(run.root, export={"formats": V30, "mix_with": str(real / "v21")}))
    assert "--export.height=64" in str(refused.value) and "--export.fps=15" in str(refused.value)
    assert not run.datasets.exists(), "an error leaves nothing behind"
    for broken in ("nowhere", str(tmp_path)):
        with pytest.raises(UserError):
            export_datasets(run_settings(run.root, export={"formats": V30, "mix_with": broken}))
    with pytest.raises(UserError, match="needs real episodes"):
        run_settings(run.root, export={"real_share": 0.5})


def test_a_camera_that_generated_clips_lack_is_left_out_with_a_note(real, tmp_path):
    import shutil

    root = tmp_path / "two"
    shutil.copytree(real / "v21", root)
    info = read_json(root / "meta/info.json")
    wrist = demos.CAMERA.replace("ego_view", "wrist")
    info["features"][wrist] = info["features"][demos.CAMERA]
    (root / "meta/info.json").write_text(json.dumps(info))
    shutil.copytree(root / f"videos/chunk-000/{demos.CAMERA}", root / f"videos/chunk-000/{wrist}")
    run = run_like_the_demos(tmp_path / "run", num_clips=1)
    result = export_datasets(run_settings(run.root, export={"formats": V30, "mix_with": str(root)}))
    assert result.metrics["episodes"] == 5 and any(f"{wrist} is left out" in note for note in result.notes)
    with pytest.raises(UserError, match="which camera to use is not clear"):
        export = {"formats": V30, "mix_with": str(root), "camera": "observation.images.front"}
        export_datasets(run_settings(run_like_the_demos(tmp_path / "again", num_clips=1).root, export=export))


def test_real_episodes_lose_their_states_where_generated_clips_have_none(real, tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0, action_dim=3, state_dim=0)
    features = read_json(run.train / "features.json")
    write_json(run.train / "features.json", {**features, "action_names": NAMES, "modality": None})
    result = export_datasets(run_settings(run.root, export={"formats": V30, "mix_with": str(real / "v21")}))
    assert result.metrics["episodes"] == 6 and check(run.datasets / "lerobot-v3.0") == []
    assert "observation.state" not in loaded(run).meta.features


def test_real_data_mixes_with_generated_clips_of_its_size(real_demos, tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0, action_dim=44, state_dim=44, height=64, width=64, fps=16)
    features = read_json(run.train / "features.json")
    names = {"action_names": [f"motor_{i}" for i in range(44)], "state_names": [f"motor_{i}" for i in range(44)]}
    write_json(run.train / "features.json", {**features, **names, "modality": None})
    export = {"formats": V30, "mix_with": str(real_demos), "height": 64, "width": 64, "fps": 8}
    result = export_datasets(run_settings(run.root, export=export))
    assert result.metrics["episodes"] == 7, result.notes
    assert check(run.datasets / "lerobot-v3.0") == []

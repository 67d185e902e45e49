"""A dataset of the hub, here a local one, is downloaded once and completed after an interruption."""

from __future__ import annotations

import pytest

from dreamgen.errors import UserError
from dreamgen.prepare.hub_dataset import is_whole
from dreamgen.prepare.stage import inspect, prepare
from tests.fixtures import demos

WRITERS = [demos.write_lerobot_v21, demos.write_lerobot_v30]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lerobot.utils.constants.HF_LEROBOT_HOME", tmp_path / "home")
    return tmp_path / "home"


def publish(hub, folder):
    hub.files.update({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()})


@pytest.mark.parametrize("write", WRITERS)
def test_a_hub_dataset_is_downloaded_once(write, hub, home, tmp_path, settings_for):
    write(tmp_path / "source", num_episodes=2)
    publish(hub, tmp_path / "source")
    with pytest.raises(UserError, match="--dry_run downloads nothing"):
        inspect(settings_for("me/robot"))
    assert hub.downloads == []
    assert prepare(settings_for("me/robot")).metrics["refused"] == 0
    assert sorted(hub.downloads) == sorted(hub.files)
    assert {name: (home / "me/robot" / name).read_bytes() for name in hub.files} == hub.files
    assert not any(path.is_symlink() for path in (home / "me/robot").rglob("*"))
    prepare(settings_for("me/robot", out="again"))
    assert len(hub.downloads) == len(hub.files)


def test_an_interrupted_download_is_completed(hub, home, tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "source", num_episodes=2)
    publish(hub, tmp_path / "source")
    prepare(settings_for("me/robot"))
    video = next((home / "me/robot").rglob("*.mp4"))
    video.unlink()
    hub.downloads.clear()
    assert not is_whole(home / "me/robot")
    assert prepare(settings_for("me/robot", out="again")).metrics["refused"] == 0
    assert hub.downloads == [str(video.relative_to(home / "me/robot"))]


def test_a_download_that_fails_says_what_to_do(hub, home, tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "source", num_episodes=2)
    publish(hub, tmp_path / "source")
    hub.is_full = True
    with pytest.raises(UserError, match="cannot be downloaded from the hub") as caught:
        prepare(settings_for("me/robot"))
    assert "give its folder" in str(caught.value) and not (tmp_path / "run").exists()

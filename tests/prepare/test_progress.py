"""What prepare shows while it works: clips are counted in the survey, and as the processes write them."""

import ctypes
import filecmp

import pytest

from dreamgen.prepare import stage
from dreamgen.prepare.survey import survey
from tests.fixtures import demos


@pytest.fixture
def one_refused(tmp_path):
    """Three clips, the second of which is no video."""
    folder = demos.write_plain(tmp_path / "demos")
    sorted(folder.rglob("*.mp4"))[1].write_bytes(b"no video")
    return folder


def test_the_survey_counts_its_clips(one_refused, settings_for, capsys):
    stage.inspect(settings_for(one_refused))
    assert "survey 3/3 clips" in capsys.readouterr().err


def test_processes_count_the_clips_that_they_write(one_refused, settings_for, capsys):
    """The counts of all processes reach the total, and their number changes no file."""
    one = stage.prepare(settings_for(one_refused, out="one", prepare={"num_workers": 1})).outputs["train"]
    shown = capsys.readouterr().err
    two = stage.prepare(settings_for(one_refused, out="two", prepare={"num_workers": 2})).outputs["train"]
    for text in (shown, capsys.readouterr().err):
        last = next(line for line in text.splitlines() if line.startswith("prepare 3/3 clips"))
        assert last.endswith("rejected 1")
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert filecmp.cmpfiles(one, two, files, shallow=False) == (files, [], [])


def test_a_process_counts_each_clip_when_it_is_done(one_refused, tmp_path, settings_for, monkeypatch):
    settings = settings_for(one_refused)
    surveyed = list(survey(stage.open_source(str(one_refused), settings.prepare).clips, settings))
    counts, seen = (ctypes.c_longlong * 4)(), []
    monkeypatch.setattr(stage, "_counts", counts)
    build_clip = stage.build_clip

    def watched(*args):
        seen.append(counts[:])
        return build_clip(*args)

    monkeypatch.setattr(stage, "build_clip", watched)
    rows = stage._build_some(1, tmp_path / "train", surveyed, settings, ())
    assert [row.status for row in rows] == ["used", "refused", "used"]
    assert [*seen, counts[:]] == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 2, 1], [0, 0, 3, 1]]

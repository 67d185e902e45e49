"""The demonstrations and first frames that ship with the package."""

from pathlib import Path

import dreamgen
from dreamgen.data.images import read_image
from dreamgen.data.lerobot.metadata import read_meta
from dreamgen.plan.sources import table_rows

DATA = Path(dreamgen.__file__).parent / "demo" / "data"
MAX_BYTES = 4_000_000


def test_the_demonstrations_are_a_dozen_clips_of_one_task_with_several_wordings():
    meta = read_meta(DATA / "demonstrations")
    assert len(meta.episodes) == 12 and set(meta.episodes.length_N) == {25}
    assert meta.fps == 16 and meta.cameras == ["observation.images.corner2"]
    assert len(meta.tasks) >= 2 and all("drawer" in task for task in meta.tasks.values())


def test_the_first_frames_are_read_with_their_instructions():
    rows = list(table_rows(DATA / "first_frames" / "first_frames.csv").rows)
    assert len(rows) == 6
    for row in rows:
        assert not isinstance(row, Exception) and row.file is not None and "drawer" in (row.instruction or "")
        assert read_image(row.file).shape == (128, 128, 3)


def test_they_are_small_enough_to_ship():
    assert sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file()) < MAX_BYTES

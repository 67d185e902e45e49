"""Five published episodes, with all their quirks, become a training set; skipped where the data is not at hand."""

import csv

import numpy as np
import pyarrow.parquet as pq

from dreamgen.data.images import fit_frame
from dreamgen.data.video import iter_frames, read_video
from dreamgen.prepare.stage import prepare

CAMERA = "observation.images.ego_view"


def test_real_episodes(real_demos, settings_for):
    shape = {"height": 64, "width": 64, "num_frames": 33, "fps": 16}
    result = prepare(settings_for(real_demos, **shape))
    notes = "\n".join(result.notes)
    for quirk in (
        "observation.images.egoview",
        '"valid" of 5 episodes',
        "float64",
        "total_videos 2",
        "0:100",
        "0.05 s",
    ):
        assert quirk in notes
    assert result.metrics == {"used": 0, "changed": 5, "refused": 0, "frames": 1676, "seconds": 104.75}
    train = result.outputs["train"]
    with (train / "metadata.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    foods = ["pear", "sweet potato", "meat", "salt", "cupcake"]
    assert [row["instruction"] for row in rows] == [
        f"pick the {food} from the counter and place it in the plate" for food in foods
    ]
    for index, row in enumerate(rows):
        source = pq.read_table(real_demos / f"data/chunk-000/episode_{index:06d}.parquet")
        written = pq.read_table(train / f"trajectories/episode_{index:06d}.parquet")
        assert written.num_rows == int(row["num_frames"])
        nearest = [int(k * 20 / 16 + 0.5) for k in range(written.num_rows)]
        for key in ("action", "observation.state"):
            expected = np.array(source[key].to_pylist(), np.float64)[nearest]
            np.testing.assert_array_equal(np.array(written[key].to_pylist(), np.float32), expected.astype(np.float32))


def test_real_pictures_are_those_of_their_rows(real_demos, settings_for):
    settings = settings_for(real_demos, prepare={"max_episodes": 1}, height=64, width=64, num_frames=33)
    train = prepare(settings).outputs["train"]
    written = read_video(train / "videos/episode_000000.mp4").astype(int)
    frames = iter_frames(real_demos / f"videos/chunk-000/{CAMERA}/episode_000000.mp4")
    source = np.stack([fit_frame(frame, 64, 64, "crop") for frame in frames]).astype(int)
    # The picture is nearer to its own source frame than to those that are a few frames away.
    for k in range(100, 200, 7):
        distances = {step: np.abs(written[k] - source[int(k * 1.25 + 0.5) + step]).mean() for step in (-6, 0, 6)}
        assert min(distances, key=distances.get) == 0, (k, distances)

"""Whatever a modality.json holds, the usable part is kept and the rest is reported."""

import pytest

from dreamgen.data.lerobot.modality import usable_modality

SIZES = {"observation.state": 3, "action": 3}
WHOLE = {
    "state": {"arm": {"start": 0, "end": 2}, "hand": {"start": 2, "end": 3, "original_key": "observation.state"}},
    "action": {"arm": {"start": 0, "end": 3}},
    "video": {"ego": {"original_key": "observation.images.ego"}, "wrist": {}},
    "annotation": {"human.task": {}},
}


def test_a_whole_modality_stays_as_it_is():
    assert usable_modality(WHOLE, SIZES) == (WHOLE, [])
    assert usable_modality(None, SIZES) == ({}, [])


@pytest.mark.parametrize(
    "part",
    [
        [0, 3], None, "0:3", 3, {}, {"start": 0}, {"end": 3}, {"start": "0", "end": "3"}, {"start": 0, "end": 4},
        {"start": -1, "end": 2}, {"start": 2, "end": 2}, {"start": 0.0, "end": 2.0}, {"start": False, "end": True},
        {"start": 0, "end": 3, "original_key": ["action"]}, {"start": 0, "end": 3, "original_key": "other"},
    ],
)  # fmt: skip
def test_a_bad_part_is_dropped_with_a_note_and_the_others_stay(part):
    kept, problems = usable_modality({**WHOLE, "action": {"bad": part, "hand": {"start": 2, "end": 3}}}, SIZES)
    assert kept == {**WHOLE, "action": {"hand": {"start": 2, "end": 3}}}
    assert len(problems) == 1 and problems[0].startswith("modality.json's action bad ")
    assert usable_modality({"action": {"bad": part}}, SIZES)[0] == {}


@pytest.mark.parametrize(
    "modality", [[], "text", 3, {"action": [1]}, {"video": "ego"}, {"video": {"ego": {"original_key": 3}}}]
)
def test_other_shapes_are_not_used(modality):
    kept, problems = usable_modality(modality, SIZES)
    assert kept == {} and len(problems) == 1

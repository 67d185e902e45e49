"""`meta/info.json` of LeRobot v2.0 to v3.0: version, frame rate, features and the templates of file names."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from dreamgen.data.lerobot.files import read_json_object
from dreamgen.data.lerobot.findings import FindingSink
from dreamgen.run.files import name_problem

VERSIONS = ("v2.0", "v2.1", "v3.0")
INFO, STATS, MODALITY = "meta/info.json", "meta/stats.json", "meta/modality.json"
EPISODES_V2, EPISODE_STATS_V2, TASKS_V2 = "meta/episodes.jsonl", "meta/episodes_stats.jsonl", "meta/tasks.jsonl"
EPISODES_V3, TASKS_V3 = "meta/episodes", "meta/tasks.parquet"
TEMPLATES_V2 = {
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
TEMPLATES_V3 = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
INDEX_COLUMNS = ("timestamp", "episode_index", "index", "task_index", "frame_index")
NUMERIC = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DEFAULT_CHUNKS_SIZE = 1000
MAX_VALUES = 2**30  # of a cell: more than any image or vector holds
FIELD = re.compile(r"\{(\w+)(?::0?(\d))?d?\}")

Feature = dict[str, Any]


@dataclass(frozen=True)
class Schema:
    """What info.json says.

    Args:
        info: The file as it is.
        version: One of `VERSIONS`.
        fps: Frames a second, as the fraction that the number approximates.
        features: The well-formed ones; `info` has all.
        data_path: Template of the tables' paths.
        video_path: Template of the videos' paths.
        chunks_size: Episodes (v2) or files (v3.0) in a chunk.
    """

    info: dict[str, Any]
    version: str
    fps: Fraction
    features: dict[str, Feature]
    data_path: str
    video_path: str
    chunks_size: int

    @property
    def is_v3(self) -> bool:
        """Whether episodes share files."""
        return self.version == "v3.0"

    @property
    def video_keys(self) -> tuple[str, ...]:
        """Features that are videos, depth among them."""
        return tuple(name for name, feature in self.features.items() if feature["dtype"] == "video")

    @property
    def cameras(self) -> list[str]:
        """Features that are color videos."""
        return [name for name in self.video_keys if not is_depth(self.features[name])]

    @property
    def pictures(self) -> list[str]:
        """Features that are color pictures in the tables."""
        return [name for name, feature in self.features.items()
                if feature["dtype"] == "image" and not is_depth(feature)]  # fmt: skip


def read_schema(root: Path, findings: FindingSink) -> Schema | None:
    """Read info.json.

    Returns:
        The schema, or None where nothing else of the dataset can be read; findings say why.
    """
    info = read_json_object(root, INFO, findings)
    if info is None:
        return None
    version = info.get("codebase_version")
    if version not in VERSIONS:
        findings.add("unknown-version", INFO, "codebase_version", version, " or ".join(VERSIONS))
        version = None
    fps, features = _fps(info, findings), _features(info, findings)
    chunks_size = whole_number(info.get("chunks_size", DEFAULT_CHUNKS_SIZE))
    if chunks_size is None or chunks_size < 1:
        findings.add("path-template", INFO, "chunks_size", as_stored(info["chunks_size"]), "a whole number, at least 1")
        chunks_size = DEFAULT_CHUNKS_SIZE
    if version is None or fps is None or features is None:
        return None
    templates = _templates(info, version, features, findings)
    if templates is None:
        return None
    return Schema(info, version, fps, features, templates["data_path"], templates["video_path"], chunks_size)


def _fps(info: dict[str, Any], findings: FindingSink) -> Fraction | None:
    fps = info.get("fps")
    if isinstance(fps, int | float) and not isinstance(fps, bool) and math.isfinite(fps):
        exact = Fraction(str(fps)).limit_denominator(1001)  # 29.97002997... is 30000/1001
        if exact > 0:
            return exact
    findings.add("fps", INFO, "fps", as_stored(fps), "a number above 0")
    return None


def _features(info: dict[str, Any], findings: FindingSink) -> dict[str, Feature] | None:
    features = info.get("features")
    if not isinstance(features, dict) or not features:
        findings.add("feature", INFO, "features", features, "an object of features")
        return None
    good = {}
    for name, feature in features.items():
        shape = feature.get("shape") if isinstance(feature, dict) else None
        sizes = [whole_number(size) for size in shape] if isinstance(shape, list) and shape else [None]
        is_video = isinstance(feature, dict) and feature.get("dtype") == "video"
        if not isinstance(feature, dict):
            findings.add("feature", INFO, f"features.{name}", feature, "dtype and shape")
        elif not isinstance(feature.get("dtype"), str) or None in sizes:
            findings.add("feature", INFO, f"features.{name}", feature, "dtype and shape", fatal=False)
        elif (number := math.prod(size or 0 for size in sizes)) < 0 or number > MAX_VALUES:
            findings.add("feature", INFO, f"features.{name}", f"shape {shape}", f"at most {MAX_VALUES} values")
        elif is_video and (problem := name_problem(name)):  # it becomes the name of a folder
            findings.add("feature", INFO, f"features.{name}", f"{name!r} {problem}", "a name that a folder can have")
        else:
            good[name] = feature
            if "/" in name:
                findings.add("feature", INFO, f"features.{name}", name, 'a name without "/"', fatal=False)
    return good


def _templates(
    info: dict[str, Any], version: str, features: dict[str, Feature], findings: FindingSink
) -> dict[str, str] | None:
    defaults = TEMPLATES_V3 if version == "v3.0" else TEMPLATES_V2
    names = ("chunk_index", "file_index") if version == "v3.0" else ("episode_chunk", "episode_index")
    has_videos = any(feature["dtype"] == "video" for feature in features.values())
    templates, usable = {}, True
    for key, default in defaults.items():
        if key == "video_path" and not has_videos:
            templates[key] = default
            continue
        templates[key] = info.get(key, default)
        values = dict.fromkeys(names, 0) | ({"video_key": "camera"} if key == "video_path" else {})
        filled = fill_template(templates[key], values) if isinstance(templates[key], str) else None
        if filled is None or not filled.isprintable() or any(len(part) > 200 for part in filled.split("/")):
            findings.add("path-template", INFO, key, templates[key], default)
            usable = False
    return templates if usable else None


def fill_template(template: str, values: dict[str, Any]) -> str | None:
    """Fill `{name}` and `{name:03d}` of a path template; None if it names something else.

    `str.format` is not used: a template comes from data, and its grammar reaches attributes and any width.
    """
    unknown = [match[1] for match in FIELD.finditer(template) if match[1] not in values]
    filled = FIELD.sub(lambda match: str(values.get(match[1], "")).zfill(int(match[2] or 0)), template)
    return None if unknown or "{" in filled or "}" in filled else filled


def as_stored(value: object) -> object:
    """Return a value of JSON as an error shows it: a text in quotes, so that "16" is not taken for a number."""
    return f"the text {value!r}" if isinstance(value, str) else value


def whole_number(value: object) -> int | None:
    """Return a whole number, or None for anything else, True and False among them."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def split_ends(span: object) -> tuple[int, int] | None:
    """Return first and last (exclusive) episode of a split such as "0:100", or None for anything else."""
    first, _, last = span.partition(":") if isinstance(span, str) else ("", "", "")
    are_numbers = first.isdecimal() and last.isdecimal() and max(len(first), len(last)) < 19
    return (int(first), int(last)) if are_numbers else None


def video_info(feature: Feature) -> dict[str, Any]:
    """Return what a video feature says of its encoding, under either of the two names; {} where it says nothing."""
    for key in ("info", "video_info"):
        if isinstance(feature.get(key), dict):
            return feature[key]
    return {}


def is_depth(feature: Feature) -> bool:
    """Return True for a video of depth."""
    tables = [table for key in ("video_info", "info") if isinstance(table := feature.get(key), dict)]
    return any(table.get("is_depth_map") or table.get("video.is_depth_map") for table in tables)


def picture_size(feature: Feature) -> tuple[int, int] | None:
    """Return height and width of a video or image feature in either order of axes; None if it has no three axes."""
    if len(feature["shape"]) != 3:
        return None
    by_name = dict(zip(axis_names(feature), feature["shape"], strict=True))
    return by_name["height"], by_name["width"]


def flat_names(names: Any) -> tuple[str, ...]:
    """Return the names of a vector's dimensions; some datasets group them: {"motors": ["waist", ...]}."""
    if isinstance(names, dict):
        return tuple(text for group in names.values() for text in flat_names(group))
    return tuple(str(name) for name in names) if isinstance(names, list | tuple) else ()


def axis_names(feature: Feature) -> tuple[str, str, str]:
    """Return the names of the three axes of a picture: its own, or those that its shape tells."""
    shape, names = feature["shape"], feature.get("names")
    if isinstance(names, list) and len(names) == 3 and {"height", "width"} <= set(map(str, names)):
        first, second, third = map(str, names)
        return first, second, third
    return ("height", "width", "channels") if shape[2] in (1, 3) else ("channels", "height", "width")


def policy_axis_names(feature: Feature) -> list[str] | None:
    """Return names of a picture's axes from which lerobot builds a policy: its own, or new ones where it could not.

    lerobot takes the third name: it must exist, and where the channels come last it must be channel or channels.
    """
    if len(feature["shape"]) != 3:
        return feature.get("names")
    names, by_shape = feature.get("names"), axis_names({**feature, "names": None})
    if not isinstance(names, list) or len(names) != 3:
        return list(by_shape)
    return list(by_shape) if by_shape[2] == "channels" and names[2] not in ("channel", "channels") else names

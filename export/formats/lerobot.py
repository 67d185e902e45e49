"""The LeRobot formats as `dreamgen.extensions.export_format` registers them; both share one reader."""

from __future__ import annotations

from pathlib import Path

from dreamgen.extensions.export_format import ExportFormat, FormatReader
from dreamgen.run.files import read_json
from export.check.lerobot import check_lerobot
from export.check.repair import repair
from export.formats.lerobot_v21 import write_lerobot_v21
from export.formats.lerobot_v30 import write_lerobot_v30
from export.spec import DatasetSpec

INFO = Path("meta", "info.json")
CARD_METADATA = {"configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}]}


def _num_episodes(root: Path) -> int | None:
    return read_json(root / INFO).get("total_episodes")


READER = FormatReader(
    layout="LeRobot: a folder with meta/info.json",
    recognizes=lambda path: (path / INFO).exists(),
    check=check_lerobot,
    num_episodes=_num_episodes,
    repair=repair,
)


def _load_v30(spec: DatasetSpec) -> str:
    return 'LeRobotDataset("OWNER/NAME", root="path/to/this/folder")   # lerobot 0.4 or later'


def _load_v21(spec: DatasetSpec) -> str:
    command = "python scripts/gr00t_finetune.py --dataset-path path/to/this/folder   # any GR00T release"
    tags = ", ".join(f"{tag} ({release})" for release, tag in spec.embodiment_tags.items())
    return f"{command}\n# --embodiment-tag: {tags}" if tags else command


LEROBOT_V30 = ExportFormat(
    name="lerobot-v3.0",
    summary="many episodes in each parquet and mp4 file, for LeRobot 0.4 or later",
    write=write_lerobot_v30,
    reader=READER,
    load_example=_load_v30,
    is_resumable=True,
    card_metadata=CARD_METADATA,
    hub_tag="v3.0",
)
LEROBOT_V21 = ExportFormat(
    name="lerobot-v2.1",
    summary="a parquet file per episode and an mp4 file per camera and episode, for GR00T and older LeRobot",
    write=write_lerobot_v21,
    reader=READER,
    load_example=_load_v21,
    is_resumable=True,
    card_metadata=CARD_METADATA,
    hub_tag="v2.1",
)

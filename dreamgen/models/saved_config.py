"""What diffusers adds to the configuration of a model that it loaded."""

from __future__ import annotations

from pathlib import Path

from dreamgen.run.files import read_json, write_json

SOURCE = "_name_or_path"


def forget_source(folder: Path) -> None:
    """Remove from a saved model, or from each part of a pipeline, which folder or repository it was loaded from.

    A folder of this machine means nothing elsewhere, and is nobody's business.
    """
    for file in [*folder.glob("model_index.json"), *folder.glob("config.json"), *folder.glob("*/config.json")]:
        config = read_json(file)
        if config.pop(SOURCE, None) is not None:
            write_json(file, config)

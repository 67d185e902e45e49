"""The fingerprint of a saved model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dreamgen.run.file_hashes import sha256_of_files

TEXT_FILES = ("tokenizer.json", "merges.txt", "chat_template.jinja")


def folder_fingerprint(folder: Path) -> str:
    """Hash a saved pipeline's weights and configuration, so that equal models have equal names on every machine.

    Configuration keys that begin with an underscore hold paths and library versions and are left out.
    """
    digest = hashlib.sha256()
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix == ".safetensors" or path.name in TEXT_FILES]
    hashes = sha256_of_files(paths)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path in hashes:
            digest.update(f"{name}:{hashes[path]}\n".encode())
        elif path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
            kept = {k: v for k, v in values.items() if not k.startswith("_") and k != "transformers_version"}
            digest.update(f"{name}:{json.dumps(kept, sort_keys=True)}\n".encode())
    return digest.hexdigest()

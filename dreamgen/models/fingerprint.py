"""The fingerprint of a saved model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dreamgen.run.files import sha256_of_file


def folder_fingerprint(folder: Path) -> str:
    """Hash a saved pipeline's weights and configuration, so that equal models have equal names on every machine.

    Configuration keys that begin with an underscore hold paths and library versions and are left out.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            digest.update(f"{name}:{sha256_of_file(path)}\n".encode())
        elif path.suffix == ".json" and path.name != "tokenizer.json":
            values = json.loads(path.read_text(encoding="utf-8"))
            kept = {k: v for k, v in values.items() if not k.startswith("_") and k != "transformers_version"}
            digest.update(f"{name}:{json.dumps(kept, sort_keys=True)}\n".encode())
        elif path.name in ("tokenizer.json", "merges.txt", "chat_template.jinja"):
            digest.update(f"{name}:{sha256_of_file(path)}\n".encode())
    return digest.hexdigest()

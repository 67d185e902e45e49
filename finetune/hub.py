"""Uploading a finished adapter."""

from __future__ import annotations

from pathlib import Path

from dreamgen.data import hub
from dreamgen.errors import Problems


def check_can_push(repo_id: str | None, problems: Problems) -> None:
    """Add the problems that would prevent an upload to `finetune.push_to_hub`."""
    hub.check_can_push("finetune.push_to_hub", repo_id, "the adapter", problems)


def push_adapter(adapter: Path, repo_id: str) -> tuple[str, bool]:
    """Upload an adapter's folder; see `dreamgen.data.hub.push_folder`."""
    return hub.push_folder(adapter, repo_id, "the adapter", "Adapter trained with DreamGen")

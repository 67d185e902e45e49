"""Uploading a finished adapter: refused before the training where it cannot work, and never at the adapter's cost."""

from __future__ import annotations

from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from dreamgen.core.errors import Problems


def check_can_push(repo_id: str | None, problems: Problems) -> None:
    """Note what would keep an adapter from being uploaded, as far as this machine knows without asking the hub.

    Args:
        repo_id: `finetune.push_to_hub`; None: nothing is uploaded.
        problems: They are added here.
    """
    if repo_id is None:
        return
    try:
        validate_repo_id(repo_id)
        if "/" not in repo_id:
            problems.add("finetune.push_to_hub has no owner", actual=repo_id, allowed="OWNER/NAME")
    except HFValidationError as error:
        problems.add("finetune.push_to_hub is not a hub id", actual=repo_id, allowed=str(error).splitlines()[0])
    if get_token() is None:
        problems.add(
            f"the adapter cannot be uploaded to {repo_id}: nobody is logged in to the hub",
            next_step="hf auth login, or leave push_to_hub out",
        )
    if constants.HF_HUB_OFFLINE:
        problems.add(
            f"the adapter cannot be uploaded to {repo_id}: HF_HUB_OFFLINE is set",
            next_step="unset HF_HUB_OFFLINE, or leave push_to_hub out",
        )


def push_adapter(adapter: Path, repo_id: str) -> tuple[str, bool]:
    """Upload an adapter's folder; a failure is told, as the adapter itself stands.

    Args:
        adapter: The finished folder.
        repo_id: Made where it is new, and private then.

    Returns:
        A sentence for the user, and whether the upload is done.
    """
    api = HfApi()
    try:
        api.create_repo(repo_id, private=True, exist_ok=True)
        done = api.upload_folder(repo_id=repo_id, folder_path=adapter, commit_message="Adapter trained with DreamGen")
    except (httpx.HTTPError, OSError, RuntimeError) as error:  # the last from xet, its storage
        reason = str(error).splitlines()[0]
        return f"the upload failed ({reason}); the adapter is whole: hf upload {repo_id} {adapter}", False
    return f"uploaded to {done.repo_url}", True

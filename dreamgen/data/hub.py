"""Uploading a finished folder to the hub: refused early where it cannot succeed, never at the folder's cost."""

from __future__ import annotations

from pathlib import Path

from dreamgen.errors import Problems


def check_can_push(setting: str, repo_id: str | None, what: str, problems: Problems) -> None:
    """Note what would keep a folder from being uploaded, as far as this machine knows without asking the hub.

    Args:
        setting: The setting that asks for it.
        repo_id: Its value; None: nothing is uploaded.
        what: What would be uploaded, such as "the adapter".
        problems: They are added here.
    """
    if repo_id is None:
        return
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        if "/" not in repo_id:
            problems.add(f"{setting} has no owner", actual=repo_id, allowed="OWNER/NAME")
    except HFValidationError as error:
        problems.add(f"{setting} is not a hub id", actual=repo_id, allowed=str(error).splitlines()[0])
    if get_token() is None:
        problems.add(
            f"{what} cannot be uploaded to {repo_id}: nobody is logged in to the hub",
            next_step="hf auth login, or leave push_to_hub out",
        )
    if constants.HF_HUB_OFFLINE:
        problems.add(
            f"{what} cannot be uploaded to {repo_id}: HF_HUB_OFFLINE is set",
            next_step="unset HF_HUB_OFFLINE, or leave push_to_hub out",
        )


def push_folder(
    folder: Path, repo_id: str, what: str, message: str, repo_type: str = "model", tag: str | None = None
) -> tuple[str, bool]:
    """Upload a folder; a failure is only reported, because the folder itself is complete.

    Args:
        folder: The finished folder.
        repo_id: Made where it is new, and private then.
        what: What it is, such as "the adapter".
        message: Of the commit.
        repo_type: model or dataset.
        tag: Given to what was uploaded; readers of LeRobot datasets look for their version's.

    Returns:
        A sentence for the user, and whether the upload is done.
    """
    import httpx
    from huggingface_hub import HfApi

    api, kind = HfApi(), "" if repo_type == "model" else f" --repo-type {repo_type}"
    try:
        api.create_repo(repo_id, private=True, exist_ok=True, repo_type=repo_type)
        done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, repo_type=repo_type)
        if tag is not None:
            api.create_tag(repo_id, tag=tag, repo_type=repo_type, exist_ok=True)
    except (httpx.HTTPError, OSError, RuntimeError) as error:  # the last from xet, its storage
        reason = str(error).splitlines()[0]
        return f"the upload failed ({reason}); {what} is whole: hf upload {repo_id} {folder}{kind}", False
    return f"uploaded to {done.repo_url}", True

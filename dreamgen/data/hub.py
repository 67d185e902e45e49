"""Upload a finished folder to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dreamgen.errors import Problems, quoted


def check_can_push(setting: str, repo_id: str | None, what: str, problems: Problems) -> None:
    """Report what would prevent an upload, without contacting the hub.

    Args:
        setting: Path of the setting that requests the upload.
        repo_id: Value of the setting. None: nothing is uploaded.
        what: What would be uploaded, such as "the adapter".
        problems: Problems are added here.
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
            f"{what} cannot be uploaded to {repo_id}: not logged in to the hub",
            next_step="hf auth login, or leave push_to_hub out",
        )
    if constants.HF_HUB_OFFLINE:
        problems.add(
            f"{what} cannot be uploaded to {repo_id}: HF_HUB_OFFLINE is set",
            next_step="unset HF_HUB_OFFLINE, or leave push_to_hub out",
        )


def push_folder(
    folder: Path, repo_id: str, what: str, message: str, repo_type: str = "model", tag: str | None = None,
    beside: Mapping[str, Path] | None = None,
) -> tuple[str, bool]:  # fmt: skip
    """Upload a folder. A failure is reported and not raised, because the local folder is complete.

    Args:
        folder: The finished folder.
        repo_id: The repository; created, as a private one, if it does not exist.
        what: What is uploaded, such as "the adapter".
        message: Commit message.
        repo_type: "model" or "dataset".
        beside: Other files, by their names in the repository.
        tag: Git tag for the upload; readers of LeRobot datasets look for the tag of their version.

    Returns:
        A sentence for the user, and whether the upload succeeded.
    """
    import httpx
    from huggingface_hub import HfApi

    api, kind = HfApi(), "" if repo_type == "model" else f" --repo-type {repo_type}"
    try:
        api.create_repo(repo_id, private=True, exist_ok=True, repo_type=repo_type)
        done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, repo_type=repo_type)
        for name, file in (beside or {}).items():
            if file.is_file():
                api.upload_file(
                    path_or_fileobj=file, path_in_repo=name, repo_id=repo_id, repo_type=repo_type,
                    commit_message=f"{message}: {name}",
                )  # fmt: skip
        if tag is not None:
            api.create_tag(repo_id, tag=tag, repo_type=repo_type, exist_ok=True)
    except (httpx.HTTPError, OSError, RuntimeError) as error:  # RuntimeError: from xet, the hub's storage
        reason = str(error).splitlines()[0]
        return f"the upload failed ({reason}); {what} is complete: hf upload {repo_id} {quoted(folder)}{kind}", False
    return f"uploaded to {done.repo_url}", True

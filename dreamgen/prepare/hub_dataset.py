"""LeRobot datasets of the Hugging Face hub as folders on this machine."""

from __future__ import annotations

from pathlib import Path

from dreamgen.data.lerobot.metadata import read_meta
from dreamgen.errors import UserError


def hub_dataset(repo_id: str, may_download: bool) -> Path:
    """Return the folder of a hub dataset; missing files are downloaded, also after an interrupted download.

    Args:
        repo_id: `owner/name`.
        may_download: Whether anything may be downloaded; otherwise the dataset must be on this machine.

    Raises:
        UserError: if it is not on this machine and may not or cannot be downloaded.
    """
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError
    from lerobot.utils.constants import HF_LEROBOT_HOME

    # A folder of its own and not the hub's cache, whose links would lead out of the dataset.
    root = HF_LEROBOT_HOME / repo_id
    if is_whole(root) or (not may_download and (root / "meta" / "info.json").is_file()):
        return root
    if not may_download:
        raise UserError(
            f"{repo_id} is not a local folder, and --dry_run downloads nothing", allowed="a folder",
            next_step="leave out --dry_run to download it from the hub, or check the path",
        )  # fmt: skip
    try:
        # Without the hub, snapshot_download would return a folder that an interrupted download left.
        commit = HfApi().dataset_info(repo_id).sha
        snapshot_download(repo_id, repo_type="dataset", revision=commit, local_dir=root)
    except (OSError, httpx.HTTPError, HFValidationError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{repo_id} is not a local folder, and it, or what is missing of {root}, cannot be downloaded from the hub",
            actual=f"{type(error).__name__}: {error}".splitlines()[0],
            allowed="a folder, or a LeRobot dataset on the hub that you may read",
            next_step="check the path and the network, or download the dataset and give its folder",
        ) from None
    return root


def is_whole(root: Path) -> bool:
    """Return whether a folder holds a LeRobot dataset with every file that its metadata names."""
    try:
        episodes = read_meta(root).episodes if root.is_dir() else []
    except UserError:
        return False
    files = {file for episode in episodes for file in (episode.data_file, *episode.videos.values())}
    return bool(files) and all(file.is_file() for file in files)

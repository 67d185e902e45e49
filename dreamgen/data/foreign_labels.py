"""Labels that another program made: a folder of parquet or npz files, or a LeRobot dataset, read clip by clip.

Axes: T frames, S state, A action.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dreamgen.data.lerobot.metadata import read_meta
from dreamgen.data.media_files import files_below, is_dataset
from dreamgen.data.trajectory import ACTION, STATE, Trajectory, read_trajectory
from dreamgen.errors import UserError
from dreamgen.run.files import inside, regular_file

SUFFIXES = (".parquet", ".npz")
ARRAYS = {STATE: ("observation.state", "state", "states"), ACTION: ("action", "actions")}  # names in an npz
MAX_NPZ_BYTES = 2**30  # unpacked
# At the end of a name, after a separator: the digits that a hexadecimal id ends with are none.
EPISODE_NUMBER = re.compile(r"(?:^|[_. -]|episode)([0-9]{1,9})$", re.IGNORECASE)


@dataclass(frozen=True)
class ForeignLabel:
    """One clip's label as its file has it.

    Args:
        file: The file that holds it.
        load: Reads it.
    """

    file: Path
    load: Callable[[], Trajectory]


@dataclass
class ForeignLabels:
    """Labels by clip.

    Args:
        root: The folder.
        layout: What it holds, in words.
        by_key: Lower-case path below the folder, without its ending; for a LeRobot dataset the episode's number.
        is_dataset: Whether it is a LeRobot dataset.
        taken: Keys of labels that a clip has taken.
    """

    root: Path
    layout: str
    by_key: dict[str, ForeignLabel]
    is_dataset: bool = False
    taken: set[str] = field(default_factory=set)

    def of(self, names: Sequence[str]) -> ForeignLabel | None:
        """Return a clip's label and mark it as taken; None if there is none.

        Args:
            names: What its label may be called, such as its id or the path of its video; the first that exists counts.
                In a LeRobot dataset, the number at the end of a name is the episode's.

        Raises:
            UserError: if a name without its folders belongs to several files.
        """
        for name in names:
            if (key := self._key_of(name)) is not None:
                self.taken.add(key)
                return self.by_key[key]
        return None

    def not_taken(self) -> list[Path]:
        """Return the files, relative to the folder, whose labels no clip has taken."""
        left = {self.by_key[key].file.relative_to(self.root) for key in self.by_key.keys() - self.taken}
        return sorted(left - {self.by_key[key].file.relative_to(self.root) for key in self.taken})

    def _key_of(self, name: str) -> str | None:
        path = Path(name)
        if self.is_dataset:
            number = EPISODE_NUMBER.search(path.stem if path.suffix else path.name)
            key = str(int(number[1])) if number else ""
            return key if key in self.by_key else None
        key = name.lower()
        if key in self.by_key:
            return key
        stem = path.name.lower()
        found = [key for key in self.by_key if key.rpartition("/")[2] == stem]
        if len(found) > 1:
            files = ", ".join(str(self.by_key[key].file.relative_to(self.root)) for key in found)
            raise UserError(f"{self.root} has several labels of {path.name}", actual=files, allowed="one")
        return found[0] if found else None


def open_labels(path: str | Path, state_dim: int | None = None, action_dim: int | None = None) -> ForeignLabels:
    """List labels without reading them.

    Args:
        path: A folder with one NAME.parquet (columns `action`, `observation.state`) or NAME.npz (arrays of the same
            names, or `actions` and `state`) for each clip, also in sub-folders; or a LeRobot dataset.
        state_dim: Required length of a state; None for any.
        action_dim: Required length of an action; None for any.

    Raises:
        UserError: if there is no label.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(
            f"{root} is not a folder of labels", allowed="a folder of .parquet or .npz, or a LeRobot dataset"
        )
    if is_dataset(root):
        episodes = read_meta(root).episodes
        labels = {}
        for episode in episodes:
            index = episode.index if episode.shares_file else None
            labels[str(episode.index)] = ForeignLabel(
                episode.data_file, lambda e=episode, i=index: read_trajectory(e.data_file, state_dim, action_dim, i)
            )
        return ForeignLabels(root, "LeRobot dataset", labels, is_dataset=True)
    labels = {}
    for relative in files_below(root):
        if relative.suffix.lower() not in SUFFIXES:
            continue
        file, key = inside(root, relative, str(root)), relative.with_suffix("").as_posix().lower()
        if key in labels:
            raise UserError(
                f"{root} has two labels of {key}", actual=f"{labels[key].file.name}, {relative}", allowed="one"
            )
        read = read_npz if relative.suffix.lower() == ".npz" else read_trajectory
        labels[key] = ForeignLabel(root / relative, lambda f=file, r=read: r(f, state_dim, action_dim))
    if not labels:
        raise UserError(f"{root} has no label", allowed="NAME.parquet or NAME.npz for each clip, or a LeRobot dataset")
    return ForeignLabels(root, "folder of label files", labels)


def read_npz(path: Path, state_dim: int | None = None, action_dim: int | None = None) -> Trajectory:
    """Read the actions, and the states if there are any, of a numpy archive; nothing in it is unpickled.

    Args:
        path: Archive with arrays of shape (frames, dimensions).
        state_dim: Required length of a state; None for any.
        action_dim: Required length of an action; None for any.

    Raises:
        UserError: if it cannot be read, has no actions, or an array has another shape or values that are not finite.
    """
    try:
        with zipfile.ZipFile(regular_file(path)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_NPZ_BYTES:
            raise UserError(f"{path} is too large", actual=f"{size} bytes unpacked", allowed=MAX_NPZ_BYTES)
        with np.load(path, allow_pickle=False) as archive:
            found = {name: next((key for key in keys if key in archive.files), None) for name, keys in ARRAYS.items()}
            arrays = {name: np.asarray(archive[key]) for name, key in found.items() if key is not None}
            known = ", ".join(archive.files)
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib, lzma and numpy have no error in common
        raise UserError(f"{path} is damaged or is not an npz", actual=str(error)[:200]) from None
    if ACTION not in arrays:
        raise UserError(f"{path} has no actions", actual=known[:200], allowed=" or ".join(ARRAYS[ACTION]))
    vectors = {
        name: _checked(arrays[name], f"{path}: {name}", dim) if name in arrays else None
        for name, dim in ((STATE, state_dim), (ACTION, action_dim))
    }
    action_TA, state_TS = vectors[ACTION], vectors[STATE]
    assert action_TA is not None, "checked above"
    if state_TS is not None and len(state_TS) != len(action_TA):
        raise UserError(f"{path}: states and actions differ in length", actual=f"{len(state_TS)}, {len(action_TA)}")
    return Trajectory(len(action_TA), state_TS, action_TA)


def _checked(values: np.ndarray, what: str, dim: int | None) -> np.ndarray:
    if values.dtype.kind not in "fiu" or values.ndim not in (1, 2) or 0 in values.shape:
        raise UserError(f"{what} is not a table of numbers", actual=f"{values.dtype}, shape {values.shape}",
                        allowed="(frames, dimensions)")  # fmt: skip
    values_TD = values.reshape(len(values), -1)
    if dim not in (None, values_TD.shape[1]):
        raise UserError(f"{what} has the wrong length", actual=values_TD.shape[1], allowed=dim)
    with np.errstate(over="ignore"):
        values_TD = values_TD.astype(np.float32)
    if num_bad := int((~np.isfinite(values_TD)).sum()):
        raise UserError(f"{what} has {num_bad} values that are not finite", allowed="finite float32")
    return values_TD


def names_of(*origins: str | None) -> list[str]:
    """Return the names that a clip's label may have: each of some paths, without its ending, and its last part."""
    found: Iterable[str] = (Path(origin).with_suffix("").as_posix() if Path(origin).suffix else origin
                            for origin in origins if origin)  # fmt: skip
    return list(dict.fromkeys(name for path in found for name in (path, Path(path).name)))

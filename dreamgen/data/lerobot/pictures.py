"""Image features of LeRobot datasets: frames that are stored as PNG or JPEG in the tables, read like a video's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dreamgen.data.frames import PictureSource
from dreamgen.data.images import decode_image
from dreamgen.data.lerobot.files import PARQUET_DAMAGE
from dreamgen.data.parquet_rows import EPISODE, ParquetRows, RowsByEpisode
from dreamgen.data.timeline import FrameTimes
from dreamgen.data.trajectory import read_columns
from dreamgen.errors import UserError

ROWS_PER_READ = 32


@dataclass(frozen=True)
class StoredPictures(PictureSource):
    """The pictures of one episode in a column of a table.

    Args:
        column: The image feature.
        first_row: Where the episode begins in the table.
    """

    column: str = ""
    first_row: int = 0

    def pictures(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """Yield frame_HWC for each number, uint8, RGB.

        Raises:
            UserError: naming a row without a picture, or with one of another size.
        """
        rows = ParquetRows(self.path, lambda name: name == self.column)
        try:
            for some in batched(numbers.tolist(), ROWS_PER_READ):
                first = self.first_row + some[0]
                try:
                    cells = rows.read(first, self.first_row + some[-1] + 1)[self.column]
                except PARQUET_DAMAGE as error:
                    raise UserError(f"{self.path} cannot be read", actual=str(error)) from None
                for number in some:
                    row = self.first_row + number
                    frame_HWC = decoded_picture(cells[row - first].as_py(), f"{self.path}: row {row} of {self.column}")
                    if frame_HWC.shape[:2] != (self.height, self.width):
                        raise UserError(
                            f"{self.path}: row {row} of {self.column} has another size",
                            actual=f"{frame_HWC.shape[1]} x {frame_HWC.shape[0]}",
                            allowed=f"{self.width} x {self.height}",
                        )  # fmt: skip
                    yield frame_HWC
        finally:
            rows.close()


def stored_pictures(path: Path, column: str, episode_index: int | None, fps: Fraction) -> StoredPictures:
    """Return an episode's pictures after a look at the first.

    Args:
        path: The table.
        column: The image feature.
        episode_index: Whose rows are meant; None for all.
        fps: Rate of the rows.

    Raises:
        UserError: if the table cannot be read, or has no picture there.
    """
    first_row, num_rows = _rows_of(path, episode_index)
    if not num_rows:
        raise UserError(f"{path} has no rows of episode {episode_index}")
    try:
        rows = ParquetRows(path, lambda name: name == column)
        cells = rows.read(first_row, first_row + 1)
        rows.close()
    except PARQUET_DAMAGE as error:
        raise UserError(f"{path} cannot be read", actual=str(error)) from None
    if column not in cells.column_names:
        raise UserError(f"{path} has no column {column}", next_step="dreamgen check lists all problems")
    height, width = decoded_picture(cells[column][0].as_py(), f"{path}: row {first_row} of {column}").shape[:2]
    return StoredPictures(
        path, "image", None, height, width, fps, num_rows, times=FrameTimes.regular(num_rows, fps), column=column,
        first_row=first_row,
    )  # fmt: skip


def decoded_picture(cell: Any, where: str) -> np.ndarray:
    """Return frame_HWC of a cell of an image feature, uint8, RGB.

    Raises:
        UserError: naming the place, if no picture is stored there or it cannot be decoded.
    """
    data = cell.get("bytes") if isinstance(cell, dict) else None
    frame_HWC = decode_image(data) if data else None
    if frame_HWC is None:
        outside = f"a path: {cell['path']}" if isinstance(cell, dict) and cell.get("path") and not data else None
        raise UserError(f"{where} is no picture", actual=outside or "no PNG or JPEG",
                        allowed="the bytes of a PNG or JPEG in the table")  # fmt: skip
    return frame_HWC


def _rows_of(path: Path, episode_index: int | None) -> tuple[int, int]:
    state = path.stat()
    own = _episodes_in(path, state.st_mtime_ns, episode_index is not None).rows(episode_index or 0)
    if len(own) and own[-1] - own[0] + 1 != len(own):
        raise UserError(f"{path}: the rows of episode {episode_index} are not next to one another")
    return (int(own[0]), len(own)) if len(own) else (0, 0)


@lru_cache(maxsize=4)
def _episodes_in(path: Path, _: int, is_shared: bool) -> RowsByEpisode:
    """Return which rows of a table belong to which episode; all to episode 0 where it holds only one."""
    if is_shared:
        return RowsByEpisode.of(read_columns(path, [EPISODE])[EPISODE])
    try:
        num_rows = pq.read_metadata(path).num_rows
        return RowsByEpisode(np.arange(num_rows), np.zeros(num_rows, np.int64))
    except PARQUET_DAMAGE as error:
        raise UserError(f"{path} cannot be read", actual=str(error)) from None

"""The rows of files that LeRobot v3.0 numbers by chunk and file, and parquet tables spread over them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class FileNumber:
    """A file's place: `file-FFF` in the folder `chunk-CCC`."""

    chunk: int
    file: int

    def next(self, chunks_size: int) -> FileNumber:
        """Return the number after this one, with `chunks_size` files in a chunk."""
        full = self.file + 1 >= chunks_size
        return FileNumber(self.chunk + 1, 0) if full else FileNumber(self.chunk, self.file + 1)

    def indices(self) -> dict[str, int]:
        """Return what a path template asks for."""
        return {"chunk_index": self.chunk, "file_index": self.file}


class ParquetFiles:
    """Appends tables of one schema to a row of parquet files; a table is never split.

    Args:
        root: Folder of the dataset.
        template: Path of a file below `root`, with `chunk_index` and `file_index` to be filled in.
        limit_bytes: Size that a file does not exceed, unless a single table does.
        chunks_size: Files in a chunk's folder.
    """

    def __init__(self, root: Path, template: str, limit_bytes: int, chunks_size: int) -> None:
        self._root, self._template = root, template
        self._limit_bytes, self._chunks_size = limit_bytes, chunks_size
        self._number = FileNumber(0, -1)
        self._sink: pa.NativeFile | None = None
        self._writer: pq.ParquetWriter | None = None

    def place(self, table: pa.Table) -> FileNumber:
        """Return which file `append` will put the table in."""
        # In memory a table is about as large as in the file, or larger: the limit holds without a trial write.
        full = self._sink is None or self._sink.tell() + table.nbytes > self._limit_bytes
        return self._number.next(self._chunks_size) if full else self._number

    def append(self, table: pa.Table) -> FileNumber:
        """Write a table as a row group and return its file."""
        number = self.place(table)
        if number != self._number:
            self.close()
            self._number = number
            path = self._root / self._template.format(**number.indices())
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = pa.OSFile(str(path), "wb")
            self._writer = pq.ParquetWriter(self._sink, table.schema, compression="snappy")
        self._writer.write_table(table)
        return number

    def close(self) -> None:
        """Write the last file's footer."""
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            self._writer = self._sink = None

    def __enter__(self) -> ParquetFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

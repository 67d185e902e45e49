"""Parse JSON of any origin: whatever is wrong with it is one kind of error, and the result can be written and shown."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 256 * 2**20  # a parsed document takes about ten times its size in RAM
MAX_DIGITS = 19  # of a 64-bit integer


class BadJson(ValueError):
    """Text that is not JSON, or JSON that no program should have to deal with."""


def parse_json(text: str | bytes) -> Any:
    """Parse one JSON value.

    Raises:
        BadJson: if it is not UTF-8 JSON, is nested too deeply, holds an integer beyond 64 bits, or text that is not
            Unicode (half of a surrogate pair).
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(decoded, parse_int=_whole_number)
        if "\\u" in decoded:
            json.dumps(value, ensure_ascii=False).encode()  # surrogates cannot be encoded
    except RecursionError:
        raise BadJson("nested too deeply") from None
    except UnicodeEncodeError:
        raise BadJson("text with half of a surrogate pair, which is not Unicode") from None
    except ValueError as error:  # among them JSONDecodeError and UnicodeDecodeError
        raise BadJson(str(error) if text else "it is empty") from None
    return value


def read_json_text(path: Path) -> bytes:
    """Return the bytes of a JSON file.

    Raises:
        BadJson: if it is too large to be parsed.
        OSError: if it cannot be read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # opening a FIFO would wait for its writer
        raise BadJson("not a regular file")
    size = found.st_size
    if size > MAX_JSON_BYTES:
        raise BadJson(f"{size} bytes, more than the {MAX_JSON_BYTES} that are read")
    return path.read_bytes()


def _whole_number(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise BadJson(f"an integer of {len(digits)} digits, more than 64 bits hold")
    return int(digits)

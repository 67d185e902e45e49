"""Escape text that comes from data for where it is shown: a terminal, or Markdown. HTML has `html.escape`."""

from __future__ import annotations

import re

# Control characters other than tab and newline; marks that reorder what follows; halves of surrogate pairs.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MARKUP = re.compile(r"([\\`*_\[\]<>#|~$])")
LIST_ITEM = re.compile(r"^(?=[-+]|\d+[.)](?:\s|$))(\d*)([-+.)])")  # only at the beginning; 0.5 is none
LINK = re.compile(r"(?i)(://|www\.|@)")


def terminal_text(text: str) -> str:
    """Return text in which escape sequences and other control characters are visible rather than obeyed."""
    return UNSAFE.sub(
        lambda match: f"\\x{ord(match[0]):02x}" if ord(match[0]) < 256 else f"\\u{ord(match[0]):04x}", text
    )


def json_text(text: str) -> str:
    """Return JSON in which control characters and surrogates, which only strings hold, are escaped as JSON does."""
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def markdown_text(text: str) -> str:
    """Return text as one line of Markdown that shows it and nothing else: no markup, HTML, link or table cell."""
    one_line = terminal_text(" ".join(text.split()))
    escaped = LIST_ITEM.sub(r"\1\\\2", MARKUP.sub(r"\\\1", one_line.replace("&", "&amp;")))
    return LINK.sub(lambda match: "".join(f"&#{ord(c)};" if c in ":.@" else c for c in match[0]), escaped)


def code_text(text: str) -> str:
    """Return text as one line that Markdown can show as code, between single backticks."""
    return terminal_text(" ".join(text.split())).replace("`", "'")

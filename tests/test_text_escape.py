"""Text from data is shown as it is: nothing in it is obeyed by a terminal or by Markdown."""

from __future__ import annotations

import json

import pytest

from dreamgen.cli.results import show
from dreamgen.progress import log
from dreamgen.run.records import StageResult
from dreamgen.text_escape import json_text, markdown_text, terminal_text

HOSTILE = "\x1b]0;title\x07\x1b[2J \x9b31m \u202egnp.exe \ud800 \x7f \r"


def test_escape_sequences_are_shown_and_not_obeyed(capsys):
    shown = terminal_text(HOSTILE)
    assert shown.isprintable() and "\\x1b]0;title\\x07" in shown and "\\u202e" in shown and "\\ud800" in shown
    assert terminal_text("café 方块\n\tüber") == "café 方块\n\tüber"
    log(HOSTILE)
    show([StageResult("check", {"dataset": HOSTILE}, {"n": HOSTILE}, [HOSTILE])], as_json=False)
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert text and all(line.isprintable() for line in text.splitlines())


def test_json_keeps_its_values(capsys):
    show([StageResult("check", {}, {"n": HOSTILE}, ["方"])], as_json=True)
    printed = capsys.readouterr().out
    assert json.loads(printed)[0]["figures"]["n"] == HOSTILE and "方" in printed
    assert all(line.isprintable() for line in printed.splitlines())
    assert json.loads(json_text(json.dumps({"a": HOSTILE}, ensure_ascii=False))) == {"a": HOSTILE}


@pytest.mark.parametrize("text", [
    "# heading", "[x](https://evil.example)", "![x](http://evil.example/p.png)", "<script>alert(1)</script>", "a | b",
    "https://evil.example", "www.evil.example", "a@evil.example", "- item", "1. item", "+ item", "`code`", "*a* _b_",
    "&lt;b&gt;", "one\n\n# two", "~~gone~~", "$x$", "<img src=x onerror=y>", "[x]: http://evil.example",
])  # fmt: skip
def test_markdown_shows_the_text_and_nothing_else(text):
    markdown = pytest.importorskip("markdown")  # of mkdocs, with which the documentation is built

    html = markdown.markdown(f"- {markdown_text(text)}", extensions=["tables"])
    body = html.removeprefix("<ul>\n<li>").removesuffix("</li>\n</ul>")
    assert "<" not in body and "://" not in body.replace("&#58;//", "")

"""Packages, presets and pages use the field's standard terms: the private names of earlier versions are gone."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Not found in any text: identifiers, comments, docstrings, messages, pages.
WORDS = {
    "admission", "admitted", "buries", "bury", "clipmaker", "dreamer", "figure", "figures", "foretell", "foretold",
    "hungry", "learnt", "refusals", "shortcut", "shortcuts", "tally", "unguarded",
}  # fmt: skip
PHRASES = ("main memory", "given frame", "given frames")
# Not found as a word of an identifier; as English they are fine.
IDENTIFIER_WORDS = {"carried", "killer", "said", "told", "unfinished"}
# Not found as a whole identifier or module.
IDENTIFIERS = {
    "Asked", "Block", "Cut", "Draws", "Hands", "Level", "Other", "Scene", "Target", "Trained", "fast_step",
    "given_frames", "marks", "numbered_files", "standing",
}  # fmt: skip
PREFIXES = ("look_at_",)
MODULES = {"admission", "admitted", "fast_step", "fit", "marks", "open", "unfinished"}

# Names on disk and in --json, which older run folders and scripts read: right as a whole string and in code spans.
ON_DISK = {
    "figures",  # key of a journal's record and of a result in --json
    "num_given_frames", "shortcuts",  # columns of jobs.parquet
    ".unfinished",  # staging directory of an export
}  # fmt: skip
COLUMNS = {"num_given_frames", "shortcuts"}  # fields of the job that jobs.parquet stores under their names
FOREIGN = {"conv_shortcut"}  # of a class of diffusers

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
CODE_SPAN = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def words_of(text: str) -> list[str]:
    """Split prose or an identifier (snake_case or CamelCase) into lower-case words."""
    return [word.lower() for word in WORD.findall(text)]


def wrong_prose(text: str) -> Iterator[str]:
    if text in ON_DISK:
        return
    words = words_of(text)
    yield from sorted(WORDS.intersection(words))
    joined = f" {' '.join(words)} "
    yield from (phrase for phrase in PHRASES if f" {phrase} " in joined)


def wrong_identifier(name: str) -> Iterator[str]:
    if name not in COLUMNS | FOREIGN and (
        name in IDENTIFIERS
        or name.startswith(PREFIXES)
        or not (WORDS | IDENTIFIER_WORDS).isdisjoint(words_of(name))
        or "given_frame" in name
    ):
        yield name


def wrong_in_python(path: Path) -> Iterator[tuple[int, str]]:
    """Find wrong names in a module: (line, name)."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and docstring.startswith("Of the run."):
                yield getattr(node, "lineno", 1), "Of the run."
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            found = wrong_identifier(token.string)
        elif token.type == tokenize.STRING:
            found = wrong_prose(token.string.strip("rbfuRBFU").strip("'\""))
        elif token.type in (tokenize.COMMENT, tokenize.FSTRING_MIDDLE):
            found = wrong_prose(token.string)
        else:
            continue
        yield from ((token.start[0], name) for name in found)


def wrong_in_text(path: Path) -> Iterator[tuple[int, str]]:
    """Find wrong words in a page or preset: (line, word). Code spans hold names on disk and are looked at as such."""
    text = path.read_text(encoding="utf-8")

    def without_names_on_disk(span: re.Match) -> str:
        return re.sub("|".join(rf"(?<![\w-]){re.escape(name)}(?!\w)" for name in ON_DISK), "", span.group())

    if path.suffix == ".md":
        text = CODE_SPAN.sub(without_names_on_disk, text)
    for number, line in enumerate(text.splitlines(), start=1):
        yield from ((number, word) for word in wrong_prose(line))


def python_files() -> list[Path]:
    return [path for package in ("dreamgen", "finetune", "export") for path in sorted((ROOT / package).rglob("*.py"))]


def texts() -> list[Path]:
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    return [*pages, *sorted((ROOT / "configs").rglob("*.yaml"))]


@pytest.mark.parametrize("path", python_files() + texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_are_gone(path):
    find = wrong_in_python if path.suffix == ".py" else wrong_in_text
    found = [f"{path.relative_to(ROOT)}:{line}: {name}" for line, name in sorted(find(path))]
    if path.stem in MODULES:
        found.append(f"{path.relative_to(ROOT)}: the module's name")
    assert not found, "\n".join(found)


def test_the_search_finds_names_and_leaves_names_on_disk_alone(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        '"""Of the run."""\nfigures = {"figures": 1}  # a tally\ntotal_told = f"{total_told} main memory"\nScene = 1\n'
    )
    assert sorted(wrong_in_python(module)) == [
        (1, "Of the run."), (2, "figures"), (2, "tally"), (3, "main memory"), (3, "total_told"), (3, "total_told"),
        (4, "Scene"),
    ]  # fmt: skip
    page = tmp_path / "page.md"
    page.write_text("The key `figures` holds figures.\n`scores/figures.parquet`\nadmissions are fine\n")
    assert list(wrong_in_text(page)) == [(1, "figures")]

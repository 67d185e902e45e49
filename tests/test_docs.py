"""The documentation agrees with the code: quoted errors exist, links lead somewhere, the tutorial's commands run."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dreamgen.cli.main import main
from tests.fixtures.local_ray import own_ray

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def message_texts() -> str:
    """Return every string of the packages and of setup.sh, a string a line."""
    files = [path for package in ("dreamgen", "finetune", "export") for path in (ROOT / package).rglob("*.py")]
    constants = [node.value for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, ast.Constant) and isinstance(node.value, str)]  # fmt: skip
    return "\n".join([*constants, (ROOT / "setup.sh").read_text(encoding="utf-8")])


def test_every_error_that_troubleshooting_explains_is_a_message_of_the_code():
    texts = message_texts()
    headings = re.findall(r"^### (.+)$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) > 15
    unknown = [heading for heading in headings if heading not in texts and heading != "torchcodec does not load"]
    assert not unknown, f"no message of the code contains {unknown}"


def commands_of(code: str) -> list[str]:
    """Return the commands of a block, each on one line."""
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_to_files(page):
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if not t.startswith(("http:", "https:"))]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {missing}"


@pytest.fixture
def two_cpus():
    with own_ray(2):
        yield


@pytest.mark.slow
def test_the_tutorials_commands_run(two_cpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    blocks = BLOCK.findall((DOCS / "tutorial.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 10
    for language, code in blocks:
        for command in commands_of(code) if language == "bash" else [f"python -c {shlex.quote(code)}"]:
            words = shlex.split(command)
            if words[0] == "dreamgen":  # in this process: importing the libraries takes a new one ten seconds
                status = main(words[1:])
                printed = "\n".join(capsys.readouterr())
            else:
                done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
                status, printed = done.returncode, done.stdout
            assert status == 0, f"{command}\nends with {status}\n{printed[-3000:]}"
    assert (tmp_path / "runs" / "tutorial" / "report.html").is_file()

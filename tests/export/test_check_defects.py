"""The defect benchmark as a test: every damage is found and named correctly, and good datasets have no findings."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.check import check
from export.check.codes import CODES, markdown
from tests.fixtures.damage import DAMAGES
from tests.fixtures.damaging import without_manifest
from tests.fixtures.good_datasets import GOOD_DATASETS


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return a function that makes a good dataset once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = GOOD_DATASETS[name](tmp_path_factory.mktemp("good") / "dataset")
        return made[name]

    return get


@pytest.mark.parametrize("name", GOOD_DATASETS)
def test_good_datasets_have_no_findings(good, name):
    assert [str(finding) for finding in (*check(good(name)), *check(good(name), fast=True))] == []


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: f"{d.dataset}: {d.what}")
def test_damage_is_found_and_named(good, tmp_path, damage):
    root = without_manifest(good(damage.dataset), tmp_path / "dataset")
    damage.apply(root / damage.file)
    for fast in (False,) if damage.full else (False, True):
        found = check(root, fast=fast)
        listed = "\n".join(map(str, found))
        assert any(f.code == damage.code and f.file == damage.finding_file for f in found), f"fast={fast}\n{listed}"
        assert {f.code for f in found} == {damage.code, *damage.also}, f"fast={fast}\n{listed}"
    if damage.full:  # else the table would promise less than --fast keeps
        assert damage.code not in {f.code for f in check(root, fast=True)}


def test_every_code_has_its_damage():
    assert {damage.code for damage in DAMAGES} == set(CODES)


def test_the_documentation_has_every_code_as_it_is():
    page = (Path(__file__).resolve().parents[2] / "docs" / "checking.md").read_text(encoding="utf-8")
    assert page.partition("<!-- codes -->\n")[2].partition("<!-- end of codes -->")[0] == markdown()
    assert f"does {len(DAMAGES)} kinds of damage" in page and f"{len(GOOD_DATASETS)} good datasets" in page

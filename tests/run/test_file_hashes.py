"""Hashes of large files are remembered as long as the file is unchanged."""

import json
import os

import pytest

from dreamgen.run import file_hashes
from dreamgen.run.file_hashes import LEAST_BYTES, cache_file, sha256_of_files
from dreamgen.run.files import sha256_of_file


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "SETTLED_AFTER_S", 0.0)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"a" * LEAST_BYTES)
    return file


def put_into_cache(file, sha256):
    """Change what the cache holds for a file, so that a hash shows where it came from."""
    content = json.loads(cache_file().read_text())
    content["files"][str(file)][-1] = sha256
    cache_file().write_text(json.dumps(content))


def test_an_unchanged_file_is_not_read_again(weights):
    assert sha256_of_files([weights]) == {weights: sha256_of_file(weights)}
    put_into_cache(weights, "from the cache")
    assert sha256_of_files([weights]) == {weights: "from the cache"}


def test_a_changed_file_is_noticed_even_if_its_size_and_modification_time_are_kept(weights):
    before = weights.stat()
    old = sha256_of_files([weights])[weights]
    weights.write_bytes(b"b" * LEAST_BYTES)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size and weights.stat().st_mtime_ns == before.st_mtime_ns
    assert sha256_of_files([weights]) == {weights: sha256_of_file(weights)} != {weights: old}


def test_a_file_that_replaces_another_is_read(weights):
    sha256_of_files([weights])
    put_into_cache(weights, "from the cache")
    other = weights.with_name("other")
    other.write_bytes(b"c" * LEAST_BYTES)
    other.replace(weights)
    assert sha256_of_files([weights]) == {weights: sha256_of_file(weights)}


def test_a_file_that_was_just_written_is_not_remembered(weights, monkeypatch):
    monkeypatch.setattr(file_hashes, "SETTLED_AFTER_S", 3600.0)
    sha256_of_files([weights])
    assert not cache_file().exists()


@pytest.mark.parametrize(
    "content", ["", "[]", '{"version": 1, "files": 3}', '{"version": 1, "files": {"x": 3}}', "\x00"]
)
def test_a_damaged_cache_is_replaced(weights, content):
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(content)
    assert sha256_of_files([weights]) == {weights: sha256_of_file(weights)}
    assert json.loads(cache_file().read_text())["files"].keys() == {str(weights)}


def test_without_a_place_for_the_cache_files_are_hashed(weights, monkeypatch, tmp_path):
    (tmp_path / "blocked").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    assert sha256_of_files([weights]) == {weights: sha256_of_file(weights)}

"""A folder on the disk and one in an object store do the same; what is there is whole."""

from __future__ import annotations

import pickle

import pytest

from dreamgen.config.loading import parse_settings
from dreamgen.config.settings import Settings
from dreamgen.errors import CannotWrite, UserError
from dreamgen.run import journal as journal_module
from dreamgen.run import lease as lease_module
from dreamgen.run.journal import Journal, latest_records, read_journal
from dreamgen.run.lease import Lease, hold, read_leases
from dreamgen.run.records import JournalRecord
from dreamgen.run.run_folder import RunFolder
from dreamgen.run.shard import Shard
from dreamgen.run.store import Store, is_url
from tests.fixtures.s3 import CREDENTIALS, s3_server


@pytest.fixture(scope="module")
def bucket():
    with pytest.MonkeyPatch.context() as patch, s3_server() as url:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield url


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "run"))
    return Store(request.getfixturevalue("bucket") % f"runs/{request.node.originalname}")


@pytest.mark.parametrize("name", ["a?b", "a#b", "a::b", "a%20b", "a?region=x#y::z"])
def test_a_local_path_is_never_parsed_as_a_url(tmp_path, name):
    run = RunFolder.of(Settings(out=str(tmp_path / name)))
    run.clip_store.write("ab/clip.mp4", b"1")
    assert run.clip_file("abclip").parent.parent == run.clips and (run.clips / "ab/clip.mp4").read_bytes() == b"1"
    assert (run.clip_store / "ab").sizes() == {"clip.mp4": 1} and run.clip_store.sizes("ab") == {"clip.mp4": 1}
    with Journal(run.journal, "generate") as journal:
        journal.append(JournalRecord("c1", "generate", "ok"))
    assert set(read_journal(run.root / "journal", "generate")) == {"c1"}


def test_what_a_folder_can_do(store, tmp_path):
    assert store.sizes() == {} and not store.has("a")
    store.write("a", b"1")
    store.write("b/c", b"234")
    store.write("a", b"12")
    assert store.sizes() == {"a": 2} and store.sizes("b") == {"c": 3} == (store / "b").sizes()
    assert dict(store.sizes_in(["b", "none"])) == {"b": {"c": 3}, "none": {}}
    assert store.read("b/c") == b"234" and store.has("b/c")
    (tmp_path / "file").write_bytes(b"x" * 20_000_000)
    store.upload(tmp_path / "file", "big")
    store.download("big", tmp_path / "back" / "file")
    assert (tmp_path / "back" / "file").read_bytes() == (tmp_path / "file").read_bytes()
    store.remove("a")
    store.remove("a")
    assert set(store.sizes()) == {"big"}
    with pytest.raises(FileNotFoundError):
        store.read("a")
    assert pickle.loads(pickle.dumps(store)).read("b/c") == b"234"


def test_the_journal_is_the_same_in_both(store, monkeypatch):
    monkeypatch.setattr(journal_module, "RECORDS_A_FILE", 30)
    monkeypatch.setattr(journal_module, "COMPACT_FROM", 30)
    monkeypatch.setattr(journal_module, "REMOTE_COMMIT_EVERY_S", 0.05)
    records = [
        JournalRecord(f"{n:020x}", "generate", "ok", metrics={"num_bytes": n}, time_s=1.0 + n) for n in range(70)
    ]
    folder = store / "journal"
    with Journal(folder, "generate") as journal:
        synced = [r for record in records for r in journal.add(record)] + journal.flush()
        assert synced == records
        assert read_journal(folder, "generate") == {r.clip_id: r for r in records}  # while it is open
    assert read_journal(folder, "generate") == {r.clip_id: r for r in records}
    assert latest_records(folder, "generate", ("num_bytes",))["num_bytes"].to_pylist() == list(range(70))
    assert len(folder.sizes()) <= 3
    Journal(folder, "label").close()
    assert len(folder.sizes()) <= 3  # an unused one leaves nothing


def test_a_share_is_held_in_both(store, monkeypatch):
    monkeypatch.setattr(lease_module, "SETTLE_S", 0.1)
    with hold(store / "journal", "generate", Shard(0, 2)):
        with pytest.raises(UserError, match="another driver is working"), hold(store / "journal", "generate", Shard()):
            pass
        assert [lease.shard for lease in read_leases(store / "journal", "generate")] == ["0/2"]
    assert (store / "journal").sizes() == {}


def test_of_two_that_begin_at_once_in_an_object_store_the_later_has_it(bucket, monkeypatch):
    folder = Store(bucket % "runs/race/journal")
    later = Lease("generate", "1/2", host="elsewhere", begun_s=9e9)
    monkeypatch.setattr(lease_module.time, "sleep", lambda _: lease_module._write(folder, later))
    with pytest.raises(UserError, match="on elsewhere"), hold(folder, "generate", Shard(1, 4)):
        pass
    assert [lease.owner for lease in read_leases(folder, "generate")] == [later.owner]


def test_a_run_keeps_its_settings_there(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    out = bucket % "runs/kept"
    settings, _ = parse_settings([f"--out={out}", "--num_seeds=3", "--generate.shard=1/2"], "plan")
    run = RunFolder.of(settings, may_be_remote=True)
    run.record(settings, ["plan", "generate"])
    again, _ = parse_settings([f"--out={out}"], "generate")
    assert again.plan.num_seeds == 3 and again.generate.shard == "0/1"  # a share is of one call
    assert str(run) == out and str(run.journal).startswith("s3://bucket/runs/kept/journal?")


def test_places_that_cannot_be_used(bucket, tmp_path):
    with pytest.raises(UserError, match="this stage needs the run folder on this machine") as caught:
        RunFolder.of(Settings(out="s3://bucket/runs/x"))
    assert "copy_files('s3://bucket/runs/x', 'runs/x')" in caught.value.next_step
    with pytest.raises(CannotWrite, match="cannot be used"):
        Store((bucket % "x").replace("s3://bucket", "s3://no-such-bucket")).write("a", b"1")
    with pytest.raises(UserError, match="not a location that can be opened"):
        Store("nosuchkind://x/y").read("a")
    assert is_url("s3://a/b") and not is_url("runs/a") and not is_url(tmp_path)

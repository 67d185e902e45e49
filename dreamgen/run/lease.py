"""Who is at work on which share of a job: a small file that its owner touches, so that two never do the same.

A lease whose process is gone on this machine is taken over at once. One of another machine is watched: if nothing in it
changes for a while, its owner is dead. No clocks are compared. In an object store, where no file can be made only if it
is not there, two drivers that begin within the same second are told apart by who wrote last.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dreamgen.errors import UserError
from dreamgen.progress import log
from dreamgen.run.journal import as_store
from dreamgen.run.shard import Shard
from dreamgen.run.store import Store
from dreamgen.run.write_errors import said_if_storage_fails

BEAT_EVERY_S = 15.0
DEAD_AFTER_S = 60.0
SETTLE_S = 2.0
SUFFIX = ".lease"


@dataclass(frozen=True)
class Lease:
    """What the file says.

    Args:
        stage: What its owner does.
        shard: On which share, `i/n`.
        owner: Unlike any other's.
        host: Where it runs.
        pid: Its process there.
        process: When that process began, as the machine tells it: a later one of the same number is another.
        begun_s: Seconds since the epoch.
        beat: Counts up while the owner lives.
    """

    stage: str
    shard: str
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    host: str = field(default_factory=lambda: os.uname().nodename)
    pid: int = field(default_factory=os.getpid)
    process: str = field(default_factory=lambda: _process_begun(os.getpid()) or "")
    begun_s: float = field(default_factory=time.time)
    beat: int = 0

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.stage}.{self.shard.replace('/', '-of-')}{SUFFIX}"

    def is_of_this_machine(self) -> bool:
        """Say whether its process can be seen from here."""
        return self.host == os.uname().nodename and bool(self.process)

    def is_known_dead(self) -> bool:
        """Say whether its process is gone; one of another machine cannot be seen from here."""
        return self.is_of_this_machine() and _process_begun(self.pid) != self.process


@contextmanager
def hold(folder: Path | Store, stage: str, shard: Shard) -> Iterator[Callable[[], bool]]:
    """Hold the lease on a share while the body runs.

    Args:
        folder: `journal/` of the run.
        stage: What is done.
        shard: On which share.

    Yields:
        A function that says whether the lease was lost to another driver, who then thought that this one was dead.

    Raises:
        UserError: if a living driver holds a share with clips of this one, or nothing can be written there.
    """
    store, mine = as_store(folder), Lease(stage, str(shard))
    with said_if_storage_fails(store.place):
        if not store.is_remote:
            Path(store.place).mkdir(parents=True, exist_ok=True)
        _take(store, mine, shard)
    ended, lost = threading.Event(), threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(BEAT_EVERY_S):
            number += 1
            found = _read(store, mine.name)
            if found is not None and found.owner != mine.owner:
                lost.set()
                return
            try:
                _write(store, replace(mine, beat=number))
            except (OSError, UserError) as error:  # a full disk; the journal says so to the one who must know
                log(f"{stage}: the lease {mine.name} cannot be renewed ({error})")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield lost.is_set
    finally:
        ended.set()
        thread.join()
        found = _read(store, mine.name)
        if found is not None and found.owner == mine.owner:
            store.remove(mine.name)


def read_leases(folder: Path | Store, stage: str) -> list[Lease]:
    """Read the leases of a stage that lie there, of the living and of the dead."""
    store = as_store(folder)
    names = sorted(n for n in store.sizes() if n.startswith(f"{stage}.") and n.endswith(SUFFIX))
    return [lease for name in names if (lease := _read(store, name)) is not None]


def _take(store: Store, mine: Lease, shard: Shard) -> None:
    for other in read_leases(store, mine.stage):
        if shard.overlaps(Shard.parse(other.shard)):
            _wait_until_dead(store, other)
    with _alone(store):
        for other in read_leases(store, mine.stage):
            if shard.overlaps(Shard.parse(other.shard)) and not other.is_known_dead():
                raise _held(other)
            if shard.overlaps(Shard.parse(other.shard)):
                store.remove(other.name)
        _write(store, mine)
    if store.is_remote:
        time.sleep(SETTLE_S)
        others = [lease for lease in read_leases(store, mine.stage) if shard.overlaps(Shard.parse(lease.shard))]
        if others and max(others, key=lambda lease: (lease.begun_s, lease.owner)).owner != mine.owner:
            if (found := _read(store, mine.name)) is not None and found.owner == mine.owner:
                store.remove(mine.name)
            raise _held(max(others, key=lambda lease: (lease.begun_s, lease.owner)))


def _wait_until_dead(store: Store, lease: Lease) -> None:
    """Return once a lease is known to be a dead driver's, and take it away.

    Raises:
        UserError: if its driver lives.
    """
    if lease.is_of_this_machine():
        if not lease.is_known_dead():
            raise _held(lease)
        return
    log(
        f"{lease.stage}: a driver on {lease.host} holds shard {lease.shard}; "
        f"waiting up to {DEAD_AFTER_S:.0f} s for a sign of life"
    )
    begun_s = time.monotonic()
    while time.monotonic() - begun_s < DEAD_AFTER_S:
        time.sleep(min(1.0, DEAD_AFTER_S / 10))
        found = _read(store, lease.name)
        if found is None and not store.has(lease.name):  # one that is there and cannot be read is not given up
            return
        if found is not None and found != lease:
            raise _held(found)
    store.remove(lease.name)


def _held(lease: Lease) -> UserError:
    return UserError(
        "another driver is at work on these clips",
        actual=f"{lease.stage} of shard {lease.shard} on {lease.host}, process {lease.pid}",
        allowed="drivers with different shares: --shard 0/2 and --shard 1/2",
        next_step="dreamgen status shows what runs; stop that driver first, or let it finish",
    )


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Let one process at a time look at the leases and write one; the lock ends with its process."""
    if store.is_remote:
        yield
        return
    descriptor = os.open(store.place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(store: Store, name: str) -> Lease | None:
    try:
        return Lease(**json.loads(store.read(name)))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def _write(store: Store, lease: Lease) -> None:
    store.write(lease.name, json.dumps(asdict(lease)).encode())


def _process_begun(pid: int) -> str | None:
    """Return what tells a process from others of its number; None if it is gone or cannot be seen."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else f"{boot}:{fields[19]}"

"""Leases: small files that drivers renew, so that no two drivers work on the same share of a job.

A lease of a dead process of this machine is taken over at once. A lease of another machine is watched: if it does not
change for a while, its owner counts as dead. Clocks are not compared. An object store cannot create a file only if it
does not exist, so of two drivers that start within the same second the one that wrote last holds the lease.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dreamgen.errors import UserError
from dreamgen.progress import log
from dreamgen.run.journal import as_store
from dreamgen.run.process_identity import process_space, process_start
from dreamgen.run.shard import Shard
from dreamgen.run.store import Store
from dreamgen.run.write_errors import storage_errors_as_user_errors

BEAT_EVERY_S = 15.0
DEAD_AFTER_S = 60.0
SETTLE_S = 2.0
SUFFIX = ".lease"
SHARED_STAGES = ("generate",)  # several drivers may work on different shares


@dataclass(frozen=True)
class Lease:
    """The content of a lease file.

    Args:
        stage: Stage that the owner runs.
        shard: Share that it works on, `i/n`.
        owner: Unique id.
        host: Host name of the owner.
        pid: Process id of the owner.
        process: Boot, container and start time of the process, since process ids are reused.
        begun_s: Seconds since the epoch.
        beat: Increases while the owner is alive.
    """

    stage: str
    shard: str
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    host: str = field(default_factory=lambda: os.uname().nodename)
    pid: int = field(default_factory=os.getpid)
    process: str = field(default_factory=lambda: process_start(os.getpid()) or "")
    begun_s: float = field(default_factory=time.time)
    beat: int = 0

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.stage}.{self.shard.replace('/', '-of-')}{SUFFIX}"

    def is_of_this_machine(self) -> bool:
        """Return whether this process can see the owner's: it is on the same machine and in the same container."""
        return self.host == os.uname().nodename and self.process.rpartition(":")[0] == process_space() != ""

    def is_known_dead(self) -> bool:
        """Return whether the owner's process has ended; unknown, and so False, on another machine."""
        return self.is_of_this_machine() and process_start(self.pid) != self.process


@contextmanager
def hold(folder: Path | Store, stage: str, shard: Shard) -> Iterator[Callable[[], bool]]:
    """Hold the lease on a share while the body runs.

    Args:
        folder: `journal/` of the run.
        stage: Stage that runs.
        shard: Share that it works on.

    Yields:
        A function that returns whether another driver took the lease over because this one seemed dead.

    Raises:
        UserError: if a running driver holds an overlapping share, or the folder cannot be written to.
    """
    store, mine = as_store(folder), Lease(stage, str(shard))
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
            except (OSError, UserError) as error:  # such as a full disk, which the journal reports
                log(f"{stage}: the lease {mine.name} cannot be renewed ({error})")

    thread = threading.Thread(target=beat, daemon=True)
    try:
        with storage_errors_as_user_errors(store.place):
            if not store.is_remote:
                Path(store.place).mkdir(parents=True, exist_ok=True)
            _take(store, mine, shard)
        thread.start()
        yield lost.is_set
    except KeyboardInterrupt:
        if thread.ident is None:  # while the lease was taken, so that it may be there already
            with suppress(OSError, UserError):
                _give_back(store, mine)
        raise
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join()
            _give_back(store, mine)


def _give_back(store: Store, mine: Lease) -> None:
    """Remove a lease, unless another driver took it over."""
    found = _read(store, mine.name)
    if found is not None and found.owner == mine.owner:
        store.remove(mine.name)


def read_leases(folder: Path | Store, stage: str) -> list[Lease]:
    """Read all leases of a stage, including those of dead drivers."""
    store = as_store(folder)
    names = sorted(n for n in store.sizes() if n.startswith(f"{stage}.") and n.endswith(SUFFIX))
    return [lease for name in names if (lease := _read(store, name)) is not None]


def _take(store: Store, mine: Lease, shard: Shard) -> None:
    for other in read_leases(store, mine.stage):
        if shard.overlaps(Shard.parse(other.shard)):
            _wait_until_dead(store, other)
    with _locked(store):
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
            _give_back(store, mine)
            raise _held(max(others, key=lambda lease: (lease.begun_s, lease.owner)))


def _wait_until_dead(store: Store, lease: Lease) -> None:
    """Wait until the owner of a lease is known to be dead, then remove the lease.

    Raises:
        UserError: if the owner is alive.
    """
    if lease.is_of_this_machine():
        if not lease.is_known_dead():
            raise _held(lease)
        return
    log(
        f"{lease.stage}: a driver on {lease.host} holds shard {lease.shard}; "
        f"waiting up to {DEAD_AFTER_S:.0f} s for its lease to be renewed or to expire"
    )
    begun_s = time.monotonic()
    while time.monotonic() - begun_s < DEAD_AFTER_S:
        time.sleep(min(1.0, DEAD_AFTER_S / 10))
        found = _read(store, lease.name)
        if found is None and not store.has(lease.name):  # an unreadable lease still counts
            return
        if found is not None and found != lease:
            raise _held(found)
    store.remove(lease.name)


@contextmanager
def hold_command(root: Path | Store, stages: Sequence[str]) -> Iterator[None]:
    """Hold the leases of a command that no other process may run in the same run folder at the same time.

    Args:
        root: The run folder; what is made in it for the leases alone is removed again.
        stages: What the command runs.

    Raises:
        UserError: naming the process that runs one of them.
    """
    is_new = not isinstance(root, Store) and not root.exists()
    try:
        with ExitStack() as stack:
            for stage in stages:
                stack.enter_context(hold(root / "journal", stage, Shard()))
            yield
    finally:
        if not isinstance(root, Store):
            with suppress(OSError):  # not empty
                (root / "journal").rmdir()
                if is_new:
                    root.rmdir()


def _held(lease: Lease) -> UserError:
    if lease.stage not in SHARED_STAGES:
        begun = time.strftime("%H:%M:%S", time.localtime(lease.begun_s))
        return UserError(
            f"{lease.stage} is running in this run folder",
            actual=f"process {lease.pid} on {lease.host}, since {begun}",
            allowed="one process at a time, because both would write the same files",
            next_step="let it finish, or stop it; then run the same command again",
        )  # fmt: skip
    return UserError(
        "another driver is working on these clips",
        actual=f"{lease.stage} of shard {lease.shard} on {lease.host}, process {lease.pid}",
        allowed="drivers with different shares: --shard 0/2 and --shard 1/2",
        next_step="dreamgen status shows what runs; stop that driver first, or let it finish",
    )


@contextmanager
def _locked(store: Store) -> Iterator[None]:
    """Let one process at a time read and write leases; the lock ends with its process."""
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

"""Which process is working on what: a sign of life that it leaves next to its work, on any file system and for any number of machines.

A sign is a folder `PLACE.NUMBER` that appears whole, by one move that fails if another folder is there: only one of two processes that
take a number gets it. Nothing else is required of the file system: no hard links, locks, permissions or file times. A thread writes into
the sign every ten seconds. A process that ended without removing its sign is dead at once for others on its machine (its id is gone), and
for other machines once they have watched its sign for two minutes without a change; their clocks are not compared. Whoever replaces a dead
process takes the next number, so that nobody ever deletes a sign that somebody else has just made.

filelock's soft locks were tried: they never take over a dead process's lock if names cannot be exchanged (exFAT, NFS, SMB).
"""

import json
import os
import platform
import random
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

import psutil

from nst_data.errors import NstError
from nst_data.store.files import clear_abandoned, discard, place_once, temporary, write_text

ALIVE_EVERY_SECONDS = 10.0
DEAD_AFTER_SECONDS = 120.0
_LOOK_EVERY_SECONDS = 0.5
_RECORD, _ALIVE = "process.json", "alive"
_NUMBER = re.compile(r"[0-9]{6}|[0-9a-f]{16}")  # of an owner, or of one of many workers
State = Literal["alive", "dead", "unknown"]


_KINDS: dict[str, type | tuple[type, ...]] = {
    "host": str,
    "machine": str,
    "pid": int,
    "started": (int, float),
    "since": (int, float),
    "sign": str,
}


@dataclass(frozen=True)
class Process:
    """A process on any machine. `machine` identifies one boot of it and one process id namespace; times are seconds since 1970.

    `sign` is the path of its sign of life, by which a copied sign is recognized. Earlier versions of nst recorded none.
    """

    host: str = "an unknown machine"
    machine: str = ""
    pid: int = 0
    started: float = 0.0
    since: float = 0.0
    sign: str = ""

    @classmethod
    def this(cls) -> "Process":
        """The current process, working from now on."""
        return cls(platform.node() or "localhost", _this_machine(), os.getpid(), psutil.Process().create_time(), time.time())

    @classmethod
    def parse(cls, text: str | bytes) -> "Process":
        """Parse the record of a process, by itself or as the `process` of a lease; fields added by a later nst are ignored.

        An invalid record gives a process without an id on an unknown machine.
        """
        try:
            record = json.loads(text)
            record = record.get("process", record)
            fields = {name: record[name] for name in asdict(cls()) if name in record}
        except (ValueError, TypeError, AttributeError):
            return cls()
        are_valid = all(isinstance(fields[name], kinds) for name, kinds in _KINDS.items() if name in fields)
        return cls(**fields) if are_valid and fields.get("pid") else cls()

    @property
    def is_alive(self) -> bool | None:
        """Whether it is running; None if that cannot be known from here."""
        if self.machine != _this_machine():
            return None
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return True if abs(process.create_time() - self.started) < 1 else None  # None: another one with its id, or the clock was set
        except psutil.NoSuchProcess:
            return None if psutil.pid_exists(self.pid) else False
        except psutil.Error:
            return None

    def __str__(self) -> str:
        if not self.pid:
            return "another process that left no name"
        since = f" (since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))})" if self.since else ""
        return f"process {self.pid} on {self.host}{since}"


class AtWorkError(NstError):
    """A living process is working there."""

    def __init__(self, what: str, process: Process) -> None:
        super().__init__(f"{what}: in use by {process}; wait for it or stop it, then rerun. Nothing was changed")


class HasLoss(Protocol):
    """A sign of life elsewhere, which can be lost."""

    is_lost: bool


class Sign:
    """The sign of life of this process, kept fresh by a thread until `end`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_lost = False
        self.lease: HasLoss | None = None  # for the same work, in a store at an address
        self._ended = threading.Event()
        threading.Thread(target=self._show_life, name=f"alive-{folder.name}", daemon=True).start()

    def check(self, what: str) -> None:
        """Raise NstError if others took this process for dead or removed its work."""
        if self.is_lost or (self.lease is not None and self.lease.is_lost):
            raise NstError(
                f"{what}: this process sent no heartbeat for {DEAD_AFTER_SECONDS:.0f} s and was replaced, or its work was removed; stopping"
            )

    def end(self) -> None:
        """Remove the sign."""
        self._ended.set()
        try:
            discard(self.folder)
        except OSError:  # a full disk: delete it in place
            shutil.rmtree(self.folder, ignore_errors=True)

    def _show_life(self) -> None:
        beats = 0
        while not self._ended.wait(ALIVE_EVERY_SECONDS):
            beats += 1
            try:
                with (self.folder / _ALIVE).open("r+") as file:  # written in place: never created again once removed
                    file.write(f"{beats:012d}")
            except (FileNotFoundError, NotADirectoryError):
                self.is_lost = True
                return
            except OSError:  # a full disk, a server that does not answer: try again
                continue


@contextmanager
def owned(place: Path, what: str, say: Callable[[str], None] = lambda _: None, wait: bool = False) -> Iterator[Sign]:
    """Own `place`, whose folder must exist, while the block runs; `what` names it in messages.

    If a living process owns it, raises AtWorkError or, with `wait`, waits for it to end. A dead process is replaced.
    """
    sign = _own(place, what, say, wait)
    try:
        yield sign
    finally:
        sign.end()


@contextmanager
def present(place: Path) -> Iterator[Sign]:
    """Register this process as one of any number working at `place` while the block runs."""
    sign = None
    while sign is None:
        sign = _leave(place, secrets.token_hex(8))
    try:
        yield sign
    finally:
        sign.end()


def check_nobody_at_work(what: str, *places: Path, say: Callable[[str], None] = lambda _: None) -> None:
    """Raise AtWorkError if a living process is at one of the places. Signs of other machines are watched until that is known."""
    watch = _Watch()
    while unknown := [sign for place in places for sign in _signs(place) if watch.state(sign, what) != "dead"]:
        watch.say_once(say, what, unknown[0])
        time.sleep(_LOOK_EVERY_SECONDS)


def beside(folder: Path) -> Path:
    """The place for signs of a folder that must not contain any itself, or that comes and goes."""
    return folder.with_name(f".{folder.name}")


def is_owned(place: Path) -> bool:
    """Whether a running process of this machine owns a place."""
    return any(_process_of(sign).is_alive for sign in _signs(place))


def _own(place: Path, what: str, say: Callable[[str], None], wait: bool) -> Sign:
    watch = _Watch()
    clear_abandoned(place.parent)
    while True:
        signs = _signs(place)
        others = [sign for sign in signs if watch.state(sign, None if wait else what) != "dead"]
        if others:
            watch.say_once(say, what, others[0])
            time.sleep(_LOOK_EVERY_SECONDS * random.uniform(0.5, 1))
            continue
        number = 1 + max((int(sign.name.rpartition(".")[2]) for sign in _named(place)), default=0)
        sign = _leave(place, f"{number:06d}")
        if sign is None:
            continue
        try:
            for dead in signs:
                discard(dead)
            is_alone = _signs(place) == [sign.folder]
        except BaseException:
            sign.end()
            raise
        if is_alone:
            return sign
        sign.end()  # another process came at the same moment: both look again
        time.sleep(_LOOK_EVERY_SECONDS * random.random())


class _Watch:
    """What is known about the signs of other processes."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[str, float]] = {}
        self._said = False

    def state(self, sign: Path, refused: str | None) -> State:
        """Whether the process of a sign is alive. Raises AtWorkError if it is and `refused` names its work."""
        process = _process_of(sign)
        is_alive = process.is_alive
        if is_alive is None:
            is_alive = self._is_changing(sign)
        if is_alive and refused is not None:
            raise AtWorkError(refused, process)
        return "unknown" if is_alive is None else "alive" if is_alive else "dead"

    def say_once(self, say: Callable[[str], None], what: str, sign: Path) -> None:
        """Report, once, which process is being waited for."""
        process = _process_of(sign)
        if not self._said and not process.pid:
            say(f"{what}: another process may be working on it; waiting to see whether it is alive")
        elif not self._said:
            or_silent = "" if process.is_alive else f" (or {DEAD_AFTER_SECONDS:.0f} s without a heartbeat)"
            say(f"{what}: in use by {process}; waiting for it to finish{or_silent}")
        self._said = True

    def _is_changing(self, sign: Path) -> bool | None:
        beat = ""
        with suppress(OSError):
            beat = (sign / _ALIVE).read_text("utf-8")
        last_beat, seen_at = self._seen.setdefault(sign, (beat, time.monotonic()))
        if beat != last_beat:
            self._seen[sign] = beat, time.monotonic()
            return True
        return False if time.monotonic() - seen_at > DEAD_AFTER_SECONDS else None


def _leave(place: Path, number: str) -> Sign | None:
    """Create a sign of this process, or return None if the number is taken."""
    folder = place.with_name(f"{place.name}.{number}")
    fresh = temporary(place.with_name(f".{place.name}.{secrets.token_hex(4)}"))
    fresh.mkdir()
    try:
        write_text(fresh / _ALIVE, f"{0:012d}")
        write_text(fresh / _RECORD, json.dumps(asdict(replace(Process.this(), sign=str(folder.resolve())))))
        if place_once(fresh, folder):
            return Sign(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return None


def _signs(place: Path) -> list[Path]:
    return [sign for sign in _named(place) if sign.is_dir()]


def _named(place: Path) -> list[Path]:
    """Paths that are named like a sign, which may be files."""
    with suppress(FileNotFoundError):
        prefix = f"{place.name}."
        names = [name for name in os.listdir(place.parent) if name.startswith(prefix) and _NUMBER.fullmatch(name.removeprefix(prefix))]
        return [place.with_name(name) for name in sorted(names)]
    return []


def _process_of(sign: Path) -> Process:
    try:
        process = Process.parse((sign / _RECORD).read_bytes())
    except OSError:  # being removed
        return Process()
    is_copy = process.sign not in ("", str(sign.resolve()))  # a living process says nothing about a copy of its sign
    return replace(process, machine="") if is_copy and process.is_alive else process


@cache
def _this_machine() -> str:
    """One boot of a machine and one process id namespace: containers, and clones of a machine, may share a host name."""
    parts = [platform.node()]
    with suppress(OSError):  # Linux only
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip())
        parts.append(f"{os.stat('/proc/self/ns/pid').st_ino:x}")
    return "/".join(parts)

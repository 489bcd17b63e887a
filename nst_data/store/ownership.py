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
from nst_data.store.files import clear_abandoned, discard, move_unless_exists, temporary_path, write_text

HEARTBEAT_SECONDS = 10.0
DEAD_AFTER_SECONDS = 120.0
_POLL_SECONDS = 0.5
_RECORD, _ALIVE = "process.json", "alive"
_SIGN_NUMBER = re.compile(r"[0-9]{6}|[0-9a-f]{16}")  # of an owner, or of one of many workers
State = Literal["alive", "dead", "unknown"]


_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
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
    def current(cls) -> "Process":
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
        are_valid = all(isinstance(fields[name], kinds) for name, kinds in _FIELD_TYPES.items() if name in fields)
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


class InUseError(NstError):
    """A living process is working there."""

    def __init__(self, subject: str, process: Process) -> None:
        super().__init__(f"{subject}: in use by {process}; wait for it or stop it, then rerun. Nothing was changed")


class Losable(Protocol):
    """A sign of life elsewhere, which can be lost."""

    is_lost: bool


class Sign:
    """The sign of life of this process, kept fresh by a thread until `end`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_lost = False
        self.lease: Losable | None = None  # for the same work, in a store at an address
        self._ended = threading.Event()
        threading.Thread(target=self._send_heartbeats, name=f"alive-{folder.name}", daemon=True).start()

    def check(self, subject: str) -> None:
        """Raise NstError if others took this process for dead or removed its work."""
        if self.is_lost or (self.lease is not None and self.lease.is_lost):
            raise NstError(
                f"{subject}: this process sent no heartbeat for {DEAD_AFTER_SECONDS:.0f} s and was replaced, or its work was removed; "
                "stopping"
            )

    def end(self) -> None:
        """Remove the sign."""
        self._ended.set()
        try:
            discard(self.folder)
        except OSError:  # a full disk: delete it in place
            shutil.rmtree(self.folder, ignore_errors=True)

    def _send_heartbeats(self) -> None:
        beats = 0
        while not self._ended.wait(HEARTBEAT_SECONDS):
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
def hold_ownership(place: Path, subject: str, report: Callable[[str], None] = lambda _: None, wait: bool = False) -> Iterator[Sign]:
    """Own `place`, whose folder must exist, while the block runs; `subject` names it in messages.

    If a living process owns it, raises InUseError or, with `wait`, waits for it to end. A dead process is replaced.
    """
    sign = _acquire_ownership(place, subject, report, wait)
    try:
        yield sign
    finally:
        sign.end()


@contextmanager
def register_worker(place: Path) -> Iterator[Sign]:
    """Register this process as one of any number working at `place` while the block runs."""
    sign = None
    while sign is None:
        sign = _create_sign(place, secrets.token_hex(8))
    try:
        yield sign
    finally:
        sign.end()


def check_not_in_use(subject: str, *places: Path, report: Callable[[str], None] = lambda _: None) -> None:
    """Raise InUseError if a living process is at one of the places. Signs of other machines are watched until that is known."""
    watch = _Watch()
    while unknown := [sign for place in places for sign in _sign_folders(place) if watch.state(sign, subject) != "dead"]:
        watch.report_once(report, subject, unknown[0])
        time.sleep(_POLL_SECONDS)


def ownership_path(folder: Path) -> Path:
    """The place for signs of a folder that must not contain any itself, or that comes and goes."""
    return folder.with_name(f".{folder.name}")


def is_owned(place: Path) -> bool:
    """Whether a running process of this machine owns a place."""
    return any(_read_process(sign).is_alive for sign in _sign_folders(place))


def _acquire_ownership(place: Path, subject: str, report: Callable[[str], None], wait: bool) -> Sign:
    watch = _Watch()
    clear_abandoned(place.parent)
    while True:
        signs = _sign_folders(place)
        live_signs = [sign for sign in signs if watch.state(sign, None if wait else subject) != "dead"]
        if live_signs:
            watch.report_once(report, subject, live_signs[0])
            time.sleep(_POLL_SECONDS * random.uniform(0.5, 1))
            continue
        number = 1 + max((int(sign.name.rpartition(".")[2]) for sign in _sign_paths(place)), default=0)
        sign = _create_sign(place, f"{number:06d}")
        if sign is None:
            continue
        try:
            for stale_sign in signs:
                discard(stale_sign)
            is_alone = _sign_folders(place) == [sign.folder]
        except BaseException:
            sign.end()
            raise
        if is_alone:
            return sign
        sign.end()  # another process came at the same moment: both look again
        time.sleep(_POLL_SECONDS * random.random())


class _Watch:
    """What is known about the signs of other processes."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[str, float]] = {}
        self._has_reported = False

    def state(self, sign: Path, error_subject: str | None) -> State:
        """Whether the process of a sign is alive. Raises InUseError if it is and `error_subject` names its work."""
        process = _read_process(sign)
        is_alive = process.is_alive
        if is_alive is None:
            is_alive = self._is_changing(sign)
        if is_alive and error_subject is not None:
            raise InUseError(error_subject, process)
        return "unknown" if is_alive is None else "alive" if is_alive else "dead"

    def report_once(self, report: Callable[[str], None], subject: str, sign: Path) -> None:
        """Report, once, which process is being waited for."""
        process = _read_process(sign)
        if not self._has_reported and not process.pid:
            report(f"{subject}: another process may be working on it; waiting to see whether it is alive")
        elif not self._has_reported:
            silence_note = "" if process.is_alive else f" (or {DEAD_AFTER_SECONDS:.0f} s without a heartbeat)"
            report(f"{subject}: in use by {process}; waiting for it to finish{silence_note}")
        self._has_reported = True

    def _is_changing(self, sign: Path) -> bool | None:
        beat = ""
        with suppress(OSError):
            beat = (sign / _ALIVE).read_text("utf-8")
        last_beat, seen_at = self._seen.setdefault(sign, (beat, time.monotonic()))
        if beat != last_beat:
            self._seen[sign] = beat, time.monotonic()
            return True
        return False if time.monotonic() - seen_at > DEAD_AFTER_SECONDS else None


def _create_sign(place: Path, number: str) -> Sign | None:
    """Create a sign of this process, or return None if the number is taken."""
    folder = place.with_name(f"{place.name}.{number}")
    temp_folder = temporary_path(place.with_name(f".{place.name}.{secrets.token_hex(4)}"))
    temp_folder.mkdir()
    try:
        write_text(temp_folder / _ALIVE, f"{0:012d}")
        write_text(temp_folder / _RECORD, json.dumps(asdict(replace(Process.current(), sign=str(folder.resolve())))))
        if move_unless_exists(temp_folder, folder):
            return Sign(folder)
    finally:
        shutil.rmtree(temp_folder, ignore_errors=True)
    return None


def _sign_folders(place: Path) -> list[Path]:
    return [sign for sign in _sign_paths(place) if sign.is_dir()]


def _sign_paths(place: Path) -> list[Path]:
    """Paths that are named like a sign, which may be files."""
    with suppress(FileNotFoundError):
        prefix = f"{place.name}."
        names = [name for name in os.listdir(place.parent) if name.startswith(prefix) and _SIGN_NUMBER.fullmatch(name.removeprefix(prefix))]
        return [place.with_name(name) for name in sorted(names)]
    return []


def _read_process(sign: Path) -> Process:
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

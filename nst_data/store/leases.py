"""Which process is working on what in a store at an address: an object that the process rewrites every ten seconds.

An object `PLACE.NUMBER` is written only if there is none, so that only one of two processes gets a number. The rules that `ownership` has
for folders apply: an ended process of this machine is dead at once, one of another machine once its object has not changed
for two minutes; whoever replaces a dead process takes the next number.
"""

import json
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from nst_data.errors import NstError
from nst_data.store.file_tree import FileTree
from nst_data.store.ownership import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS, InUseError, Process

_POLL_SECONDS = 0.5
_END_TIMEOUT_SECONDS = 20.0


class Lease:
    """The sign of life of this process in a store at an address, kept fresh by a thread until `end`."""

    def __init__(self, tree: FileTree, name: str, process: Process, place: str = "") -> None:
        self.tree, self.name, self._process, self._place = tree, name, process, place
        self.is_lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, name=f"lease-{name}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Remove it."""
        self._ended.set()
        self._thread.join(_END_TIMEOUT_SECONDS)
        with suppress(NstError):  # the work is finished, and others will find the lease dead
            self.tree.remove([self.name])

    def _send_heartbeats(self) -> None:
        beats = 0
        while not self._ended.wait(HEARTBEAT_SECONDS):
            beats += 1
            try:
                if self.tree.stat(self.name) is None:
                    self.is_lost = True
                    return
                self.tree.write(self.name, _lease_content(self._process, beats))
                if self._place and _lease_names(self.tree, self._place)[-1:] != [self.name]:  # taken for dead while the write hung
                    self.is_lost = True
                    self.tree.remove([self.name])
                    return
            except NstError:  # the server does not answer: try again
                continue


@contextmanager
def hold_lease(tree: FileTree, place: str, subject: str, report: Callable[[str], None] = lambda _: None) -> Iterator[Lease]:
    """Own `place` while the block runs. Raises InUseError if a living process owns it; a dead process is replaced."""
    lease = _acquire_lease(tree, place, subject, report)
    try:
        yield lease
    finally:
        lease.end()


@contextmanager
def register_worker(tree: FileTree, place: str) -> Iterator[Lease]:
    """Register this process as one of any number working at `place` while the block runs."""
    name, process = f"{place}.{secrets.token_hex(8)}", Process.current()
    tree.create(name, _lease_content(process, 0), is_unique=True)
    lease = Lease(tree, name, process)
    try:
        yield lease
    finally:
        lease.end()


def remove_dead_leases(tree: FileTree, place: str) -> None:
    """Remove the signs of processes of this machine that were killed at `place`."""
    contents = {sign: tree.read_if_exists(sign) for sign in _lease_names(tree, place)}
    tree.remove([sign for sign, content in contents.items() if content and Process.parse(content).is_alive is False])


def check_not_in_use(tree: FileTree, subject: str, places: list[str], report: Callable[[str], None] = lambda _: None) -> None:
    """Raise InUseError if a living process is at one of the places. Signs of other machines are watched until that is known."""
    watch = _Watch(tree, subject, report)
    while any(watch.is_alive(sign) is None for place in places for sign in _lease_names(tree, place)):
        time.sleep(_POLL_SECONDS)


def _acquire_lease(tree: FileTree, place: str, subject: str, report: Callable[[str], None]) -> Lease:
    watch, process = _Watch(tree, subject, report), Process.current()
    while True:
        signs = _lease_names(tree, place)
        if any(watch.is_alive(sign) is None for sign in signs):
            time.sleep(_POLL_SECONDS)
            continue
        number = 1 + max((int(sign.rpartition(".")[2]) for sign in signs), default=0)
        name = f"{place}.{number:06d}"
        if not tree.create(name, _lease_content(process, 0), is_unique=True):
            continue
        tree.remove(signs)
        if _lease_names(tree, place) == [name]:
            return Lease(tree, name, process, place)
        tree.remove([name])  # another process came at the same moment: both look again
        time.sleep(_POLL_SECONDS * random.random())


class _Watch:
    """What is known about the signs of other processes."""

    def __init__(self, tree: FileTree, subject: str, report: Callable[[str], None]) -> None:
        self._tree, self._what, self._say = tree, subject, report
        self._seen: dict[str, tuple[bytes, float]] = {}

    def is_alive(self, sign: str) -> bool | None:
        """False for the sign of a dead process, None if that is not known yet. Raises InUseError if the process is alive."""
        content = self._tree.read_if_exists(sign)
        if content is None:
            return False
        process = Process.parse(content)
        is_alive = process.is_alive
        if is_alive is None:
            if sign not in self._seen:
                self._seen[sign] = content, time.monotonic()
                self._say(f"{self._what}: in use by {process}; waiting {DEAD_AFTER_SECONDS:.0f} s to see whether it still runs")
            last_content, seen_at = self._seen[sign]
            is_alive = True if content != last_content else False if time.monotonic() - seen_at > DEAD_AFTER_SECONDS else None
        if is_alive:
            raise InUseError(self._what, process)
        return is_alive


def _lease_names(tree: FileTree, place: str) -> list[str]:
    folder, _, prefix = place.rpartition("/")
    return [file.name for file in tree.children(folder)[1] if file.name.startswith(f"{folder}/{prefix}.")]


def _lease_content(process: Process, beats: int) -> bytes:
    return json.dumps({"process": asdict(process), "beats": beats, "token": secrets.token_hex(8)}).encode()

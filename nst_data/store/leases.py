"""Who is at work on what in a store at an address: an object that a process rewrites every ten seconds.

An object `PLACE.NUMBER` is written only if there is none, so that of two processes one gets a number. What `ownership` says of signs in
folders holds of these: a process of this machine that has ended is dead at once, one of another machine when its object has not changed
for two minutes; who takes a dead one's place takes the next number.
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
from nst_data.store.ownership import ALIVE_EVERY_SECONDS, DEAD_AFTER_SECONDS, AtWorkError, Process

_LOOK_EVERY_SECONDS = 0.5
_LONGEST_END_SECONDS = 20.0


class Lease:
    """The sign of life of this process in a store at an address, kept fresh by a thread until `end`."""

    def __init__(self, tree: FileTree, name: str, process: Process, place: str = "") -> None:
        self.tree, self.name, self._process, self._place = tree, name, process, place
        self.is_lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show_life, name=f"lease-{name}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Take it away."""
        self._ended.set()
        self._thread.join(_LONGEST_END_SECONDS)
        with suppress(NstError):  # what is done is done; others find it dead
            self.tree.remove([self.name])

    def _show_life(self) -> None:
        beats = 0
        while not self._ended.wait(ALIVE_EVERY_SECONDS):
            beats += 1
            try:
                if self.tree.stat(self.name) is None:
                    self.is_lost = True
                    return
                self.tree.write(self.name, _content(self._process, beats))
                if self._place and _signs(self.tree, self._place)[-1:] != [self.name]:  # taken for dead while the write hung
                    self.is_lost = True
                    self.tree.remove([self.name])
                    return
            except NstError:  # the server does not answer: tried again
                continue


@contextmanager
def leased(tree: FileTree, place: str, what: str, say: Callable[[str], None] = lambda _: None) -> Iterator[Lease]:
    """While this lasts no other process owns `place`. Raises AtWorkError where a living process does; a dead one's place is taken."""
    lease = _lease(tree, place, what, say)
    try:
        yield lease
    finally:
        lease.end()


@contextmanager
def present(tree: FileTree, place: str) -> Iterator[Lease]:
    """While this lasts, this process is one of any number that are at work at `place`."""
    name, process = f"{place}.{secrets.token_hex(8)}", Process.this()
    tree.create(name, _content(process, 0), is_unique=True)
    lease = Lease(tree, name, process)
    try:
        yield lease
    finally:
        lease.end()


def clear_dead(tree: FileTree, place: str) -> None:
    """Take away the signs of processes of this machine that were killed at `place`."""
    contents = {sign: tree.read_if_there(sign) for sign in _signs(tree, place)}
    tree.remove([sign for sign, content in contents.items() if content and Process.parse(content).is_alive is False])


def check_nobody_at_work(tree: FileTree, what: str, places: list[str], say: Callable[[str], None] = lambda _: None) -> None:
    """Raises AtWorkError where a living process is at one of the places. What another machine left is watched until that is known."""
    watch = _Watch(tree, what, say)
    while any(watch.is_alive(sign) is None for place in places for sign in _signs(tree, place)):
        time.sleep(_LOOK_EVERY_SECONDS)


def _lease(tree: FileTree, place: str, what: str, say: Callable[[str], None]) -> Lease:
    watch, process = _Watch(tree, what, say), Process.this()
    while True:
        signs = _signs(tree, place)
        if any(watch.is_alive(sign) is None for sign in signs):
            time.sleep(_LOOK_EVERY_SECONDS)
            continue
        number = 1 + max((int(sign.rpartition(".")[2]) for sign in signs), default=0)
        name = f"{place}.{number:06d}"
        if not tree.create(name, _content(process, 0), is_unique=True):
            continue
        tree.remove(signs)
        if _signs(tree, place) == [name]:
            return Lease(tree, name, process, place)
        tree.remove([name])  # another one came in the same moment: both look again
        time.sleep(_LOOK_EVERY_SECONDS * random.random())


class _Watch:
    """What is known of the signs of others."""

    def __init__(self, tree: FileTree, what: str, say: Callable[[str], None]) -> None:
        self._tree, self._what, self._say = tree, what, say
        self._seen: dict[str, tuple[bytes, float]] = {}

    def is_alive(self, sign: str) -> bool | None:
        """False for the sign of a dead process, None where that is not known yet. Raises AtWorkError for one that lives."""
        content = self._tree.read_if_there(sign)
        if content is None:
            return False
        process = Process.parse(content)
        is_alive = process.is_alive
        if is_alive is None:
            if sign not in self._seen:
                self._seen[sign] = content, time.monotonic()
                self._say(f"{self._what}: in use by {process}; waiting {DEAD_AFTER_SECONDS:.0f} s to see whether it still runs")
            before, since = self._seen[sign]
            is_alive = True if content != before else False if time.monotonic() - since > DEAD_AFTER_SECONDS else None
        if is_alive:
            raise AtWorkError(self._what, process)
        return is_alive


def _signs(tree: FileTree, place: str) -> list[str]:
    folder, _, start = place.rpartition("/")
    return [one.name for one in tree.children(folder)[1] if one.name.startswith(f"{folder}/{start}.")]


def _content(process: Process, beats: int) -> bytes:
    return json.dumps({"process": asdict(process), "beats": beats, "token": secrets.token_hex(8)}).encode()

"""Which shards of a version in progress are missing, as far as this process knows, and in which order it takes them."""

import os
import random
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path

from nst_data.store.remote_run import RemoteRun

_LOOK_AGAIN_SECONDS = 5.0
_LOOKS_AT_MOST = 0.05  # share of the time: listing many notes at an address takes seconds


def note_name(shard: int) -> str:
    """The name of the file that marks a shard as done."""
    return f"{shard:05d}.json"


class MissingShards:
    """The shards without a note. The result of the last look is cached; `is_missing` checks again for a shard that matters."""

    def __init__(self, shards: int, notes: Path, elsewhere: RemoteRun | None) -> None:
        self._shards, self._notes, self._elsewhere = shards, notes, elsewhere
        self._kept: set[int] | None = None
        self._look_again = 0.0

    def look(self) -> set[int]:
        """The shards that are missing now."""
        started = time.monotonic()
        if self._elsewhere is not None:
            self._elsewhere.bring_notes()
        done = set(os.listdir(self._notes))
        self._kept = {shard for shard in range(self._shards) if note_name(shard) not in done}
        now = time.monotonic()
        self._look_again = now + max(_LOOK_AGAIN_SECONDS, (now - started) / _LOOKS_AT_MOST)
        return self._kept.copy()

    def recent(self) -> set[int]:
        """The shards that were missing a few seconds ago, without those known to be done since."""
        if self._kept is None or time.monotonic() >= self._look_again:
            return self.look()
        return self._kept.copy()

    def is_missing(self, shard: int) -> bool:
        """Whether one shard is missing now."""
        if self._elsewhere is not None:
            self._elsewhere.bring_note(note_name(shard))
        is_done = (self._notes / note_name(shard)).exists()
        if is_done:
            self.remove(shard)
        return not is_done

    def add(self, shard: int) -> None:
        """Record that a shard is to be made again."""
        if self._kept is not None:
            self._kept.add(shard)

    def remove(self, shard: int) -> None:
        """Record that a shard is done."""
        if self._kept is not None:
            self._kept.discard(shard)


class Route:
    """The order in which one process goes through the shards, some of which others make. It begins at `start`.

    By itself, or with others whose claims it sees, it always takes the next shard from there. Machines that do not see each other's
    claims would compute the same shards forever once one has caught up with another. So with `chance` it reads straight on until it meets
    another, which has already done the next shard or did the same one; then it continues at a random shard.
    """

    def __init__(self, shards: int, start: int, chance: random.Random | None = None) -> None:
        self._shards, self._start, self._chance = shards, start, chance
        self._last: int | None = None
        self._has_met = False

    def order(self, left: Iterable[int]) -> Iterator[int]:
        """Yield the shards that are left, in the order in which to take them."""
        shards = sorted(left)
        if self._chance is None or self._last is None:
            first = bisect_left(shards, self._start)
            yield from shards[first:] + shards[:first]
            return
        next_shard = (self._last + 1) % self._shards
        if not self._has_met and next_shard in shards:
            yield next_shard
            shards.remove(next_shard)
        self._chance.shuffle(shards)
        yield from shards

    def took(self, shard: int) -> None:
        """Record that this process is at `shard` now."""
        self._last, self._has_met = shard, False

    def meet(self) -> None:
        """Record that another machine computed the same shard."""
        self._has_met = True

"""Which shards of a version in progress are missing, as far as this process knows, and in which order it takes them."""

import os
import random
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path

from nst_data.store.remote_run import RemoteRun

_REFRESH_SECONDS = 5.0
_MAX_REFRESH_SHARE = 0.05  # share of the time: listing many notes at an address takes seconds


def note_name(shard: int) -> str:
    """The name of the file that marks a shard as done."""
    return f"{shard:05d}.json"


class MissingShards:
    """The shards without a note. The result of the last look is cached; `is_missing` checks again for a shard that matters."""

    def __init__(self, n_shards: int, notes: Path, remote: RemoteRun | None) -> None:
        self._shards, self._notes, self._remote = n_shards, notes, remote
        self._cached: set[int] | None = None
        self._refresh_at = 0.0

    def refresh(self) -> set[int]:
        """The shards that are missing now."""
        started = time.monotonic()
        if self._remote is not None:
            self._remote.download_notes()
        finished = set(os.listdir(self._notes))
        self._cached = {shard for shard in range(self._shards) if note_name(shard) not in finished}
        now = time.monotonic()
        self._refresh_at = now + max(_REFRESH_SECONDS, (now - started) / _MAX_REFRESH_SHARE)
        return self._cached.copy()

    def recent(self) -> set[int]:
        """The shards that were missing a few seconds ago, without those known to be done since."""
        if self._cached is None or time.monotonic() >= self._refresh_at:
            return self.refresh()
        return self._cached.copy()

    def is_missing(self, shard: int) -> bool:
        """Whether one shard is missing now."""
        if self._remote is not None:
            self._remote.download_note(note_name(shard))
        is_done = (self._notes / note_name(shard)).exists()
        if is_done:
            self.remove(shard)
        return not is_done

    def add(self, shard: int) -> None:
        """Record that a shard is to be made again."""
        if self._cached is not None:
            self._cached.add(shard)

    def remove(self, shard: int) -> None:
        """Record that a shard is done."""
        if self._cached is not None:
            self._cached.discard(shard)


class Route:
    """The order in which one process goes through the shards, some of which others make. It begins at `start`.

    By itself, or with others whose claims it sees, it always takes the next shard from there. Machines that do not see each other's
    claims would compute the same shards forever once one has caught up with another. So with `rng` it reads straight on until it meets
    another, which has already done the next shard or did the same one; then it continues at a random shard.
    """

    def __init__(self, n_shards: int, start: int, rng: random.Random | None = None) -> None:
        self._shards, self._start, self._rng = n_shards, start, rng
        self._last: int | None = None
        self._has_met = False

    def order(self, remaining: Iterable[int]) -> Iterator[int]:
        """Yield the `remaining` shards in the order in which to take them."""
        shards = sorted(remaining)
        if self._rng is None or self._last is None:
            first = bisect_left(shards, self._start)
            yield from shards[first:] + shards[:first]
            return
        next_shard = (self._last + 1) % self._shards
        if not self._has_met and next_shard in shards:
            yield next_shard
            shards.remove(next_shard)
        self._rng.shuffle(shards)
        yield from shards

    def record_taken(self, shard: int) -> None:
        """Record that this process is at `shard` now."""
        self._last, self._has_met = shard, False

    def record_overlap(self) -> None:
        """Record that another machine computed the same shard."""
        self._has_met = True

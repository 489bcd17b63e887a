"""The order of entries that come in shards, a pure function of (seed, position): a few shards at a time, shuffled together."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nst_train.batches.order import permute
from nst_train.seeds import derive_seed

SHARDS_PER_GROUP = 4
_CACHED_EPOCHS = 4  # a batch spans one or two

_Epoch = tuple[NDArray[np.int64], NDArray[np.int64]]  # shards in order; the first position of each group, and the one after the last


@dataclass(frozen=True)
class ShardOrder:
    """Each epoch goes through the shards in its own order, `group_size` at a time; the entries of such a group are shuffled together.

    `sizes` is the number of entries of each shard, shape (shards,). The shards themselves are shuffled, so a group samples the whole.
    Groups are numbered across epochs. A single shard has the order of `shuffled_rows` if `seed_tag` is the same word ("order").
    """

    sizes: NDArray[np.int64]
    seed: int
    group_size: int = SHARDS_PER_GROUP
    seed_tag: str = "group"
    _epochs: dict[int, _Epoch] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def entries_at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shard, and the entry in that shard, at each position of an endless stream of epochs; shapes (positions,)."""
        shards, entries = np.empty_like(positions), np.empty_like(positions)
        groups = self._groups_at(positions)
        for group in np.unique(groups).tolist():
            in_group = groups == group
            group_shards = self.shards(group)
            ends = np.cumsum(self.sizes[group_shards])
            group_positions = positions[in_group] - self._start(group)
            shuffled = permute(group_positions, int(ends[-1]), derive_seed(self.seed, "pseudo", self.seed_tag, group))
            index = np.searchsorted(ends, shuffled, side="right")
            shards[in_group], entries[in_group] = group_shards[index], shuffled - (ends - self.sizes[group_shards])[index]
        return shards, entries

    def shards(self, group: int) -> NDArray[np.int64]:
        """The shards of a group."""
        epoch, number = divmod(group, self._per_epoch)
        return self._epoch(epoch)[0][number * self.group_size : (number + 1) * self.group_size]

    def window(self, start: int, stop: int, groups: int = 1, end: int | None = None) -> list[int]:
        """The shards of the groups that contain the positions from `start` up to but excluding `stop`, in the order they are needed.

        Includes the groups that follow, up to `groups` in total, but none that starts after the position `end`.
        """
        first, last, final = self._groups_at(np.array([start, stop - 1, (end or stop) - 1])).tolist()
        ahead = first + groups - 1 if end is None else min(final, first + groups - 1)
        shards = dict.fromkeys(shard for group in range(first, max(last, ahead) + 1) for shard in self.shards(group).tolist())
        return [shard for shard in shards if self.sizes[shard]]

    @property
    def _per_epoch(self) -> int:
        return -(-len(self.sizes) // self.group_size)

    def _epoch(self, epoch: int) -> _Epoch:
        cached = self._epochs.get(epoch)
        if cached is None:
            shards = permute(np.arange(len(self.sizes)), len(self.sizes), derive_seed(self.seed, "pseudo", "shards", epoch))
            sizes = np.add.reduceat(self.sizes[shards], np.arange(0, len(shards), self.group_size))
            cached = shards, np.concatenate([[0], np.cumsum(sizes)])
            if len(self._epochs) >= _CACHED_EPOCHS:
                self._epochs.clear()
            self._epochs[epoch] = cached
        return cached

    def _start(self, group: int) -> int:
        epoch, number = divmod(group, self._per_epoch)
        return epoch * len(self) + int(self._epoch(epoch)[1][number])

    def _groups_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        groups = np.empty_like(positions)
        epochs = positions // len(self)
        for epoch in np.unique(epochs).tolist():
            in_epoch = epochs == epoch
            group = np.searchsorted(self._epoch(epoch)[1], positions[in_epoch] - epoch * len(self), side="right") - 1
            groups[in_epoch] = epoch * self._per_epoch + group
        return groups

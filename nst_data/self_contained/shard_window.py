"""The locally available shards of a streamed edition: a few, downloaded ahead of training and deleted behind it.

One process per machine downloads, in a separate thread; its workers and the other processes wait for what they need. If a run is killed,
the next one uses the complete shards and deletes the rest.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nst_data.errors import NstError
from nst_data.self_contained.shard_folders import NeededShards, ShardFolders
from nst_data.store.files import discard, replace_file, write_text
from nst_data.store.ownership import InUseError, hold_ownership, is_owned

_POLL_SECONDS = 0.1
_NO_KEEPER_SECONDS = 120.0
_RETRY_SECONDS = 20.0
_STOP_SECONDS = 1.0


class DamagedShardError(NstError):
    """A shard that does not match its manifest; downloading it again would not help."""


@dataclass(frozen=True)
class ShardWindow(ShardFolders):
    """Shards that come and go; `prepare` downloads one. `process` is the index of this process among the `processes` on the machine."""

    edition: str  # name in error messages
    process: int = 0
    processes: int = 1

    def reset(self) -> None:
        """Discard the notes of an earlier run; every process of the machine must do so before any of them waits for a shard."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._position_path(self.process).unlink(missing_ok=True)
        if self.process == 0:
            self._failure_path.unlink(missing_ok=True)

    def wait_for(self, shard: int) -> Path:
        """Wait until a shard is available and return its folder. Raises NstError if it will not arrive."""
        place, alone_since = self.shard_folder(shard), time.monotonic()
        while not place.is_dir():
            with suppress(FileNotFoundError):
                raise NstError(self._failure_path.read_text("utf-8"))
            if is_owned(self._keeper_path):
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > _NO_KEEPER_SECONDS:
                raise NstError(f"{self.edition}: the process that fetches its shards ended; run the same command again")
            time.sleep(_POLL_SECONDS)
        return place

    @contextmanager
    def keep_available(self, start: int, needed: NeededShards) -> Iterator[Callable[[int], None]]:
        """Keep the shards needed at the current position, and only these, available or on their way within this context.

        `needed` lists them for a position, most urgent first; call the yielded function to report the position of this process. Shards are
        kept until the slowest process of the machine has passed them. Only the first process downloads.
        """
        self._record_position(start)
        if self.process:
            yield self._record_position
            return
        with self._hold_ownership():
            stopped = threading.Event()
            thread = threading.Thread(target=self._maintain, args=(start, needed, stopped), daemon=True)
            thread.start()
            try:
                yield self._record_position
            finally:
                stopped.set()
                thread.join(_STOP_SECONDS)  # a download may take longer; the next run deletes what it leaves behind

    @property
    def _failure_path(self) -> Path:
        return self.folder / "failure"

    def _position_path(self, process: int) -> Path:
        return self.folder / f"reached.{process}"

    def _record_position(self, position: int) -> None:
        temp_file = self.folder / f".reached.{self.process}"
        temp_file.write_text(str(position))
        replace_file(temp_file, self._position_path(self.process))

    def _slowest_position(self, start: int) -> int:
        """The position that all processes have reached."""
        positions = []
        for process in range(self.processes):
            path = self._position_path(process)
            positions.append(int(path.read_text()) if path.exists() else start)
        return min(positions)

    @property
    def _keeper_path(self) -> Path:
        return self.folder / "keeper"

    @contextmanager
    def _hold_ownership(self) -> Iterator[None]:
        """Become the only process that downloads to this folder."""
        with ExitStack() as stack:
            try:
                stack.enter_context(hold_ownership(self._keeper_path, str(self.folder)))
            except InUseError:
                raise NstError(f"{self.folder}: another training is streaming there; wait for it or stop it") from None
            yield

    def _maintain(self, start: int, needed: NeededShards, stopped: threading.Event) -> None:
        try:
            for leftover in self.folder.glob(".[dp]*"):  # incomplete shards, and shards that were being deleted
                shutil.rmtree(leftover, ignore_errors=True)
            while not stopped.is_set():
                shards = needed(self._slowest_position(start))
                self._delete_except(shards)
                missing = next((shard for shard in shards if not self.shard_folder(shard).is_dir()), None)
                if missing is None:
                    stopped.wait(_POLL_SECONDS)
                elif not self._try_fetch(missing, stopped):
                    stopped.wait(_RETRY_SECONDS)
        except Exception as error:  # any error at all, so that nobody waits forever
            if not stopped.is_set():
                write_text(self._failure_path, str(error) or type(error).__name__)

    def _try_fetch(self, shard: int, stopped: threading.Event) -> bool:
        """Try to download a shard; return whether that succeeded.

        A network failure is only recorded: it ends the training once some process waits for the shard, not before.
        """
        try:
            self.add(shard)
        except DamagedShardError:
            raise
        except NstError as error:
            if not stopped.is_set():
                write_text(self._failure_path, str(error))
            return False
        self._failure_path.unlink(missing_ok=True)
        return True

    def _delete_except(self, shards: Sequence[int]) -> None:
        retained = {self.shard_folder(shard).name for shard in shards}
        for name in os.listdir(self.folder):
            if name.isdecimal() and name not in retained:
                discard(self.folder / name)

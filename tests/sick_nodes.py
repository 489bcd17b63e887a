"""A job for a Ray cluster that fails on some of its nodes, as on a full or read-only disk."""

import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path

LOSSES = 3


@dataclass(frozen=True)
class FailingJob:
    """Fails in processes with this in their environment; the others wait until it has done so several times, which `log` counts."""

    name: str
    value: str
    log: Path

    about = "the same everywhere"

    def describe_missing(self):
        return ""

    def open(self, threads):
        return self

    def fill(self, shard):
        yield 1
        if os.environ.get(self.name) == self.value:
            with self.log.open("a") as log:
                log.write(f"{shard}\n")
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/scratch")
        deadline = time.monotonic() + 60
        while len(self.log.read_text().split()) < LOSSES and time.monotonic() < deadline:
            time.sleep(0.05)
        yield 2

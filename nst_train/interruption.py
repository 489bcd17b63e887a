"""Signals that ask work to stop. Training finishes its step and writes a checkpoint first; the exit status tells which signal came.

Imports no torch, so that the command line can know these signals before any work.
"""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})  # Ctrl-C, pre-emption, SLURM's advance warning
AGREE_EVERY_SECONDS = 1.0


class Interrupted(KeyboardInterrupt):
    """Work was asked to stop and did so; what is done is kept. `number` is the signal that asked, `where` says how far the work was."""

    def __init__(self, number: int, where: str = "") -> None:
        self.number = signal.Signals(number)
        by = "" if self.number == signal.SIGINT else f" by {self.number.name}"
        super().__init__(f"interrupted{by}{where and f' {where}'}; what is done is kept, the same command goes on from there")

    @property
    def status(self) -> int:
        """The exit status, as a shell gives it to what a signal ended: 130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1."""
        return 128 + self.number


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """The handler for work that is kept piece by piece, so that it may end anywhere. Raises Interrupted."""
    raise Interrupted(number)


class StopRequests:
    """While it is open, a stop signal is kept until `agreed` is asked; a second Ctrl-C ends the work at once.

    `maximum` gives the largest of each number over all processes, which must ask together; None where there is one process alone.
    `begun` are the steps that were done before.
    """

    def __init__(self, maximum: Callable[[list[float]], list[float]] | None = None, begun: int = 0) -> None:
        self._maximum = maximum
        self._received = 0
        self._next = self._before = begun
        self._asked = time.monotonic()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._handlers = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def agreed(self, step: int) -> int:
        """After a step: the signal on which all processes stop now, 0 for none.

        A signal may reach one process only. The processes tell each other about once a second: each time they agree on the step at
        which they will do so next, from how long the slowest took for its last steps.
        """
        if self._maximum is None:
            return self._received
        if step < self._next:
            return 0
        now = time.monotonic()
        received, slowest = self._maximum([float(self._received), now - self._asked])
        self._received = int(received)
        self._next = step + max(1, int((step - self._before) * AGREE_EVERY_SECONDS / max(slowest, 1e-6)))
        self._before, self._asked = step, now
        return self._received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received == number == signal.SIGINT:
            raise Interrupted(number)
        self._received = self._received or number

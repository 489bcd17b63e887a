"""Signals that ask work to stop. Training finishes its step and writes a checkpoint first; the exit status tells which signal came.

Imports no torch, so that the command line can know these signals before any work.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

# Ctrl-C, pre-emption, SLURM's advance warning, a terminal that is gone
STOP_SIGNALS = frozenset(one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"))
AGREE_EVERY_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 20.0  # schedulers and torchrun kill after 30
SAY_AFTER_SECONDS = 1.0  # a step that ends sooner needs no explanation
_STOPPING = "stopping after this step and a checkpoint"
_AGAIN = "; Ctrl-C again stops now and loses the steps since the last one"


class Interrupted(KeyboardInterrupt):
    """Work was asked to stop and did so; what is done is kept. `number` is the signal that asked, `where` says how far the work was."""

    def __init__(self, number: int, where: str = "") -> None:
        self.number = signal.Signals(number)
        by = "" if self.number == signal.SIGINT else f" by {self.number.name}"
        super().__init__(f"interrupted{by}{where and f' {where}'}; finished work is kept; the same command resumes")

    @property
    def status(self) -> int:
        """The exit status, as a shell gives it to what a signal ended: 130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1, 129 for SIGHUP."""
        return 128 + self.number


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """The handler for work that is kept piece by piece, so that it may end anywhere. Raises Interrupted."""
    raise Interrupted(number)


def is_heeded(number: int) -> bool:
    """Whether a signal is to stop the work: `nohup` asks to ignore SIGHUP."""
    return signal.Signals(number).name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN


class StopRequests:
    """While it is open, a stop signal is kept until `agreed` is asked; a second Ctrl-C ends the work at once.

    One that comes within `waiting` raises Interrupted: at once in one process alone, after some seconds where others have to agree.
    `maximum` gives the largest of each number over all processes, which must ask together; None where there is one process alone.
    `begun` are the steps that were done before. `say` gets a line if work does not stop within a second of a signal.
    """

    def __init__(
        self, maximum: Callable[[list[float]], list[float]] | None = None, begun: int = 0, say: Callable[[str], None] | None = None
    ) -> None:
        self._maximum, self._say = maximum, say
        self._explanation: threading.Timer | None = None
        self._received = 0
        self._is_waiting = False
        self._next = self._before = begun
        self._asked = time.monotonic()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._handlers = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS if is_heeded(number)}
            self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._wait_no_longer)
        return self

    def __exit__(self, *_: object) -> None:
        if self._explanation is not None:
            self._explanation.cancel()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For what may never end, such as a wait for a batch: a stop signal ends it."""
        self._is_waiting = True
        try:
            if self._received:  # before: the step after it is nearly there
                signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT_SECONDS)
            yield
        finally:
            self._is_waiting = False
            if self._received:
                signal.setitimer(signal.ITIMER_REAL, 0)

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
        if not self._received and self._say is not None:  # in a thread: a handler may have interrupted another print
            self._explanation = threading.Timer(SAY_AFTER_SECONDS, self._say, [_STOPPING + (_AGAIN if number == signal.SIGINT else "")])
            self._explanation.daemon = True
            self._explanation.start()
        self._received = self._received or number
        if self._is_waiting and self._maximum is None:
            self._wait_no_longer(number, frame)
        elif self._is_waiting:
            signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT_SECONDS)

    def _wait_no_longer(self, number: int, frame: FrameType | None) -> None:
        if self._is_waiting:
            self._is_waiting = False  # a further signal must not end what is done now, such as writing a checkpoint
            raise Interrupted(self._received)

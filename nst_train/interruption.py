"""Signals that ask work to stop. Training first finishes its step and writes a checkpoint; the exit status tells which signal was received.

Imports no torch, so that the command line can handle these signals before any work starts.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

# Ctrl-C, preemption, SLURM's advance warning, a closed terminal
STOP_SIGNALS = frozenset(one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"))
AGREE_EVERY_SECONDS = 1.0
MAX_WAIT_SECONDS = 20.0  # schedulers and torchrun kill after 30 s
EXPLAIN_AFTER_SECONDS = 1.0  # a step that ends sooner needs no explanation
_STOP_MESSAGE = "stopping after this step and a checkpoint"
_SECOND_CTRL_C_MESSAGE = "; Ctrl-C again stops now and loses the steps since the last one"


class Interrupted(KeyboardInterrupt):
    """Work stopped on request, and its results are kept. `number` is the signal, `position` says how far the work was."""

    def __init__(self, number: int, position: str = "") -> None:
        self.number = signal.Signals(number)
        by = "" if self.number == signal.SIGINT else f" by {self.number.name}"
        super().__init__(f"interrupted{by}{position and f' {position}'}; finished work is kept; the same command resumes")

    @property
    def status(self) -> int:
        """The exit status, as a shell reports it for a signal: 130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1, 129 for SIGHUP."""
        return 128 + self.number


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """The handler for work that is saved piece by piece, so that it may stop anywhere. Raises Interrupted."""
    raise Interrupted(number)


def should_stop_on(number: int) -> bool:
    """Whether a signal should stop the work: `nohup` asks to ignore SIGHUP."""
    return signal.Signals(number).name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN


class StopRequests:
    """While open, stores a stop signal until `agreed_signal` is called; a second Ctrl-C stops the work at once.

    A signal during `interruptible` raises Interrupted: at once in a single process, after some seconds if others have to agree.
    `max_over_processes` returns the largest of each number over all processes, which must call it together; None for a single process.
    `start_step` is the number of steps that were done before. `report` is called with a line if work does not stop within a second of a
    signal.
    """

    def __init__(
        self,
        max_over_processes: Callable[[list[float]], list[float]] | None = None,
        start_step: int = 0,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._max_over_processes, self._report = max_over_processes, report
        self._explanation: threading.Timer | None = None
        self._received = 0
        self._is_waiting = False
        self._next = self._last_step = start_step
        self._agreed_at = time.monotonic()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            self._handlers = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS if should_stop_on(number)}
            self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._interrupt_wait)
        return self

    def __exit__(self, *_: object) -> None:
        if self._explanation is not None:
            self._explanation.cancel()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """For operations that may never end, such as waiting for a batch: a stop signal interrupts them."""
        self._is_waiting = True
        try:
            if self._received:  # received before this wait, so the stop is near
                signal.setitimer(signal.ITIMER_REAL, MAX_WAIT_SECONDS)
            yield
        finally:
            self._is_waiting = False
            if self._received:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def agreed_signal(self, step: int) -> int:
        """After a step, the signal on which all processes stop now, or 0.

        A signal may reach only one process. The processes exchange signals about once a second: each time, they agree on the step of the
        next exchange, from the time that the slowest one took for its last steps.
        """
        if self._max_over_processes is None:
            return self._received
        if step < self._next:
            return 0
        now = time.monotonic()
        received, slowest = self._max_over_processes([float(self._received), now - self._agreed_at])
        self._received = int(received)
        self._next = step + max(1, int((step - self._last_step) * AGREE_EVERY_SECONDS / max(slowest, 1e-6)))
        self._last_step, self._agreed_at = step, now
        return self._received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received == number == signal.SIGINT:
            raise Interrupted(number)
        if not self._received and self._report is not None:  # in a thread: a handler may have interrupted another print
            self._explanation = threading.Timer(
                EXPLAIN_AFTER_SECONDS, self._report, [_STOP_MESSAGE + (_SECOND_CTRL_C_MESSAGE if number == signal.SIGINT else "")]
            )
            self._explanation.daemon = True
            self._explanation.start()
        self._received = self._received or number
        if self._is_waiting and self._max_over_processes is None:
            self._interrupt_wait(number, frame)
        elif self._is_waiting:
            signal.setitimer(signal.ITIMER_REAL, MAX_WAIT_SECONDS)

    def _interrupt_wait(self, number: int, frame: FrameType | None) -> None:
        if self._is_waiting:
            self._is_waiting = False  # another signal must not interrupt what follows, such as writing a checkpoint
            raise Interrupted(self._received)

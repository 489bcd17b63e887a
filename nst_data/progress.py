"""Progress of long-running work: a bar with rate and time left on a terminal, plain lines elsewhere, nothing unless requested."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

LINE_EVERY_SECONDS = 10.0
_LEAST_BESIDE, _LEAST_OF_A_NAME = 32, 16
"""Columns of a terminal: for rate, time left, a short bar and the blanks between them; for a name."""


def escape_unprintable(name: str) -> str:
    """A name with non-printable characters escaped, which a terminal might act on."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)


class Task(Protocol):
    """Work in progress."""

    def advance(self, amount: int, note: str = "") -> None:
        """Report that `amount` more is done; `note` is shown next to it."""


class Progress:
    """Silent progress, for use as a library."""

    def say(self, line: str) -> None:
        """Report one line about what is happening."""

    def say_once(self, line: str) -> None:
        """Like `say`, but a line that was said before is not repeated: several steps of one run may have the same remark."""
        reported: set[str] = vars(self).setdefault("_told", set())
        if line not in reported:
            reported.add(line)
            self.say(line)

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Track long work of `total` units, of which `done` are already complete."""
        yield _SilentTask()


class _SilentTask:
    def advance(self, amount: int, note: str = "") -> None:
        pass


class LineProgress(Progress):
    """Plain lines on standard error: at the start, every ten seconds, and at the end. `rephrase` rephrases the lines given to `say`."""

    def __init__(self, rephrase: Callable[[str], str] = str) -> None:
        self._rephrase = rephrase

    def say(self, line: str) -> None:
        """Print a line."""
        print(escape_unprintable(self._rephrase(line)), file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Print how far the work has progressed."""
        task = _LineTask(name, total, unit, done)
        yield task
        task.finish()


def _format_amount(completed: int, total: int, unit: str) -> str:
    """The amount done out of the total, in megabytes for bytes."""
    return f"{completed / 1e6:,.1f}/{total / 1e6:,.1f} MB" if unit == "bytes" else f"{completed:,}/{total:,} {unit}"


def _format_rate(amount: int, seconds: float, unit: str) -> str:
    """The rate of work; empty if nothing was done."""
    if not amount:
        return ""
    per_second = amount / max(seconds, 1e-9)
    if unit == "bytes":
        return f"{per_second / 1e6:,.1f} MB/s"
    return f"{per_second:,.0f}/s" if per_second >= 1 else f"{per_second:.2g}/s"


class _LineTask:
    def __init__(self, name: str, total: int, unit: str, completed: int) -> None:
        self._name, self._total, self._unit, self._done, self._completed_before = name, total, unit, completed, completed
        self._started_at = self._printed = time.monotonic()
        self._note = ""
        self._last_printed: tuple[int, str] | None = None

    def advance(self, amount: int, note: str = "") -> None:
        self._done += amount
        self._note = note
        if time.monotonic() - self._printed > LINE_EVERY_SECONDS:
            self.print_state()

    def finish(self) -> None:
        """Print the final state, unless the last line already showed it."""
        if self._last_printed != (self._done, self._note):
            self.print_state()

    def print_state(self) -> None:
        self._last_printed = (self._done, self._note)
        self._printed = time.monotonic()
        n_done, seconds, missing = self._done - self._completed_before, self._printed - self._started_at, self._total - self._done
        time_left = f"{missing * seconds / n_done:,.0f} s left" if n_done and missing > 0 else ""
        fields = [_format_amount(self._done, self._total, self._unit), _format_rate(n_done, seconds, self._unit), time_left, self._note]
        print(escape_unprintable(f"{self._name}: {', '.join(filter(None, fields))}"), file=sys.stderr, flush=True)


class BarProgress(LineProgress):
    """A live bar per task, on a terminal."""

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Show a bar with count, rate, time left and the latest note."""
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich
        from rich.table import Column
        from rich.text import Text

        class NoteColumn(ProgressColumn):
            def render(self, task: Any) -> Text:  # noqa: ANN401 - rich's task
                return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")

        # on a narrow terminal, shorten the name, the bar and the note rather than the numbers
        console, no_wrap_column = Console(stderr=True), Column(no_wrap=True)
        name = _shorten_middle(escape_unprintable(name), console.width - len(_format_amount(total, total, unit)) - _LEAST_BESIDE)
        columns = (
            TextColumn("{task.description}", table_column=no_wrap_column.copy()),
            BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=24)),
            TextColumn("{task.fields[amount]}", table_column=no_wrap_column.copy()),
            TextColumn("{task.fields[rate]}", table_column=no_wrap_column.copy()),
            TimeRemainingColumn(table_column=no_wrap_column.copy()),
            TextColumn("left", table_column=no_wrap_column.copy()),
            NoteColumn(table_column=Column()),
        )
        with Rich(*columns, console=console, expand=True) as rich:
            bar = rich.add_task(name, total=total, completed=done, amount=_format_amount(done, total, unit), rate="", note="")
            yield _BarTask(rich, bar, total, unit, done)


def _shorten_middle(name: str, max_length: int) -> str:
    """A long name, such as that of a folder, with its beginning and its end."""
    end = max(max_length, _LEAST_OF_A_NAME) // 2
    return name if len(name) <= max(max_length, _LEAST_OF_A_NAME) else f"{name[: end - 1]}…{name[-end:]}"


class _BarTask:
    def __init__(self, rich: Any, task: Any, total: int, unit: str, completed: int) -> None:  # noqa: ANN401 - rich's classes
        self._rich, self._task, self._total, self._unit, self._before = rich, task, total, unit, completed
        self._done, self._began = completed, time.monotonic()

    def advance(self, amount: int, note: str = "") -> None:
        self._done += amount
        rate = _format_rate(self._done - self._before, time.monotonic() - self._began, self._unit)
        fields = {"amount": _format_amount(self._done, self._total, self._unit), "rate": rate}
        self._rich.update(self._task, advance=amount, note=note, **fields)


_state = SimpleNamespace(silent=False)


def set_silent(silent: bool) -> None:
    """Set whether progress is hidden on this terminal from now on."""
    _state.silent = silent


def terminal_progress(rephrase: Callable[[str], str] = str) -> Progress:
    """Bars on a terminal, lines elsewhere, nothing after `set_silent`; of several processes only rank 0 reports."""
    if _state.silent or os.environ.get("RANK", "0") != "0":
        return Progress()
    return BarProgress(rephrase) if sys.stderr.isatty() else LineProgress(rephrase)

"""Spark itself: its session, its work beside the main thread, and what went wrong there in one line."""

import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar

from nst_data.errors import NstError, UsageError, first_line
from nst_data.progress import Progress

T = TypeVar("T")
_ANSWER_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 1.0
_UNSERVED_SECONDS = 15.0
_DEATH_SECONDS = 1.0
_CANCEL_EVERY_SECONDS, _CANCEL_SECONDS = 0.2, 10.0


def spark_session(master: str | None) -> Any:  # noqa: ANN401 - a SparkSession
    """The session that runs in this process, else a new one. `master` is Spark's; by default its own setting, else this machine.

    Raises UsageError without PySpark and for another master than that of the session that runs, NstError where Spark does not start.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise UsageError("`engine` spark: expected pyspark, found none; pip install pyspark, or leave out `engine`") from None
    if (running := _running()) is not None:
        if master and master != running.master:
            raise UsageError(
                f"`master` {master}: Spark already runs in this process with {running.master}; stop its session, or leave out `master`"
            )
        return SparkSession.getActiveSession() or SparkSession.builder.getOrCreate()
    builder = SparkSession.builder.appName("nst balance").config("spark.ui.showConsoleProgress", "false")
    if master:
        _check_that_it_answers(master)
        builder = builder.master(master)
    try:
        session = builder.getOrCreate()
    except Exception as error:
        if (said := spark_says(error)) is None:
            raise
        raise NstError(f"`engine` spark: Spark did not start ({said}); it needs Java 17 (JAVA_HOME) and a `master` that answers") from None
    session.sparkContext.setLogLevel("ERROR")
    return session


def _running() -> Any:  # noqa: ANN401 - a SparkContext, None where there is none
    from pyspark import SparkContext

    context = SparkContext._active_spark_context  # from the beginning of its start on
    return context if getattr(context, "_jsc", None) is not None else None


def _is_sign_of_death(error: BaseException | None) -> bool:
    """Whether an error may come of it that Spark's Java process has died."""
    return isinstance(error, OSError) or (isinstance(error, Exception) and spark_says(error) is not None)


def _has_died() -> bool:
    from pyspark import SparkContext

    process = getattr(SparkContext._gateway, "proc", None)  # none where another program began it
    if process is None:
        return False
    with suppress(subprocess.TimeoutExpired):
        process.wait(_DEATH_SECONDS)  # its connections end first
    return process.returncode is not None


def _check_that_it_answers(master: str) -> None:
    """Spark itself gives up after a minute and pages of Java's stack traces. Raises NstError."""
    if not re.fullmatch(r"spark://[^,]+:\d+(,[^,]+:\d+)*", master):
        return
    said = ""
    for place in master.removeprefix("spark://").split(","):  # several, of which one is at work
        host, _, port = place.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            said = getattr(error, "strerror", None) or first_line(error)
        else:
            return
    raise NstError(f"`master` {master}: it does not answer ({said}); start it, or correct its host and port")


def spark_says(error: Exception) -> str | None:
    """The first line of what went wrong in Spark; None for an error that is not its own."""
    if type(error).__module__.partition(".")[0] not in ("pyspark", "py4j"):
        return None
    messages: list[str] = []
    java = getattr(error, "java_exception", None)
    while java is not None:
        messages += [text] if (text := (java.getMessage() or "").strip()) else []
        java = java.getCause()
    messages = messages or [str(error).strip() or type(error).__name__]
    named = [text for text in messages if text.startswith("[")]  # such as [FAILED_READ_FILE…]
    # the innermost: where two tasks failed at once, that is around it as [STAGE_MATERIALIZATION_MULTIPLE_FAILURES]
    return (named or messages[:1])[-1].splitlines()[0]


class Work:
    """Where a selection is computed: at once, as Polars does."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give back what it took, when nothing more is to be computed."""

    def result(self, compute: Callable[[], T]) -> T:
        """What `compute` gives."""
        return compute()


class SparkWork(Work):
    """In threads, while the main one waits: there Ctrl-C would end a call to Spark, and not Spark's job.

    A session that begins within ends with it, so that a cluster gets its cores and memory back.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self._is_ours = progress, False

    def __enter__(self) -> Self:
        with suppress(ImportError):  # which `spark_session` says
            self._is_ours = _running() is None
        return self

    def close(self) -> None:
        """End a session that began within."""
        if self._is_ours and (running := _running()) is not None:
            with _death_is_no_matter():
                running.stop()

    def result(self, compute: Callable[[], T]) -> T:
        """What `compute` gives. Says so where no worker takes its tasks, for which Spark waits for ever."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(compute())
            except BaseException as error:
                future.set_exception(error)

        thread = Thread(target=run, name="spark", daemon=True)
        thread.start()
        try:
            self._wait(future)
        except BaseException:
            _cancel(thread)
            raise
        if _is_sign_of_death(future.exception()) and _has_died():
            raise NstError(
                "`engine` spark: Spark's Java process on this machine has died; if it was killed for lack of memory, change "
                "spark.driver.memory, and run this again"
            )
        return future.result()

    def _wait(self, future: "Future[T]") -> None:
        served = time.monotonic()
        is_said = False
        while not wait([future], _LOOK_EVERY_SECONDS).done:
            if not _is_unserved():
                served, is_said = time.monotonic(), False
            elif not is_said and time.monotonic() - served > _UNSERVED_SECONDS:
                is_said = True
                self._progress.say(_unserved())


def _is_unserved() -> bool:
    """Whether there are tasks, and no worker is at any of them."""
    running = _running()
    if running is None:
        return False
    stages = []
    with _death_is_no_matter():
        tracker = running.statusTracker()
        stages = [stage for number in tracker.getActiveStageIds() if (stage := tracker.getStageInfo(number))]
    return bool(stages) and not any(stage.numActiveTasks for stage in stages)


@contextmanager
def _death_is_no_matter() -> Iterator[None]:
    """For calls beside the work: where Spark's Java process has died, the work itself says so."""
    try:
        yield
    except Exception as error:
        if not _is_sign_of_death(error):
            raise


def _unserved() -> str:
    running = _running()
    memory, host = (running.getConf().get(f"spark.{name}") for name in ("executor.memory", "driver.host"))
    return (
        f"`engine` spark: no worker of {running.master} has taken a task for {_UNSERVED_SECONDS:.0f} s; still waiting. They may be busy, "
        f"have less memory than an executor requires (spark.executor.memory: {memory or '1g'}), or be unable to reach this machine "
        f"(spark.driver.host: {host})"
    )


def _cancel(thread: Thread) -> None:
    """End the jobs that a thread waits for, and those that it begins after these."""
    until = time.monotonic() + _CANCEL_SECONDS
    while thread.is_alive() and time.monotonic() < until:
        if (running := _running()) is not None:
            with _death_is_no_matter():
                running.cancelAllJobs()
        thread.join(_CANCEL_EVERY_SECONDS)

"""Spark itself: its session, running its work outside the main thread, and its errors in one line."""

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
_POLL_SECONDS = 1.0
_UNSERVED_SECONDS = 15.0
_EXIT_SECONDS, _LOST_EXIT_SECONDS = 1.0, 10.0  # the latter once a connection to Spark's Java process is lost
_CANCEL_EVERY_SECONDS, _CANCEL_SECONDS = 0.2, 10.0


def spark_session(master: str | None) -> Any:  # noqa: ANN401 - a SparkSession
    """The session running in this process, else a new one. `master` is Spark's; by default its own setting, else this machine.

    Raises UsageError without PySpark or if the running session has another master, NstError if Spark does not start.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise UsageError("`engine` spark: expected pyspark, found none; pip install pyspark, or leave out `engine`") from None
    if (running := _active_context()) is not None:
        if master and master != running.master:
            raise UsageError(
                f"`master` {master}: Spark already runs in this process with {running.master}; stop its session, or leave out `master`"
            )
        return SparkSession.getActiveSession() or SparkSession.builder.getOrCreate()
    builder = SparkSession.builder.appName("nst balance").config("spark.ui.showConsoleProgress", "false")
    if master:
        _check_reachable(master)
        builder = builder.master(master)
    try:
        session = builder.getOrCreate()
    except Exception as error:
        if (message := spark_message(error)) is None:
            raise
        raise NstError(
            f"`engine` spark: Spark did not start ({message}); it needs Java 17 (JAVA_HOME) and a `master` that answers"
        ) from None
    session.sparkContext.setLogLevel("ERROR")
    return session


def _active_context() -> Any:  # noqa: ANN401 - a SparkContext or None
    from pyspark import SparkContext

    context = SparkContext._active_spark_context  # set from the moment it begins to start
    return context if getattr(context, "_jsc", None) is not None else None


def _may_be_spark_death(error: BaseException | None) -> bool:
    """Whether an error may be due to the death of Spark's Java process."""
    return isinstance(error, OSError) or (isinstance(error, Exception) and spark_message(error) is not None)


def _has_spark_died(error: BaseException | None) -> bool:
    """Whether Spark's Java process ends, whose connections close before that: on a busy machine by seconds."""
    from pyspark import SparkContext

    process = getattr(SparkContext._gateway, "proc", None)  # absent if another program started it
    if process is None:
        return False
    is_py4j = type(error).__module__.partition(".")[0] == "py4j"
    has_lost_connection = isinstance(error, ConnectionError) or (is_py4j and not hasattr(error, "java_exception"))
    with suppress(subprocess.TimeoutExpired):
        process.wait(_LOST_EXIT_SECONDS if has_lost_connection else _EXIT_SECONDS)
    return process.returncode is not None


def _check_reachable(master: str) -> None:
    """Raise NstError if the master does not answer; Spark itself gives up after a minute and pages of Java stack traces."""
    if not re.fullmatch(r"spark://[^,]+:\d+(,[^,]+:\d+)*", master):
        return
    reason = ""
    for address in master.removeprefix("spark://").split(","):  # several, of which one is active
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
        else:
            return
    raise NstError(f"`master` {master}: it does not answer ({reason}); start it, or correct its host and port")


def spark_message(error: Exception) -> str | None:
    """The first line of what went wrong in Spark; None for an error that is not Spark's."""
    if type(error).__module__.partition(".")[0] not in ("pyspark", "py4j"):
        return None
    messages: list[str] = []
    exception = getattr(error, "java_exception", None)
    while exception is not None:
        messages += [text] if (text := (exception.getMessage() or "").strip()) else []
        exception = exception.getCause()
    messages = messages or [str(error).strip() or type(error).__name__]
    coded = [text for text in messages if text.startswith("[")]  # such as [FAILED_READ_FILE…]
    # the innermost: if two tasks failed at once, it is wrapped in [STAGE_MATERIALIZATION_MULTIPLE_FAILURES]
    return (coded or messages[:1])[-1].splitlines()[0]


class Runner:
    """Runs the computations of a selection: directly, as suits Polars."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release its resources once nothing more is to be computed."""

    def result(self, compute: Callable[[], T]) -> T:
        """The result of `compute`."""
        return compute()


class SparkRunner(Runner):
    """Runs computations in threads while the main thread waits: there, Ctrl-C would end a call to Spark, but not Spark's job.

    A session that starts within is stopped with it, so that a cluster gets its cores and memory back.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self._is_ours = progress, False

    def __enter__(self) -> Self:
        with suppress(ImportError):  # which `spark_session` reports
            self._is_ours = _active_context() is None
        return self

    def close(self) -> None:
        """Stop a session that started within."""
        if self._is_ours and (running := _active_context()) is not None:
            with _ignore_spark_death():
                running.stop()

    def result(self, compute: Callable[[], T]) -> T:
        """The result of `compute`. Warns if no worker takes its tasks, for which Spark waits forever."""
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
            _cancel_jobs(thread)
            raise
        if _may_be_spark_death(error := future.exception()) and _has_spark_died(error):
            raise NstError(
                "`engine` spark: Spark's Java process on this machine has died; if it was killed for lack of memory, change "
                "spark.driver.memory, and run this again"
            )
        return future.result()

    def _wait(self, future: "Future[T]") -> None:
        last_served = time.monotonic()
        has_warned = False
        while not wait([future], _POLL_SECONDS).done:
            if not _has_idle_tasks():
                last_served, has_warned = time.monotonic(), False
            elif not has_warned and time.monotonic() - last_served > _UNSERVED_SECONDS:
                has_warned = True
                self._progress.say(_no_worker_message())


def _has_idle_tasks() -> bool:
    """Whether there are tasks, but no worker is running any of them."""
    running = _active_context()
    if running is None:
        return False
    stages = []
    with _ignore_spark_death():
        tracker = running.statusTracker()
        stages = [stage for stage_id in tracker.getActiveStageIds() if (stage := tracker.getStageInfo(stage_id))]
    return bool(stages) and not any(stage.numActiveTasks for stage in stages)


@contextmanager
def _ignore_spark_death() -> Iterator[None]:
    """Ignore the death of Spark's Java process in auxiliary calls: the work itself reports it."""
    try:
        yield
    except Exception as error:
        if not _may_be_spark_death(error):
            raise


def _no_worker_message() -> str:
    running = _active_context()
    memory, host = (running.getConf().get(f"spark.{name}") for name in ("executor.memory", "driver.host"))
    return (
        f"`engine` spark: no worker of {running.master} has taken a task for {_UNSERVED_SECONDS:.0f} s; still waiting. They may be busy, "
        f"have less memory than an executor requires (spark.executor.memory: {memory or '1g'}), or be unable to reach this machine "
        f"(spark.driver.host: {host})"
    )


def _cancel_jobs(thread: Thread) -> None:
    """Cancel the jobs that a thread is waiting for, and those that it starts after these."""
    deadline = time.monotonic() + _CANCEL_SECONDS
    while thread.is_alive() and time.monotonic() < deadline:
        if (running := _active_context()) is not None:
            with _ignore_spark_death():
                running.cancelAllJobs()
        thread.join(_CANCEL_EVERY_SECONDS)

"""Accelerate's trackers: curves in TensorBoard and similar services, in addition to the log files."""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from uuid import uuid4

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from nst_data.cards.curves import METRICS_LOG
from nst_data.errors import NstError, UsageError, first_line
from nst_data.progress import Progress
from nst_train.device import this_process
from nst_train.settings import TrainSettings

NO_RUNS: Mapping[str, str] = MappingProxyType({})
DEFAULT_TRACKER, NO_TRACKER = "tensorboard", "none"
_RESUMABLE_TRACKERS = ("mlflow", "trackio", "wandb")  # they reopen the run of a resumed training
_REST_FACTOR = 20  # a failed tracker rests this many times as long as it took to fail


def resolve_trackers(requested: Sequence[str]) -> list[str]:
    """The trackers to use: the requested ones, or TensorBoard if it is installed. Raises UsageError for one that is not available."""
    known_names, installed = sorted(LOGGER_TYPE_TO_CLASS), [str(name) for name in get_available_trackers()]
    for name in requested:
        if name not in (*known_names, NO_TRACKER):
            raise UsageError(f"`tracker` {name}: expected one of {', '.join(known_names)}, or {NO_TRACKER}")
        if name not in (*installed, NO_TRACKER):
            available = ", ".join(installed) or NO_TRACKER
            raise UsageError(f"`tracker` {name}: its package is not installed; install it, or use one of those installed: {available}")
    if not requested:
        return [DEFAULT_TRACKER] * (DEFAULT_TRACKER in installed)
    return [name for name in dict.fromkeys(requested) if name != NO_TRACKER]


class Trackers:
    """The open trackers of one training; closing them keeps what was logged. Only the main process has any.

    A failing tracker does not stop the training: it is reported once, and the log files have every number. `runs` goes into checkpoints:
    the name of this training for services that let us choose one, and, by tracker, the names that services chose themselves.

    Accelerate's `init_trackers` and `end_training` assume a process that trains once: they use one project for all trackers, which is also
    TensorBoard's folder, and end the process group, which the next generation of a recipe needs.
    """

    def __init__(
        self, trackers: Sequence[GeneralTracker] = (), runs: Mapping[str, str] = NO_RUNS, progress: Progress | None = None
    ) -> None:
        self._trackers, self.runs, self._progress = list(trackers), dict(runs), progress or Progress()
        self._failed: set[str] = set()
        self._rests_until: dict[str, float] = {}

    @classmethod
    def start(
        cls,
        names: Sequence[str],
        ref: str,
        digest: str,
        runs: Mapping[str, str],
        settings: TrainSettings,
        folder: Path,
        start_step: int,
        progress: Progress | None = None,
    ) -> Self:
        """Start trackers for the training `ref` of request `digest`; trackers that write files write them in `folder`.

        A training resumed after step `start_step` continues the `runs` of its checkpoint, or a new one if a service does not reopen its
        run. Raises NstError if a tracker cannot be started.
        """
        if not this_process().is_main_process:
            return cls()
        by_digest = start_step > 0 and not runs  # as before checkpoints kept `runs`
        started = cls(runs={"run": digest[:16] if by_digest else _new_id(), **runs}, progress=progress)
        try:
            for name in names:
                started._start(name, ref, settings, folder, start_step)
        except BaseException:
            started.close()
            raise
        return started

    def _start(self, name: str, ref: str, settings: TrainSettings, folder: Path, start_step: int) -> None:
        """Start one tracker, in its existing run if there is one."""
        refusal = ""
        try:
            try:
                tracker = _start_tracker(name, ref, self.runs, settings, folder, start_step)
            except Exception as error:
                if not start_step or name not in _RESUMABLE_TRACKERS:
                    raise
                refusal = first_line(error)
                self.runs.pop(name, None)
                if name != "mlflow":
                    self.runs[name] = _new_id()
                tracker = _start_tracker(name, ref, self.runs, settings, folder, start_step)
        except Exception as error:  # each service refuses in its own way, for example if nobody is logged in
            raise NstError(f"`tracker` {name}: cannot be started ({first_line(error)}); fix that, or use `tracker` {NO_TRACKER}") from error
        self._trackers.append(tracker)
        if name == "mlflow":  # MLflow names its runs itself
            self.runs[name] = tracker.tracker.info.run_id
        if refusal:
            self._progress.say(f"`tracker` {name}: cannot reopen the run of {ref} ({refusal}); continuing in a new run")

    def log(self, values: dict[str, float], step: int) -> None:
        """Log numbers by name. A tracker that takes long to fail, such as one waiting for its server, is called less often."""
        for tracker in self._trackers:
            began = time.monotonic()
            if began < self._rests_until.get(tracker.name, began):
                continue
            try:
                with redirect_stdout(sys.stderr):
                    tracker.log(values, step=step)
            except Exception as error:
                now = time.monotonic()
                self._rests_until[tracker.name] = now + _REST_FACTOR * max(now - began - 1, 0)
                self._report_failure(tracker.name, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish all trackers."""
        for tracker in self._trackers:
            try:
                _finish(tracker)
            except Exception as error:
                self._report_failure(tracker.name, error)

    def _report_failure(self, name: str, error: Exception) -> None:
        if name not in self._failed:
            self._failed.add(name)
            self._progress.say(f"`tracker` {name}: failed ({first_line(error)}); training continues, {METRICS_LOG} has every number")


def _new_id() -> str:
    return uuid4().hex[:16]


def _finish(tracker: GeneralTracker) -> None:
    with redirect_stdout(sys.stderr):
        if tracker.name != "trackio":
            tracker.finish()
            return
        # this also clears the package's reference to the run, which would otherwise be finished again when the process ends
        import_module(tracker.name).finish()


def _start_tracker(name: str, ref: str, runs: Mapping[str, str], settings: TrainSettings, folder: Path, start_step: int) -> GeneralTracker:
    kind = LOGGER_TYPE_TO_CLASS[name]
    project = name if name == DEFAULT_TRACKER else ref.partition("@")[0]  # TensorBoard's project is a folder
    place = [folder] if kind.requires_logging_directory else []
    with redirect_stdout(sys.stderr):  # some of them print a greeting, and standard output is for a command's result
        started = kind(project, *place, **_resume_options(name, ref, runs, start_step))
        if hasattr(started, "start"):  # older versions of Accelerate start a tracker when it is created
            started.start()
        # TensorBoard would store them under the current time; an existing MLflow run has them already and does not let them change
        if name != DEFAULT_TRACKER and not (name == "mlflow" and name in runs):
            try:
                started.store_init_configuration(_flat_settings(settings))
            except BaseException:
                with suppress(Exception):
                    _finish(started)
                raise
    return started


def _resume_options(name: str, ref: str, runs: Mapping[str, str], start_step: int) -> dict[str, Any]:
    """Arguments that make a resumed training continue its curves: TensorBoard drops later points, the others reopen the run."""
    if name == DEFAULT_TRACKER:
        return {"purge_step": start_step + 1} if start_step else {}
    run_id = runs.get(name, runs["run"])
    if name == "wandb":
        return {"name": ref, "id": run_id, "resume": "allow"}
    if name == "trackio":  # Trackio identifies a run by its name
        return {"name": f"{ref}-{run_id[:6]}", "resume": "allow"}
    if name == "mlflow":
        return {"run_id": run_id} if name in runs else {"run_name": ref}
    return {}


def _flat_settings(settings: TrainSettings) -> dict[str, Any]:
    """Settings as flat values, with only the name of a model folder, since a tracker may be public."""
    values = settings.model_dump(mode="json") | {"model": settings.model.rpartition("/")[2]}
    return {**{name: value for name, value in values.items() if not isinstance(value, dict)}, **values["noise"]}

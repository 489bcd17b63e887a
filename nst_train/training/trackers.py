"""Accelerate's trackers: the curves of a training in TensorBoard and its like. Beside the log files, never in place of them."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from uuid import uuid4

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from nst_data.errors import NstError, UsageError, first_line
from nst_train.device import this_process
from nst_train.settings import TrainSettings

NO_RUNS: Mapping[str, str] = MappingProxyType({})
DEFAULT_TRACKER, NO_TRACKER = "tensorboard", "none"


def check_trackers(asked: Sequence[str]) -> list[str]:
    """The trackers to use: those asked for, by default TensorBoard where it is installed. Raises UsageError for one that cannot be had."""
    known, installed = sorted(LOGGER_TYPE_TO_CLASS), [str(name) for name in get_available_trackers()]
    for name in asked:
        if name not in (*known, NO_TRACKER):
            raise UsageError(f"`tracker` {name}: expected one of {', '.join(known)}, or {NO_TRACKER}")
        if name not in (*installed, NO_TRACKER):
            there = ", ".join(installed) or NO_TRACKER
            raise UsageError(f"`tracker` {name}: its package is not installed; install it, or use one of those installed: {there}")
    if not asked:
        return [DEFAULT_TRACKER] * (DEFAULT_TRACKER in installed)
    return [name for name in dict.fromkeys(asked) if name != NO_TRACKER]


class Trackers:
    """Open trackers of one training; closed they keep what they got. Only the main process has any.

    Accelerate's own `init_trackers` and `end_training` are of a process that trains once: one project for all trackers, TensorBoard's
    folder too, and the process group ends with them, which the next generation of a recipe needs.
    """

    def __init__(self, trackers: Sequence[GeneralTracker] = (), runs: Mapping[str, str] = NO_RUNS) -> None:
        self._trackers, self.runs = list(trackers), dict(runs)

    @classmethod
    def start(cls, names: Sequence[str], ref: str, runs: Mapping[str, str], settings: TrainSettings, folder: Path, begun: int) -> Self:
        """Start trackers for the training `ref`; those that write files do so below `folder`.

        A training that resumes after step `begun` goes on in the `runs` that its checkpoint kept: where a service knows it.
        """
        if not this_process().is_main_process:
            return cls()
        trackers, runs = [], {"run": uuid4().hex[:16], **runs}
        for name in names:
            try:
                tracker = _started(name, ref, runs, settings, folder, begun)
            except Exception as error:  # each service has its own ways to refuse, such as an account that is not logged in
                raise NstError(
                    f"`tracker` {name}: cannot be started ({first_line(error)}); fix that, or use `tracker` {NO_TRACKER}"
                ) from error
            if name == "mlflow":  # which names its runs itself
                runs[name] = tracker.tracker.info.run_id
            trackers.append(tracker)
        return cls(trackers, runs)

    def log(self, values: dict[str, float], step: int) -> None:
        """Hand numbers on, by name."""
        with redirect_stdout(sys.stderr):
            for tracker in self._trackers:
                tracker.log(values, step=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with redirect_stdout(sys.stderr):
            for tracker in self._trackers:
                _finish(tracker)


def _finish(tracker: GeneralTracker) -> None:
    if tracker.name != "trackio":
        tracker.finish()
        return
    import trackio

    trackio.finish()  # type: ignore[no-untyped-call] # the run and its own note of it: else the end of the process would finish it once more, on standard output


def _started(tracker: str, ref: str, runs: Mapping[str, str], settings: TrainSettings, folder: Path, begun: int) -> GeneralTracker:
    kind = LOGGER_TYPE_TO_CLASS[tracker]
    project = tracker if tracker == DEFAULT_TRACKER else ref.partition("@")[0]  # TensorBoard's is a folder
    place = [folder] if kind.requires_logging_directory else []
    with redirect_stdout(sys.stderr):  # where some of them greet; standard output is a command's result
        started = kind(project, *place, **_going_on(tracker, ref, runs, begun))
        if hasattr(started, "start"):  # in older Accelerate, making one starts it
            started.start()
        if tracker != DEFAULT_TRACKER:  # TensorBoard would write them under the time of day
            started.store_init_configuration(_shown(settings))
    return started


def _going_on(tracker: str, ref: str, runs: Mapping[str, str], begun: int) -> dict[str, Any]:
    """What makes a resumed training continue its curves: TensorBoard forgets later points, the others open the same run."""
    if tracker == DEFAULT_TRACKER:
        return {"purge_step": begun + 1} if begun else {}
    if tracker == "wandb":
        return {"name": ref, "id": runs["run"], "resume": "allow"}
    if tracker == "trackio":  # where a run is known by its name
        return {"name": f"{ref}-{runs['run'][:6]}", "resume": "allow"}
    if tracker == "mlflow":
        return {"run_id": runs[tracker]} if tracker in runs else {"run_name": ref}
    return {}


def _shown(settings: TrainSettings) -> dict[str, Any]:
    """Settings as flat values; of a folder only its name, since a tracker may be public."""
    shown = settings.model_dump(mode="json") | {"model": settings.model.rpartition("/")[2]}
    return {**{name: value for name, value in shown.items() if not isinstance(value, dict)}, **shown["noise"]}

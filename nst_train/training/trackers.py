"""Accelerate's trackers: the curves of a training in TensorBoard and its like. Beside the log files, never in place of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from nst_data.errors import NstError, UsageError, first_line
from nst_train.device import this_process
from nst_train.settings import TrainSettings

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
    """Open trackers of one training; closed they keep what they got. Only the main process has any."""

    def __init__(self, trackers: Sequence[GeneralTracker] = ()) -> None:
        self._trackers = list(trackers)

    @classmethod
    def start(cls, names: Sequence[str], ref: str, digest: str, settings: TrainSettings, folder: Path, begun: int) -> Self:
        """Start trackers for the training `ref`, or let them go on after step `begun`; those that write files do so below `folder`."""
        if not this_process().is_main_process:
            return cls()
        trackers = []
        for name in names:
            try:
                trackers.append(_started(name, ref, digest, settings, folder, begun))
            except Exception as error:  # each service has its own ways to refuse, such as an account that is not logged in
                raise NstError(
                    f"`tracker` {name}: cannot be started ({first_line(error)}); fix that, or use `tracker` {NO_TRACKER}"
                ) from error
        return cls(trackers)

    def log(self, values: dict[str, float], step: int) -> None:
        """Hand numbers on, by name."""
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers:
            tracker.finish()


def _started(tracker: str, ref: str, digest: str, settings: TrainSettings, folder: Path, begun: int) -> GeneralTracker:
    kind = LOGGER_TYPE_TO_CLASS[tracker]
    project = tracker if tracker == DEFAULT_TRACKER else ref.partition("@")[0]  # TensorBoard's is a folder
    place = [folder] if kind.requires_logging_directory else []
    started = kind(project, *place, **_going_on(tracker, ref, digest, begun))
    if hasattr(started, "start"):  # in older Accelerate, making one starts it
        started.start()
    if tracker != DEFAULT_TRACKER:  # which would write them under the time of day, anew at each start
        started.store_init_configuration(_shown(settings))
    return started


def _going_on(tracker: str, ref: str, digest: str, begun: int) -> dict[str, Any]:
    """What makes a resumed training continue its curves: TensorBoard forgets later points, Weights & Biases opens the same run."""
    if tracker == DEFAULT_TRACKER:
        return {"purge_step": begun + 1} if begun else {}
    if tracker == "wandb":
        return {"name": ref, "id": digest[:16], "resume": "allow"}
    return {}


def _shown(settings: TrainSettings) -> dict[str, Any]:
    """Settings as flat values; of a folder only its name, since a tracker may be public."""
    shown = settings.model_dump(mode="json") | {"model": settings.model.rpartition("/")[2]}
    return {**{name: value for name, value in shown.items() if not isinstance(value, dict)}, **shown["noise"]}

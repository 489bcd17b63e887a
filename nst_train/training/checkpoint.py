"""Checkpoints of network, averaged weights, optimizer and position, as safetensors and JSON. A checkpoint is either complete or absent.

No random generator state is saved: order, noise and dropout are functions of (seed, step).
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from nst_data.errors import NstError, first_line
from nst_data.store.files import fsync_folder, fsync_tree, write_text
from nst_train.networks.weights import describe_differences
from nst_train.settings import TrainSettings

EPOCH_END_SECONDS = 60.0
_TEMPORARY_PREFIX = ".step-under-way"


@dataclass(frozen=True)
class ResumePoint:
    """What a training resumes from: steps done, notes of its log and validation, and the best averaged weights if it is validated."""

    step: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    best_weights: dict[str, Tensor] | None = None


class CheckpointClock:
    """Tells when a checkpoint is due: every `minutes`, and at an epoch's end if the last one is a minute old (epochs can last a second)."""

    def __init__(self, minutes: float) -> None:
        self._seconds, self._saved = 60 * minutes, time.monotonic()

    def is_due(self, ends_epoch: bool) -> bool:
        """Whether a checkpoint is due after a step, which `ends_epoch` or not."""
        return time.monotonic() - self._saved >= (min(EPOCH_END_SECONDS, self._seconds) if ends_epoch else self._seconds)

    def restart(self) -> None:
        """Start counting again, after a checkpoint was written."""
        self._saved = time.monotonic()


def save_checkpoint(
    folder: Path,
    step: int,
    network: nn.Module,
    averaged: nn.Module,
    optimizer: Optimizer,
    notes: dict[str, Any] | None = None,
    best_weights: dict[str, Tensor] | None = None,
    max_checkpoints: int = 1,
) -> None:
    """Write `folder`/step-N with a single rename, then delete all but the newest `max_checkpoints` checkpoints.

    Only one process may do so in a folder at a time. A partial checkpoint that a killed process left, which is as large as a whole one, is
    deleted first.
    """
    target, fresh = folder / f"step-{step:09d}", folder / f"{_TEMPORARY_PREFIX}.{os.getpid()}"
    for partial in folder.glob(".step-*"):
        shutil.rmtree(partial, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        _save_tensors(network.state_dict(), fresh / "network.safetensors")
        _save_tensors(averaged.state_dict(), fresh / "averaged.safetensors")
        if best_weights is not None:
            _save_tensors(best_weights, fresh / "best.safetensors")
        tensors, numbers = _flatten_state(optimizer.state_dict()["state"])
        _save_tensors(tensors, fresh / "optimizer.safetensors")
        position = {
            "step": step,
            "optimizer": numbers,
            "groups": _group_settings(optimizer),
            "notes": notes or {},
            "has_best": best_weights is not None,
        }
        write_text(fresh / "position.json", json.dumps(position, default=_as_number))
        fsync_tree(fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    fsync_folder(folder)
    for older in _list_checkpoints(folder)[:-max_checkpoints]:
        shutil.rmtree(older)


def check_can_be_saved(optimizer: Optimizer) -> None:
    """Raises NstError if a checkpoint cannot hold the state of `optimizer`, which must have taken a step."""
    tensors, numbers = _flatten_state(optimizer.state_dict()["state"])
    save(_to_cpu(tensors))
    json.dumps({"optimizer": numbers, "groups": _group_settings(optimizer)}, default=_as_number)


def _group_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The settings of each parameter group."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.state_dict()["param_groups"]]


def _as_number(value: object) -> float:
    """The value of a one-element tensor, such as the step count of a LAMB group. Raises NstError for other values that JSON cannot hold."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    raise NstError(f"the optimizer keeps a {type(value).__name__}, which a checkpoint cannot hold")


def load_checkpoint(
    folder: Path, network: nn.Module, averaged: nn.Module, optimizer: Optimizer, report: Callable[[str], None] = lambda _: None
) -> ResumePoint:
    """Load the newest intact checkpoint; damaged ones are reported and deleted. Raises NstError if it belongs to another network."""
    for newest in reversed(_list_checkpoints(folder)):
        try:
            position = json.loads((newest / "position.json").read_text("utf-8"))
            names = ["network", "averaged", "optimizer"] + ["best"] * position["has_best"]
            saved = {name: load_file(newest / f"{name}.safetensors") for name in names}
        except (SafetensorError, FileNotFoundError, ValueError, KeyError) as error:
            report(f"the checkpoint {newest.name} is damaged ({first_line(error)}); resuming from the previous one, or from the start")
            shutil.rmtree(newest, ignore_errors=True)
            continue
        _check_same_network(newest.name, saved["network"], network)
        network.load_state_dict(saved["network"])
        averaged.load_state_dict(saved["averaged"])
        state = _unflatten_state(saved["optimizer"], position["optimizer"])
        groups = [group | stored for group, stored in zip(optimizer.state_dict()["param_groups"], position["groups"], strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        _match_memory_formats(optimizer)
        return ResumePoint(int(position["step"]), position["notes"], saved.get("best"))
    return ResumePoint()


def _match_memory_formats(optimizer: Optimizer) -> None:
    """Give per-weight state, such as momentum, the memory format of its weight; with another format, sums round differently."""
    for weight, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                entries[name] = torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)


def last_checkpoint_step(folder: Path) -> int | None:
    """The step of the newest checkpoint, or None if there is none."""
    steps = [int(path.name.removeprefix("step-")) for path in _list_checkpoints(folder)]
    return steps[-1] if steps else None


def is_finite(*networks: nn.Module) -> bool:
    """Whether every weight and statistic is a finite number."""
    tensors = [tensor for network in networks for tensor in network.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def divergence_error(ref: str, folder: Path, step: int, subject: str, learning_rate: float | None, settings: TrainSettings) -> NstError:
    """The error for a training whose numbers are no longer finite from `step` on, with the `learning_rate` at that point if it is known."""
    last_step = last_checkpoint_step(folder)
    last_good = "there is no checkpoint from before" if last_step is None else f"the last good checkpoint is that of step {last_step:,}"
    warmup, smaller = "warmup_epochs" if settings.warmup_steps is None else "warmup_steps", "a smaller " if settings.clip_grad else ""
    rate = "" if learning_rate is None else f", at a learning rate of {learning_rate:.3g}"
    return NstError(
        f"{ref}, step {step:,}: {subject} no longer finite{rate}; {last_good}. "
        f"Try a lower `learning_rate`, a longer `{warmup}`, or {smaller}`clip_grad`, "
        f"after `store.remove({ref!r})`, which frees its number"
    )


def _check_same_network(name: str, saved: dict[str, Tensor], network: nn.Module) -> None:
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    actual = {key: tuple(tensor.shape) for key, tensor in saved.items()}
    if actual == expected:
        return
    missing, unexpected = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
    reshaped = {key: (actual[key], expected[key]) for key in sorted(expected.keys() & actual.keys()) if actual[key] != expected[key]}
    raise NstError(
        f"checkpoint {name} belongs to another network: {describe_differences(missing, unexpected, reshaped)}. "
        "Use the timm version this training was started with, or `store.remove(...)` it and start over"
    )


def _list_checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(_to_cpu(tensors), path)


def _to_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _flatten_state(state: dict[int, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split optimizer state into tensors and numbers, both keyed by `parameter.name`."""
    tensors, numbers = {}, {}
    for parameter, entries in state.items():
        for name, value in entries.items():
            key = f"{parameter}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                numbers[key] = value
    return tensors, numbers


def _unflatten_state(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = value
    return state

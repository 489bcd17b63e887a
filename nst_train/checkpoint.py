"""Checkpoints: network, averaged weights, optimizer and position; safetensors and JSON, each whole or not there.

No generator's state is kept: order, noise and dropout are functions of (seed, step).
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from nst_data.files import fsync_folder, fsync_tree, write_text


def save_checkpoint(folder: Path, step: int, network: nn.Module, averaged: nn.Module, optimizer: Optimizer) -> None:
    """Write `folder`/step-N by one rename, then drop older ones."""
    target = folder / f"step-{step:09d}"
    fresh = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        _save_tensors(network.state_dict(), fresh / "network.safetensors")
        _save_tensors(averaged.state_dict(), fresh / "averaged.safetensors")
        tensors, numbers = _flat(optimizer.state_dict()["state"])
        _save_tensors(tensors, fresh / "optimizer.safetensors")
        groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.state_dict()["param_groups"]]
        write_text(fresh / "position.json", json.dumps({"step": step, "optimizer": numbers, "groups": groups}))
        fsync_tree(fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    fsync_folder(folder)
    for older in _checkpoints(folder)[:-1]:
        shutil.rmtree(older)


def load_checkpoint(folder: Path, network: nn.Module, averaged: nn.Module, optimizer: Optimizer) -> int:
    """Load the newest checkpoint; the number of steps done, 0 where there is none."""
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        return 0
    newest = checkpoints[-1]
    network.load_state_dict(load_file(newest / "network.safetensors"))
    averaged.load_state_dict(load_file(newest / "averaged.safetensors"))
    position = json.loads((newest / "position.json").read_text("utf-8"))
    state = _nested(load_file(newest / "optimizer.safetensors"), position["optimizer"])
    groups = [group | saved for group, saved in zip(optimizer.state_dict()["param_groups"], position["groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return int(position["step"])


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _flat(state: dict[int, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimizer state as tensors and numbers by `parameter.name`."""
    tensors, numbers = {}, {}
    for parameter, entries in state.items():
        for name, value in entries.items():
            key = f"{parameter}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                numbers[key] = value
    return tensors, numbers


def _nested(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = value
    return state

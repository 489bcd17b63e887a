"""The same training on one process and on two."""

import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from nst_data.store.store import Store

pytestmark = pytest.mark.slow
NST = ["-c", "from nst_cli.main import run; run()"]


def trained(tiny_store, root, processes, *options):
    """The weights that so many processes make, and where the untrained network was."""
    store, labeled, _ = tiny_store
    shutil.copytree(store.root, root)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "29561", "--no-python", sys.executable]
    settings = {
        **{"model": "test_resnet", "image-size": 16, "epochs": 2, "batch-size": 4, "ratio": 2, "warmup-epochs": 0, "workers": 0},
        **{"optimizer": "momentum", "learning-rate": 1.0, "magnitude": 5, "dropout": 0.3, "stochastic-depth": 0.3, "ema-decay": 0},
    }
    if "--steps" in options:
        settings = {name: value for name, value in settings.items() if name not in ("epochs", "warmup-epochs")}
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    pseudo = ["--pseudo", "tiny@gen-1.1", "--name", "pair", "--store", str(root)]
    command = [sys.executable, *launcher, *NST, "train", "--labeled", str(labeled), *pseudo, *words, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return load_file(Store(root).open("pair@gen-0").folder / "model.safetensors")


def test_two_processes_train_what_one_trains(tiny_store, tmp_path):
    one = trained(tiny_store, tmp_path / "one", 1)
    two = trained(tiny_store, tmp_path / "two", 2, "--sync-batch-norm")
    apart = trained(tiny_store, tmp_path / "apart", 2)
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    # batch-norm over each process's own images is another training: the agreement above is no matter of course
    assert max(float((apart[name] - one[name]).abs().max()) for name in one if one[name].is_floating_point()) > 1e-2


def test_two_processes_finetune_what_one_finetunes_by_the_preset_with_mixed_images_and_weighed_classes(tiny_store, tmp_path):
    """Images are mixed in circles that are never spread over processes; batch-norm is frozen, so that nothing hangs on who has which."""
    words = [
        "--preset",
        "pretrained",
        "--start-from",
        "tiny-teacher@gen-0",
        "--steps",
        "6",
        "--warmup-steps",
        "2",
        "--label-smoothing",
        "0.1",
    ]
    words += ["--mixup", "0.4", "--cutmix", "1.0", "--class-weights", "balanced"]
    one, two = (trained(tiny_store, tmp_path / str(number), number, *words) for number in (1, 2))
    start = load_file(tiny_store[0].open("tiny-teacher").folder / "model.safetensors")
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert float((one["fc.weight"] - start["fc.weight"]).abs().max()) > 1e-3

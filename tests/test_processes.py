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


PROGRAM = """
import sys
from torch import nn
from nst_data import Store, open_source
from nst_train import RunSettings, TrainSettings, register_network, train

class WithSpareHead(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body, self.spare, self.fc, self.seen = nn.Linear(3 * 16 * 16, 8), nn.Linear(8, 5), nn.Linear(8, classes), 0

    def forward(self, images):
        hidden = self.body(images.flatten(1)).relu()
        self.seen += self.training
        is_used = sys.argv[3] == "in the first step" and self.seen == 1
        return self.fc(hidden) + (self.spare(hidden).sum() if is_used else 0)

register_network("own_spare", WithSpareHead, image_size=16)
settings = TrainSettings(
    model="own_spare", image_size=16, epochs=2, batch_size=4, accumulate=2, optimizer="momentum", learning_rate=1.0, warmup_epochs=0,
    noise={"operations": 0, "dropout": 0, "stochastic_depth": 0},
)
labeled = open_source(sys.argv[2], labeled=True)
train(Store(sys.argv[1]), "spare", labeled, settings, run=RunSettings(workers=0))
"""


def with_spare_head(tiny_store, tmp_path, processes, used):
    """What comes of training a network with a head that is used `never`, or `in the first step`."""
    (tmp_path / "program.py").write_text(PROGRAM)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "29562"]
    command = [sys.executable, *launcher, str(tmp_path / "program.py"), str(tmp_path / f"{processes}"), str(tiny_store[1]), used]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_two_processes_train_a_network_with_weights_that_no_image_passes(tiny_store, tmp_path):
    weights = {}
    for processes in (1, 2):
        done = with_spare_head(tiny_store, tmp_path, processes, "never")
        assert done.returncode == 0, done.stderr
        weights[processes] = load_file(Store(tmp_path / f"{processes}").open("spare@gen-0").folder / "model.safetensors")
    for name, expected in weights[1].items():
        torch.testing.assert_close(weights[2][name], expected, rtol=1e-4, atol=1e-5)


def test_weights_that_images_pass_in_some_steps_only_are_one_line_in_several_processes(tiny_store, tmp_path):
    done = with_spare_head(tiny_store, tmp_path, 2, "in the first step")
    assert done.returncode != 0
    assert "NstError: own_spare: some weights get a gradient in some steps only" in done.stderr
    assert "RuntimeError" not in done.stderr

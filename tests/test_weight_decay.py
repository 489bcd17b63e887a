"""Which weights are decayed: all but normalization, as in the released code, or neither biases nor other vectors."""

import pytest
import timm
import torch
from conftest import TINY
from safetensors.torch import load_file
from torch import nn
from watched import RecordingProgress
from wording import mentions

from nst_data.errors import UsageError
from nst_data.sources import open_source
from nst_train.networks.models import create_network
from nst_train.networks.own_networks import register_network
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.optimizer import create_optimizer
from nst_train.training.schedule import Schedule
from nst_train.training.train import train


def decayed(network, **changes):
    """The names of what an optimizer decays, and of what it leaves alone."""
    settings = TrainSettings(model="x", **changes)
    optimizer = create_optimizer(network, settings, Schedule.of(settings, 1_281_167))
    decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert {*decay.values()} == {0.0, settings.weight_decay}
    names = {name for name, weight in network.named_parameters() if decay[id(weight)]}
    return names, {name for name, _ in network.named_parameters()} - names


@pytest.fixture(scope="module")
def b0():
    with torch.device("meta"):
        return timm.create_model("tf_efficientnet_b0", num_classes=1000)


def test_all_of_b0_but_its_49_batch_norms_is_decayed_as_in_the_released_code(b0):
    """Sixteen blocks: depthwise, two of squeeze-excite, projection, in all but the first an expansion; stem, head, classifier."""
    kernels, biases, norms = 1 + 4 + 15 * 5 + 1 + 1, 16 * 2 + 1, 1 + 2 + 15 * 3 + 1
    names, left = decayed(b0)
    assert (len(names), len(left)) == (kernels + biases, 2 * norms) == (115, 98)
    assert {name.rpartition(".")[0].rpartition(".")[2][:2] for name in left} == {"bn"}
    assert {"classifier.bias", "blocks.6.0.se.conv_reduce.bias", "blocks.6.0.se.conv_expand.bias"} <= names


def test_the_33_biases_of_b0_are_left_alone_where_weights_alone_are_decayed(b0):
    names, left = decayed(b0, weight_decay_on="weights")
    all_of_them, _ = decayed(b0)
    assert {name.rpartition(".")[2] for name in all_of_them - names} == {"bias"}
    assert (len(all_of_them - names), len(left)) == (33, 98 + 33)


def test_of_a_vit_layer_norms_are_no_more_decayed_than_batch_norms():
    network = timm.create_model("test_vit", num_classes=3)
    names, left = decayed(network)
    assert {"cls_token", "pos_embed", "head.bias", "blocks.0.attn.qkv.bias"} <= names
    assert left
    assert all("norm" in name for name in left)
    assert decayed(network, weight_decay_on="weights")[0] == {name for name in names if name.endswith("weight")}


class OtherName(nn.BatchNorm2d):
    """Normalizes, whatever it is called."""


@pytest.mark.parametrize(("on", "bias"), [("all", 1 - 0.5 * 0.25), ("weights", 1.0)])
def test_a_decayed_bias_shrinks_by_rate_times_decay(on, bias):
    """Momentum SGD without a gradient of the loss: half l2 of a bias of 1, weighed by 0.25, at a rate of 0.5."""
    network = nn.Sequential(nn.Conv2d(3, 2, 1), OtherName(2), nn.Flatten(), nn.Linear(2, 2))
    settings = TrainSettings(model="x", optimizer="momentum", momentum=0, weight_decay=0.25, weight_decay_on=on, learning_rate=0.5)
    optimizer = create_optimizer(network, settings, Schedule.of(settings.model_copy(update={"batch_size": 256}), 256))
    for weight in network.parameters():
        nn.init.ones_(weight)
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    shrunk = {name: weight.flatten()[0].item() for name, weight in network.named_parameters()}
    assert shrunk == {"0.weight": 0.875, "0.bias": bias, "1.weight": 1.0, "1.bias": 1.0, "3.weight": 0.875, "3.bias": bias}


def test_each_layer_learns_by_a_factor_less_than_the_one_after_it():
    settings = TrainSettings(
        model="test_vit", image_size=16, optimizer="adamw", weight_decay_on="weights", layer_decay=0.5, warmup_epochs=0
    )
    network = create_network(settings, 3)
    optimizer = create_optimizer(network, settings, Schedule.of(settings, 10))
    scale = {weight: group["lr_scale"] for group in optimizer.param_groups for weight in group["params"]}
    names = dict(network.named_parameters())
    depth = len(network.blocks)
    assert scale[names["head.weight"]] == 1
    assert [scale[names[f"blocks.{block}.mlp.fc1.weight"]] for block in range(depth)] == [0.5 ** (depth - block) for block in range(depth)]
    assert scale[names["patch_embed.proj.weight"]] == 0.5 ** (depth + 1)
    decayed = {weight: group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert (decayed[names["head.bias"]], decayed[names["head.weight"]]) == (0, settings.weight_decay)


def test_a_layers_factor_reaches_its_weights(tiny_store):
    """A step of plain gradient descent: the stem moves by its factor of what it moves without layer decay; the last layer as much."""
    store, labeled, _ = tiny_store
    images, moved = open_source(labeled, labeled=True), {}
    values = TINY | {
        "optimizer": "momentum",
        "momentum": 0.0,
        "learning_rate": 1.0,
        "warmup_epochs": 0,
        "weight_decay": 0.0,
        "ema_decay": 0.0,
    }
    values |= {"weight_decay_on": "weights", "epochs": 1, "batch_size": 12, "start": "tiny-teacher@gen-0"}
    before = load_file(store.open("tiny-teacher").folder / "model.safetensors")
    for factor in (None, 0.5):
        version = train(store, f"layers-{factor}", images, TrainSettings(**values, layer_decay=factor), run=RunSettings(workers=0))
        after = load_file(version.folder / "model.safetensors")
        moved[factor] = {name: after[name] - before[name] for name in ("conv1.0.weight", "fc.weight")}
    assert moved[None]["fc.weight"].abs().max() > 0
    torch.testing.assert_close(moved[0.5]["fc.weight"], moved[None]["fc.weight"])
    ratio = moved[0.5]["conv1.0.weight"].norm() / moved[None]["conv1.0.weight"].norm()
    assert ratio == pytest.approx(0.5**5, rel=1e-3)  # stem, four stages, last layer


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"model": "own_flat"}, True),
        ({"model": "own_flat", "layer_decay": 1.0}, False),
        ({"start": "tiny-teacher@gen-0", "freeze": 0.99, "freeze_by": "layers"}, True),  # of the last layer alone
        ({}, False),
    ],
)
def test_layer_decay_that_changes_nothing_is_said_in_one_line(tiny_store, capfd, changes, warned):
    register_network("own_flat", lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, classes)), image_size=16)
    store, labeled, _ = tiny_store
    values = (
        TINY
        | {"weight_decay_on": "weights", "layer_decay": 0.5, "epochs": 0.5, "noise": {"operations": 0, "stochastic_depth": 0}}
        | changes
    )
    said = RecordingProgress()
    train(store, "flat", open_source(labeled, labeled=True), TrainSettings(**values), run=RunSettings(workers=0), progress=said)
    lines = [line for line in said.lines if "layer_decay" in line]
    assert len(lines) == warned
    assert all(mentions(line, "flat@gen- … warning: `layer_decay` changes nothing … remove it") for line in lines)
    assert "Layer-wise lr decay" not in capfd.readouterr().err  # timm's own words


def test_layer_decay_with_decay_of_biases_is_one_line():
    with pytest.raises(UsageError, match=r"`layer_decay`.*without decay of biases"):
        TrainSettings(model="test_vit", layer_decay=0.5)

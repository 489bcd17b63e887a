"""One optimizer step in all its ways: cut into parts, clipped, in bf16, frozen, compiled."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from conftest import TINY
from test_network_noise import Patches
from test_teachers import write_transformer
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

from nst_data.errors import NstError, UsageError
from nst_train.batches.batches import TrainingBatch
from nst_train.device import resolve_precision
from nst_train.networks.attention import has_fused_attention, unfuse_attention
from nst_train.networks.models import create_network
from nst_train.networks.own_networks import register_network
from nst_train.noise_settings import Noise
from nst_train.seeds import seed_network
from nst_train.settings import TrainSettings
from nst_train.training.schedule import Schedule
from nst_train.training.step import create_step, has_unused_weights

NOISE = {"operations": 0, "dropout": 0.3, "stochastic_depth": 0.3}


def make_step_and_batch(**changes):
    """A step, by SGD of rate 1, for a network without batch-norm, and a batch of 4 labeled and 8 pseudo-labeled images."""
    plain = {"model": "test_vit", "image_size": None, "optimizer": "momentum", "momentum": 0, "learning_rate": 64.0, "weight_decay": 0}
    settings = TrainSettings(**TINY | plain | {"noise": NOISE, "ratio": 2} | changes)
    seed_network(0)
    network = create_network(settings, 3)
    size = network.pretrained_cfg["input_size"]
    step = create_step(network, settings, Schedule.of(settings, 16), {"mean": (0.5,) * 3, "std": (0.5,) * 3}, 3)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (12, *size), dtype=torch.uint8, generator=draw)
    return step, TrainingBatch(images, torch.tensor([0, 2, 1, 1]), {"probs": torch.rand(8, 3, generator=draw).softmax(dim=1).half()})


def first_update(**changes):
    """How far the first step moves all weights, and the losses before it."""
    step, batch = make_step_and_batch(**changes)
    network = step.accelerator.unwrap_model(step.network)
    before = torch.cat([one.detach().clone().flatten() for one in network.parameters()])
    losses = torch.cat(step(0, batch))
    return torch.cat([one.detach().flatten() for one in network.parameters()]) - before, losses


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("loss", ["concat", "sum", "code"])
def test_a_step_cut_into_parts_is_the_same_step(parts, loss):
    whole, whole_losses = first_update(loss=loss)
    cut, cut_losses = first_update(loss=loss, accumulate=parts)
    torch.testing.assert_close(cut, whole, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(cut_losses, whole_losses)


def fresh_accelerate(monkeypatch, **settings):
    """As a process that `accelerate launch` starts with these."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def test_what_accelerate_launch_says_of_compiling_is_not_heeded(monkeypatch):
    fresh_accelerate(monkeypatch, ACCELERATE_DYNAMO_BACKEND="INDUCTOR")
    step, _ = make_step_and_batch()
    assert not hasattr(step.network, "_orig_mod")


def test_networks_split_over_processes_are_refused(monkeypatch):
    fresh_accelerate(monkeypatch)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(UsageError, match="asks for FSDP, which splits a network over processes"):
        make_step_and_batch()


def test_the_processes_of_a_step_draw_each_their_own_dropout_and_one_alone_as_before(monkeypatch):
    def drawn(process, processes):
        step, batch = make_step_and_batch()
        monkeypatch.setattr(Accelerator, "process_index", process)
        monkeypatch.setattr(Accelerator, "num_processes", processes)
        seen = []
        step.network.register_forward_pre_hook(lambda *_: seen.append(torch.get_rng_state()))
        step(0, batch)
        return seen[0], torch.get_rng_state()

    (alone, _), (first, after), (second, after_second) = drawn(0, 1), drawn(0, 2), drawn(1, 2)
    assert torch.equal(alone, first)
    assert not torch.equal(first, second)
    assert torch.equal(after, after_second)


@pytest.mark.parametrize(("emulated", "expected"), [(False, "bf16"), (True, "fp16")])
def test_emulated_bf16_is_not_taken_for_bf16(monkeypatch, emulated, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or not emulated)
    assert resolve_precision("auto", torch.device("cuda")) == expected


def test_a_gradient_longer_than_the_clip_is_shortened_to_it_and_a_shorter_one_left_alone():
    free, _ = first_update()
    shortened, _ = first_update(clip_grad=0.01)
    assert float(free.norm()) > 0.02
    torch.testing.assert_close(shortened, free * (0.01 / free.norm()), rtol=1e-3, atol=1e-7)
    assert torch.equal(first_update(clip_grad=1e6)[0], free)


def test_bf16_computes_the_network_in_bf16_and_keeps_the_weights_and_the_loss_in_fp32():
    exact, exact_losses = first_update()
    rounded, rounded_losses = first_update(precision="bf16")
    assert not torch.equal(exact_losses, rounded_losses)
    torch.testing.assert_close(rounded_losses, exact_losses, rtol=0.05, atol=0.05)
    assert float(torch.nn.functional.cosine_similarity(rounded, exact, dim=0)) > 0.98
    step, _ = make_step_and_batch(precision="bf16")
    assert {one.dtype for one in step.network.parameters()} == {torch.float32}


def test_fp16_scales_the_loss_and_takes_the_scale_out_again_before_clipping():
    exact, exact_losses = first_update(clip_grad=0.5)
    scaled, losses = first_update(precision="fp16", clip_grad=0.5)
    torch.testing.assert_close(losses, exact_losses, rtol=0.05, atol=0.05)
    torch.testing.assert_close(scaled.norm(), exact.norm(), rtol=0.05, atol=0)
    step, _ = make_step_and_batch(precision="fp16")
    assert step.scaler.state_dict()["scale"] > 1


def test_channels_last_changes_the_order_in_memory_and_no_result():
    changes = {"model": "test_resnet", "image_size": 16}
    torch.testing.assert_close(first_update(**changes, channels_last=True), first_update(**changes), rtol=1e-3, atol=1e-4)
    step, _ = make_step_and_batch(**changes, channels_last=True)
    assert next(one for one in step.network.parameters() if one.ndim == 4 and one.shape[1] > 1).is_contiguous(
        memory_format=torch.channels_last
    )


def test_weights_without_part_in_the_logits_are_found_where_they_are_trained():
    network = create_network(TrainSettings(**TINY), 3).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert not has_unused_weights(network, (3, 16, 16))
    network.spare = torch.nn.Linear(2, 2)
    assert has_unused_weights(network, (3, 16, 16))
    network.spare.requires_grad_(False)
    assert not has_unused_weights(network, (3, 16, 16))
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_attention_step_by_step_is_the_fused_one_up_to_rounding():
    torch.testing.assert_close(first_update(fused_attention=False)[0], first_update()[0], rtol=1e-3, atol=1e-6)
    step, _ = make_step_and_batch(fused_attention=False)
    assert not has_fused_attention(step.network)
    with pytest.raises(NstError, match=r"`fused_attention`: test_resnet has no fused attention.*remove it"):
        make_step_and_batch(model="test_resnet", image_size=16, fused_attention=False)


def test_a_network_of_transformers_too_computes_attention_step_by_step(tmp_path):
    network = create_network(TrainSettings(**TINY | {"model": write_transformer(tmp_path / "vit"), "image_size": None}), 3).eval()
    images = torch.rand(2, 3, 24, 24)
    with torch.inference_mode():
        fused = network(images)
        assert has_fused_attention(network)
        unfuse_attention(network, "vit")
        assert not has_fused_attention(network)
        torch.testing.assert_close(network(images), fused)


def changed_layers(step, batch):
    """The weights and statistics that a step changes, by the layer that they belong to; and all layers in order."""
    before = {name: value.clone() for name, value in step.network.state_dict().items()}
    step(0, batch)
    changed = {name.rpartition(".")[0] for name, value in step.network.state_dict().items() if not torch.equal(value, before[name])}
    return changed, list(dict.fromkeys(name.rpartition(".")[0] for name in before))


def test_frozen_blocks_stay_as_they_are_batch_norm_too():
    """Two of the four blocks of test_resnet, with the stem before them."""
    layers, all_of_them = changed_layers(*make_step_and_batch(model="test_resnet", image_size=16, freeze=0.5, start="some@gen-0"))
    frozen = [name for name in all_of_them if name.startswith(("conv1", "bn1", "layer1", "layer2"))]
    assert layers.isdisjoint(frozen)
    assert {"layer3.0.bn1", "layer4.0.bn1", "fc"} <= layers


def test_single_layers_are_frozen_as_before_where_that_is_asked_for():
    layers, all_of_them = changed_layers(
        *make_step_and_batch(model="test_resnet", image_size=16, freeze=0.5, freeze_by="layers", start="some@gen-0")
    )
    assert layers.isdisjoint(all_of_them[: len(all_of_them) // 2])
    assert {"fc", all_of_them[-2]} <= layers


def test_a_step_on_pseudo_labeled_images_alone_has_their_mean_for_a_loss():
    step, batch = make_step_and_batch(pseudo_only=True, loss="code", noise={"operations": 0, "dropout": 0, "stochastic_depth": 0})
    alone = TrainingBatch(batch.images[4:], batch.labels[:0], batch.pseudo)
    with torch.no_grad():
        expected = -(step.network(step.normalize(alone.images)).log_softmax(dim=1) * batch.pseudo["probs"].float()).sum(dim=1)
    labeled, pseudo = step(0, alone)
    assert len(labeled) == 0
    torch.testing.assert_close(pseudo, expected, rtol=2e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_takes_the_same_step():
    torch.testing.assert_close(first_update(compile=True), first_update(), rtol=1e-3, atol=1e-5)
    register_network("own_patches", Patches, image_size=16)
    twice = {"model": "own_patches", "accumulate": 2}
    torch.testing.assert_close(first_update(**twice, compile=True), first_update(**twice), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"freeze": 0.5}, "`freeze`.*trained network; add `start` or `pretrained`"),
        ({"start": "a@gen-0", "pretrained": True}, "`start` and `pretrained` both.*remove one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        TrainSettings(**TINY | changes)


def test_an_optimizer_that_refuses_its_settings_is_one_line():
    with pytest.raises(NstError, match=r"optimizer sgd:.*\(Nesterov momentum requires a momentum"):
        make_step_and_batch(optimizer="sgd", momentum=0)


def test_a_network_that_has_no_blocks_to_skip_is_refused_before_any_step():
    with pytest.raises(NstError, match=r"set noise.stochastic_depth"):
        make_step_and_batch(model="vgg11")


def test_rmsprop_is_the_released_codes():
    """TensorFlow 1: mean squares begin at 1, epsilon under the root, learning rate inside the momentum, weight decay in the gradient."""
    step, batch = make_step_and_batch(
        optimizer="rmsproptf", momentum=0.9, weight_decay=0.01, learning_rate=0.64, noise=Noise.none().model_dump()
    )
    network = step.accelerator.unwrap_model(step.network)
    layer = network.head.weight
    weights = layer.detach().double().numpy().copy()
    squares, moved_by = np.ones_like(weights), np.zeros_like(weights)
    gradients = []
    layer.register_hook(lambda gradient: gradients.append(gradient.detach().double().numpy().copy()))
    for number in range(4):
        gradient_at = weights.copy()
        step(number, batch)
        gradient = gradients[-1] + 0.01 * gradient_at
        squares = 0.9 * squares + 0.1 * gradient**2
        moved_by = 0.9 * moved_by + step.schedule.learning_rate(number) * gradient / np.sqrt(squares + 1e-3)
        weights = weights - moved_by
        np.testing.assert_allclose(layer.detach().numpy(), weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("preset", ["pretrained", "pretrained-vit"])
def test_each_weights_rate_in_each_step_of_the_presets_is_timms(preset):
    """With `t_in_epochs=False` and `warmup_prefix=True`; it multiplies by the `lr_scale` of timm's groups of weights."""
    model = {"pretrained": "test_resnet", "pretrained-vit": "test_vit"}[preset]
    settings = TrainSettings(preset=preset, model=model, pretrained=False, freeze_batch_norm=False, steps=40)
    network = create_network(settings, 3)
    step = create_step(network, settings, Schedule.of(settings, 200), {"mean": (0.5,) * 3, "std": (0.5,) * 3}, 3)
    peak = settings.learning_rate * 16 / 256
    decay = {"weight_decay": 0.05, "layer_decay": settings.layer_decay}
    optimizer = create_optimizer_v2(create_network(settings, 3), "adamw", lr=peak, **decay)
    timms = CosineLRScheduler(optimizer, t_initial=40 - 12, lr_min=0, warmup_t=12, warmup_lr_init=0, warmup_prefix=True, t_in_epochs=False)
    step.scaler = SimpleNamespace(step=lambda _: None, update=lambda: None)  # rates are looked at, no weight is moved
    step.averaged = SimpleNamespace(update=lambda *_: None)
    step._accumulate_gradients = lambda *_: (torch.zeros(0), torch.zeros(0))
    seen = []
    for number in range(40):
        step(number, SimpleNamespace(split=lambda *_: [None]))
        timms.step_update(number)
        ours, expected = ([group["lr"] for group in one.param_groups] for one in (step.optimizer, optimizer))
        assert ours == pytest.approx(expected, rel=1e-9, abs=1e-15), number
        seen.append(max(ours))
    assert [len(group["params"]) for group in step.optimizer.param_groups] == [len(group["params"]) for group in optimizer.param_groups]
    assert len({group["lr_scale"] for group in optimizer.param_groups}) > 3
    assert (seen[0], max(seen), seen.index(max(seen))) == (0, pytest.approx(peak), 12)

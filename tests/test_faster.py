"""Which memory format, precision and threads a training has, by rule and by timed steps."""

import itertools

import pytest
import timm
import torch
from conftest import TINY

from nst_train.device import resolve_channels_last
from nst_train.settings import TrainSettings
from nst_train.starting import faster

VIT = {"model": "test_vit", "image_size": 32}


@pytest.mark.parametrize(
    ("model", "convolutional"),
    [
        *[(name, True) for name in ("resnet18", "tf_efficientnet_lite0", "mobilenetv3_large_100", "convnext_atto", "regnety_004")],
        *[(name, False) for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "test_vit", "mixer_s16_224")],
    ],
)
def test_convolutional_networks_are_in_channels_last_order_on_cpus_and_in_reduced_precision(model, convolutional):
    with torch.device("meta"):
        network = timm.create_model(model)
    for device, precision, gains in (("cpu", "fp32", True), ("cpu", "bf16", True), ("cuda", "bf16", True), ("cuda", "fp32", False)):
        assert resolve_channels_last(None, network, device, precision) is (convolutional and gains)
        assert resolve_channels_last(True, network, device, precision) is True
        assert resolve_channels_last(False, network, device, precision) is False


@pytest.mark.parametrize(
    ("capability", "gains", "named", "expected"),
    [
        ("AVX2", {"compute_threads"}, {}, {"compute_threads": 1}),
        ("AVX2", {"precision"}, {}, {}),
        ("AVX512", {"precision", "compute_threads"}, {}, {"precision": "bf16", "compute_threads": 1}),
        ("AVX512", {"precision", "compute_threads"}, {"precision": "fp32", "compute_threads": 2}, {}),
        ("AVX512", set(), {}, {}),
        ("AVX512", {"fused_attention"}, {}, {}),  # TINY has none
        ("AVX512", {"fused_attention"}, VIT, {"precision": "bf16", "fused_attention": False}),
        ("AVX512", {"precision"}, VIT, {"precision": "bf16"}),
        ("AVX512", {"precision", "fused_attention"}, VIT, {"precision": "bf16", "fused_attention": False}),
        ("AVX512", {"fused_attention"}, VIT | {"precision": "fp32"}, {}),
        ("AVX2", {"fused_attention"}, VIT, {}),
    ],
)
def test_only_values_that_are_clearly_faster_and_not_named_are_suggested(monkeypatch, capability, gains, named, expected):
    defaults = {"precision": "auto", "compute_threads": None, "fused_attention": True}

    def step(settings, *_):
        gained = sum(getattr(settings, name) != defaults[name] for name in gains)
        return 1.0 / 1.2**gained, 8

    monkeypatch.setattr(faster, "_create_step", step)
    monkeypatch.setattr(faster, "_time_call", lambda seconds: seconds)
    monkeypatch.setattr(faster, "DEFAULT_THREADS", 4)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert faster.faster_settings(TrainSettings(**TINY | named), 2) == expected
    monkeypatch.setattr(faster, "_MAX_WEIGHTS", 1000)
    assert faster.faster_settings(TrainSettings(**TINY | named), 2) == {}


def test_a_value_that_is_faster_only_at_times_is_not_suggested(monkeypatch):
    seconds = itertools.cycle([1.0, 0.5, 1.0, 1.0])  # of the default, of one thread, and again
    monkeypatch.setattr(faster, "_time_call", lambda _: next(seconds))
    monkeypatch.setattr(faster, "DEFAULT_THREADS", 4)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert faster.faster_settings(TrainSettings(**TINY), 2) == {}


def test_a_step_that_mixes_images_is_timed_on_an_even_number_of_them():
    take, images = faster._create_step(TrainSettings(**TINY | {"batch_size": 5, "ratio": 2, "mixup": 0.2}), 2, 15)
    take()
    assert images == 14

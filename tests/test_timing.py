"""How long steps take, and which memory format, precision and threads a training has."""

import itertools

import pytest
import timm
import torch
from conftest import TINY, write_class_folders

from nst_data.sources import open_source
from nst_train.device import settled_channels_last
from nst_train.settings import TrainSettings
from nst_train.training import timing


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
        assert settled_channels_last(None, network, device, precision) is (convolutional and gains)
        assert settled_channels_last(True, network, device, precision) is True
        assert settled_channels_last(False, network, device, precision) is False


def test_a_step_and_a_labeled_image_are_timed_and_a_larger_batch_takes_longer(tmp_path):
    images = open_source(str(write_class_folders(tmp_path / "labeled", ["ant", "bee"], 3)), labeled=True)
    threads, speed = torch.get_num_threads(), {}
    for ratio in (1, 31):
        settings = TrainSettings(**TINY | {"batch_size": 8, "ratio": ratio, "accumulate": 2})
        speed[ratio] = timing.measure(settings, 2, images)
        assert 0 < speed[ratio].labeled_image < speed[ratio].step < 60
    assert speed[31].step > speed[1].step  # of 256 images and of 16
    assert torch.get_num_threads() == threads


def test_a_step_takes_its_images_reading_too(monkeypatch, tmp_path):
    images = open_source(str(write_class_folders(tmp_path / "labeled", ["ant", "bee"], 3)), labeled=True)
    monkeypatch.setattr(timing, "_seconds_per_augmented_image", lambda *_: 100.0)
    monkeypatch.setattr(timing, "cpus_of_this_process", lambda: 4)
    settings = TrainSettings(**TINY | {"batch_size": 2, "ratio": 3})
    assert 200 < timing.measure(settings, 2, images).step < 220
    assert 50 < timing.measure(settings, 2, images, with_pseudo=False).step < 70
    assert timing.measure(settings, 2).step < 20


@pytest.mark.parametrize(
    ("capability", "gains", "named", "expected"),
    [
        ("AVX2", {"compute_threads"}, {}, {"compute_threads": 1}),
        ("AVX2", {"precision"}, {}, {}),
        ("AVX512", {"precision", "compute_threads"}, {}, {"precision": "bf16", "compute_threads": 1}),
        ("AVX512", {"precision", "compute_threads"}, {"precision": "fp32", "compute_threads": 2}, {}),
        ("AVX512", set(), {}, {}),
    ],
)
def test_only_values_that_are_clearly_faster_and_not_named_are_suggested(monkeypatch, capability, gains, named, expected):
    defaults = {"precision": "auto", "compute_threads": None}

    def step(settings, *_):
        gained = sum(getattr(settings, name) != defaults[name] for name in gains)
        return 1.0 / 1.2**gained, 8

    monkeypatch.setattr(timing, "_step", step)
    monkeypatch.setattr(timing, "_seconds", lambda seconds: seconds)
    monkeypatch.setattr(timing, "DEFAULT_THREADS", 4)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert timing.faster_settings(TrainSettings(**TINY, **named), 2) == expected


def test_a_value_that_is_faster_only_at_times_is_not_suggested(monkeypatch):
    seconds = itertools.cycle([1.0, 0.5, 1.0, 1.0])  # of the default, of one thread, and again
    monkeypatch.setattr(timing, "_seconds", lambda _: next(seconds))
    monkeypatch.setattr(timing, "DEFAULT_THREADS", 4)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert timing.faster_settings(TrainSettings(**TINY), 2) == {}

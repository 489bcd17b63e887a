import numpy as np
import pytest
import torch
from conftest import picture
from timm.data import create_transform

from nst_train.noise import Normalize, randaugment, seed_of, seed_transforms, training_transform
from nst_train.settings import Noise, TrainSettings

CONFIG = {
    "input_size": (3, 16, 16),
    "interpolation": "bicubic",
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def settings(noise, **changes):
    return TrainSettings(model="test_resnet", image_size=16, noise=noise, **changes)


def test_the_same_seed_augments_the_same_way_and_another_one_another_way():
    transform = training_transform(settings(Noise()), CONFIG)
    images = []
    for seed in (1, 1, 2):
        seed_transforms(seed)
        images.append(np.asarray(transform(picture(1, 0))))
    assert (images[0] == images[1]).all()
    assert (images[0] != images[2]).any()


def test_without_noise_crop_and_flip_an_image_comes_through_as_it_is():
    transform = training_transform(settings(Noise.none(), crop_scale_min=1.0, flip=0.0), CONFIG)
    original = picture(2, 0)
    assert (np.asarray(transform(original)) == np.asarray(original).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("magnitude", [0, 1, 5, 10, 27, 30])
def test_every_operation_runs_at_every_magnitude(magnitude):
    policy = randaugment(Noise(magnitude=magnitude, operations=1))
    assert {operation.name for operation in policy.ops} >= {"Posterize", "Solarize", "TranslateXRel", "Rotate"}
    for operation in policy.ops:
        assert operation(picture(1, 0)).size == (16, 16)


def test_a_translation_at_magnitude_27_leaves_half_of_the_image():
    move = next(operation for operation in randaugment(Noise(magnitude=27)).ops if operation.name == "TranslateXRel")
    shares = [abs(move.level_fn(27, move.hparams)[0]) for _ in range(5)]
    assert shares == pytest.approx([0.45] * 5)


def test_magnitude_27_is_not_clipped_to_10():
    def changed(magnitude):
        transform = training_transform(settings(Noise(magnitude=magnitude), crop_scale_min=1.0, flip=0.0), CONFIG)
        total = 0.0
        for seed in range(60):
            seed_transforms(seed)
            total += float(np.abs(np.asarray(transform(picture(1, 0))).astype(int) - np.asarray(picture(1, 0)).transpose(2, 0, 1)).mean())
        return total

    assert changed(27) > changed(10)


def test_normalizing_on_the_device_equals_timms_transform():
    image = picture(0, 3)
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None]
    normalized = Normalize(CONFIG, torch.device("cpu"))(pixels)[0]
    assert torch.allclose(normalized, create_transform(**CONFIG, is_training=False)(image), atol=1e-5)


def test_seeds_depend_on_every_word_and_on_their_order():
    assert len({seed_of(1, "a", 2), seed_of(1, "b", 2), seed_of(2, "a", 1), seed_of(1, "a", 3)}) == 4

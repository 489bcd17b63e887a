import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image
from timm.data import auto_augment_transform, create_transform, rand_augment_transform
from timm.data.auto_augment import augment_and_mix_transform, posterize

from nst_data.errors import UsageError
from nst_train.noise_settings import Noise, PseudoNoise
from nst_train.recipes.reading import load_recipe
from nst_train.seeds import derive_seed, seed_transforms
from nst_train.settings import TrainSettings
from nst_train.transforms.crops import RandomResizedCrop
from nst_train.transforms.noise import Normalize, training_transform, training_transforms

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


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_the_same_seed_augments_the_same_way_and_another_one_another_way():
    transform = training_transform(settings(Noise()), CONFIG)
    images = [transform(png(picture(1, 0)), seed) for seed in (1, 1, 2)]
    assert (images[0] == images[1]).all()
    assert (images[0] != images[2]).any()


@pytest.mark.parametrize("augmentation", ["rand-m9-mstd0.5-inc1", "augmix-m5-w2", "original", "v0r-mstd1", "3a"])
def test_an_augmentation_of_timm_depends_on_the_seed_alone(augmentation):
    transform = training_transform(settings(Noise(augmentation=augmentation)), CONFIG)
    first = [transform(png(picture(1, 0)), seed) for seed in range(20)]
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)
    again = {seed: transform(png(picture(1, 0)), seed) for seed in reversed(range(20))}
    assert all((again[seed] == image).all() for seed, image in enumerate(first))
    assert len({image.tobytes() for image in first}) > 10


def timms_own(augmentation, kept_bits):
    """What timm makes of a string, with a posterize by definition: `kept_bits` of each value that is posterized are noted."""

    def by_definition(image, bits, **_):
        kept_bits.append(bits)
        return image if bits >= 8 else Image.fromarray(np.asarray(image) & np.uint8(256 - 2 ** (8 - max(bits, 0))))

    options = {"translate_const": 7, "img_mean": (128, 102, 76), "interpolation": Image.BICUBIC}
    if augmentation.startswith("rand"):
        transform = rand_augment_transform(augmentation, options)
    elif augmentation.startswith("augmix"):
        transform = augment_and_mix_transform(augmentation, options | {"translate_pct": 0.3})
    else:
        transform = auto_augment_transform(augmentation, options)
    policies = transform.policy if hasattr(transform, "policy") else [transform.ops]
    for operation in (operation for policy in policies for operation in policy if operation.aug_fn is posterize):
        operation.aug_fn = by_definition

    def augmented(image, seed):
        seed_transforms(random.Random(seed).getrandbits(32))
        return np.asarray(transform(image))

    return augmented


TIMMS_WORDS = ["rand", "rand-m9-n3-p1", "rand-m9-n2-p1-mmax30", "rand-m9-tweights", "augmix", "augmix-m3-w3-d2-a0.5-b1", "v0-mstd0.5"]
KEEPING_NO_BIT = ["rand-m10-inc1-n5-p1", "rand-m2-n5-p1", "v0", "augmix-m10-mstd0"]  # Pillow refuses that since 13


@pytest.mark.parametrize("augmentation", [*TIMMS_WORDS, *KEEPING_NO_BIT])
def test_an_augmentation_of_timm_is_what_timm_makes_of_the_string_and_a_posterize_that_keeps_no_bit_gives_black(augmentation):
    transform, kept_bits = training_transform(settings(Noise(augmentation=augmentation), crop_scale_min=1.0, flip=0.0), CONFIG), []
    theirs, seeds = timms_own(augmentation, kept_bits), 60 if augmentation in KEEPING_NO_BIT else 20
    images = [transform(png(picture(1, 0)), seed) for seed in range(seeds)]
    assert [seed for seed, image in enumerate(images) if (image != theirs(picture(1, 0), seed)).any()] == []
    assert (images[0] != images[1]).any()
    assert augmentation not in KEEPING_NO_BIT or min(kept_bits) <= 0


@pytest.mark.parametrize("augmentation", ["", "random", "rand-m", "rand-x9", "rand-m9.5", "rand-tx", "augmix-w0", "augmix-a0", "v1"])
def test_other_words_are_refused(augmentation):
    with pytest.raises(UsageError, match=r"`augmentation`:.*timm.*rand-m9-mstd0\.5-inc1.*, found '"):
        Noise(augmentation=augmentation)


@pytest.mark.parametrize("changes", [{"magnitude": 9}, {"operations": 0}, {"amounts": "released"}])
def test_an_augmentation_beside_randaugments_settings_is_refused(changes):
    with pytest.raises(UsageError, match=r"`augmentation` replaces RandAugment.*`magnitude`, `operations` and `amounts`; remove"):
        Noise(augmentation="v0", **changes)


@pytest.mark.parametrize("crop", [{"crop_scale_min": 0.5}, {"crop_draw": "released"}])
def test_a_padded_crop_beside_a_random_resized_crop_is_refused(crop):
    with pytest.raises(UsageError, match=r"`crop_padding` replaces.*`crop_scale_min` and `crop_draw`; remove"):
        settings(Noise(), crop_padding=4, **crop)


def test_pseudo_labeled_images_alone_go_without_flip_crop_and_randaugment():
    """Table 6: the noise of labeled images stays."""
    plain = {"flip": 0, "crop_scale_min": 1, "operations": 0}
    transforms = training_transforms(settings(Noise(), pseudo_noise=plain), CONFIG)
    image = picture(1, 0)
    assert all((transforms["pseudo"](png(image), seed) == np.asarray(image)).all() for seed in range(10))
    labeled = training_transform(settings(Noise()), CONFIG)
    assert all((transforms["labeled"](png(image), seed) == labeled(png(image), seed)).all() for seed in range(10))


def test_settings_of_augmentation_beside_un_augmented_pseudo_labeled_images_are_refused():
    with pytest.raises(UsageError, match=r"operations, flip:.*un-augmented.*transform evaluation; remove one"):
        PseudoNoise(transform="evaluation", operations=1, flip=0.5, dropout=0.1)


@pytest.mark.parametrize("padding", [0, 4])
def test_each_part_of_the_augmentation_of_pseudo_labeled_images_goes_by_itself(padding):
    bright = np.asarray(picture(1, 0)).copy()
    bright[:, :8] = 255

    def shown(**pseudo):
        noise = Noise(operations=0)
        transform = training_transforms(settings(noise, crop_padding=padding, pseudo_noise=pseudo), CONFIG)["pseudo"]
        return [transform(png(Image.fromarray(bright)), seed) for seed in range(30)]

    assert {(one == bright).all() or (one == bright[:, ::-1]).all() for one in shown(crop_scale_min=1)} == {True}
    assert sum((one == bright[:, ::-1]).all() for one in shown(crop_scale_min=1)) > 5
    left = [one for one in shown(flip=0) if one[:, 0].min() == 255 and one[:, -1].min() < 255]
    assert left
    assert all(one[:, :6].mean() > one[:, 10:].mean() for one in left)
    assert len({one.tobytes() for one in shown(flip=0)}) > 5
    evaluated = training_transform(settings(Noise(), transform="evaluation"), CONFIG)(png(Image.fromarray(bright)), 0)
    assert all((one == evaluated).all() for one in shown(transform="evaluation"))


@pytest.mark.parametrize(("named", "draw"), [({"preset": "efficientnet-b7"}, "released"), ({}, "torchvision")])
def test_by_a_preset_crops_are_drawn_as_the_released_code_draws_them(named, draw):
    transform = training_transform(TrainSettings(model="x", flip=0, noise={"operations": 0}, **named), CONFIG)
    photograph, crop = png(picture(1, 0).resize((50, 40))), RandomResizedCrop(0.08, (16, 16), "bicubic", draw)
    assert all((transform(photograph, seed) == np.asarray(crop(photograph, random.Random(seed)))).all() for seed in range(10))


def test_without_noise_crop_and_flip_an_image_comes_through_as_it_is():
    transform = training_transform(settings(Noise.none(), crop_scale_min=1.0, flip=0.0), CONFIG)
    original = picture(2, 0)
    assert (transform(png(original), 3) == np.asarray(original)).all()


def test_half_of_the_images_are_flipped():
    transform = training_transform(settings(Noise.none(), crop_scale_min=1.0), CONFIG)
    original = np.asarray(picture(2, 0))
    shown = [transform(png(picture(2, 0)), seed) for seed in range(200)]
    flipped = sum((image == original[:, ::-1]).all() for image in shown)
    assert 70 < flipped < 130
    assert sum((image == original).all() for image in shown) == 200 - flipped


def test_extra_cutout_covers_a_square_of_every_image():
    transform = training_transform(settings(Noise(operations=0, cutout=8), crop_scale_min=1.0, flip=0.0), CONFIG)
    original = np.asarray(picture(2, 0))
    covered = [(transform(png(picture(2, 0)), seed) != original).any(-1).sum() for seed in range(50)]
    assert min(covered) >= 8
    assert max(covered) == 64


def test_with_padding_cutout_comes_before_the_crop_as_in_the_released_code():
    white = Image.new("RGB", (16, 16), "white")
    transform = training_transform(settings(Noise(operations=0, cutout=16), crop_padding=8, flip=0.0), CONFIG)
    grays = {int((transform(png(white), seed) == 128).all(-1).sum()) for seed in range(200)}
    assert max(grays) > 16 * 16 * 0.99  # the mirrored border repeats what was cut out, beyond the square itself
    assert min(grays) < 40


def test_magnitude_27_is_not_clipped_to_10():
    def changed(magnitude):
        transform = training_transform(settings(Noise(magnitude=magnitude), crop_scale_min=1.0, flip=0.0), CONFIG)
        original = np.asarray(picture(1, 0)).astype(int)
        return sum(float(np.abs(transform(png(picture(1, 0)), seed) - original).mean()) for seed in range(60))

    assert changed(27) > changed(9)


def test_normalizing_on_the_device_equals_timms_transform():
    image = picture(0, 3)
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None]
    normalized = Normalize(CONFIG, torch.device("cpu"))(pixels)[0]
    assert torch.allclose(normalized, create_transform(**CONFIG, is_training=False)(image), atol=1e-5)


def test_seeds_depend_on_every_word_and_on_their_order():
    assert len({derive_seed(1, "a", 2), derive_seed(1, "b", 2), derive_seed(2, "a", 1), derive_seed(1, "a", 3)}) == 4


@pytest.mark.parametrize("size", [(40, 30), (16, 50), (9, 9)])
def test_un_augmented_images_are_those_of_timms_evaluation(size):
    """Whatever else is asked for: flip, crops, RandAugment, Cutout."""
    image, config = picture(1, 0).resize(size, Image.Resampling.BICUBIC), CONFIG | {"crop_pct": 0.8}
    transform = training_transform(settings(Noise(cutout=8), transform="evaluation", flip=1), config)
    expected = np.asarray(create_transform((3, 16, 16), interpolation="bicubic", crop_pct=0.8, normalize=False)(image)).transpose(1, 2, 0)
    for seed in range(3):
        assert np.abs(transform(png(image), seed).astype(int) - expected).max() <= 2


def test_the_papers_finetuning_is_on_the_middle_800_pixels_of_832():
    finetune = load_recipe(Path(__file__).parent.parent / "examples" / "imagenet.yaml").generations[-1].finetune
    assert (finetune.epochs, finetune.image_size, finetune.batch_size) == (1.5, 800, 2048)
    pixels = np.random.default_rng(0).integers(0, 256, (832, 1000, 3), dtype=np.uint8)  # as large as evaluation makes an image
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    transform = training_transform(finetune, CONFIG | {"input_size": (3, 800, 800), "crop_pct": finetune.crop_pct})
    assert np.array_equal(transform(file.getvalue(), 5), pixels[16:816, 100:900])

import io
import random

import numpy as np
import pytest
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from nst_data.images import ImageError, decode, upright_size
from nst_train.transforms.crops import Box, PaddedCrop, RandomResizedCrop, center_square, random_box, released_box


def photograph(width, height):
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def crop(image, size, scale_min, seed, kind="BMP", interpolation="bicubic", **options):
    return np.asarray(RandomResizedCrop(scale_min, size, interpolation)(encoded(image, kind, **options), random.Random(seed)))


@pytest.mark.parametrize("size", [(500, 375), (32, 32), (100, 900), (900, 100)])
@pytest.mark.parametrize("scale_min", [0.08, 0.6])
def test_boxes_are_drawn_as_timm_draws_them(size, scale_min):
    for seed in range(200):
        random.seed(seed)
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(Image.new("L", size), (scale_min, 1.0), (3 / 4, 4 / 3))
        assert random_box(*size, scale_min, random.Random(seed)) == Box(left, top, width, height)


# Of 200,000 draws by TensorFlow 2.21's `sample_distorted_bounding_box` with the released code's arguments: mean share of the image, its
# 0.1, 0.5 and 0.9 quantiles, mean left edge / width, share of draws that fall back on the whole image.
TENSORFLOWS_DRAWS = {
    (500, 375): (0.3877, (0.138, 0.355, 0.691), 0.2330, 0.0000),
    (32, 32): (0.4317, (0.141, 0.391, 0.781), 0.1639, 0.0023),
    (300, 900): (0.2039, (0.116, 0.194, 0.307), 0.1092, 0.0000),
    (100, 900): (0.1491, (0.101, 0.111, 0.133), 0.0200, 0.0406),
    (20, 17): (0.4234, (0.124, 0.382, 0.794), 0.1828, 0.0081),
}


@pytest.mark.parametrize("size", TENSORFLOWS_DRAWS)
def test_released_boxes_are_drawn_as_tensorflow_draws_them(size):
    (width, height), drawn = size, random.Random(0)
    boxes = [released_box(*size, 0.08, 224, drawn) for _ in range(10_000)]
    side = int(224 / 256 * min(size))
    middle = Box((width - side + 1) // 2, (height - side + 1) // 2, side, side)
    whole = [Box(0, 0, *size) if box == middle else box for box in boxes]
    shares = [box.width * box.height / (width * height) for box in whole]
    mean, quantiles, left, fallen_back = TENSORFLOWS_DRAWS[size]
    assert np.mean(shares) == pytest.approx(mean, abs=0.01)
    assert np.quantile(shares, [0.1, 0.5, 0.9]) == pytest.approx(quantiles, abs=0.025)
    assert np.mean([box.left for box in whole]) / width == pytest.approx(left, abs=0.006)
    assert boxes.count(middle) / len(boxes) == pytest.approx(fallen_back, abs=0.006)
    assert min(shares) >= 0.1


def test_the_released_draw_keeps_less_of_a_photograph_than_torchvisions():
    means = []
    for draw in (lambda one: released_box(500, 375, 0.08, 224, one), lambda one: random_box(500, 375, 0.08, one)):
        drawn = random.Random(1)
        means.append(np.mean([box.width * box.height for box in (draw(drawn) for _ in range(10_000))]) / (500 * 375))
    assert means == pytest.approx([0.387, 0.432], abs=0.008)


def test_a_part_that_keeps_at_least_half_is_drawn_evenly_by_height():
    """The height of a square image's part goes from sqrt(0.5 / aspect) to 1, or 1 / aspect; averaged over a grid of aspects."""
    drawn, side = random.Random(0), 1000
    boxes = [released_box(side, side, 0.5, 224, drawn) for _ in range(10_000)]
    aspects = np.linspace(0.75, 4 / 3, 2001)
    lowest, highest = np.sqrt(0.5 / aspects), np.minimum(1, 1 / aspects)
    assert np.mean([box.height for box in boxes]) / side == pytest.approx(((lowest + highest) / 2).mean(), abs=0.005)


@pytest.mark.parametrize("draw", ["torchvision", "released"])
@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (2, 3)])
def test_the_smallest_images_have_parts_too(size, draw):
    cropped = RandomResizedCrop(0.08, (32, 32), "bicubic", draw)
    image = encoded(photograph(*size), "BMP")
    assert all(np.asarray(cropped(image, random.Random(seed))).shape == (32, 32, 3) for seed in range(50))


def test_a_scale_of_one_takes_the_largest_square_in_the_middle():
    assert random_box(50, 30, 1.0, random.Random(0)) == center_square(50, 30) == Box(10, 0, 30, 30)
    assert released_box(50, 30, 1.0, 224, random.Random(0)) == center_square(50, 30)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_box_is_resized_as_pillow_resizes_it_to_within_two_levels(interpolation):
    image = photograph(300, 200)
    for seed in range(10):
        left, top, width, height = random_box(300, 200, 0.2, random.Random(seed))
        theirs = image.resize((64, 48), Image.Resampling[interpolation.upper()], box=(left, top, left + width, top + height))
        cut_first = image.crop((left, top, left + width, top + height)).resize((64, 48), Image.Resampling[interpolation.upper()])
        ours = crop(image, (48, 64), 0.2, seed, interpolation=interpolation)
        assert ours.shape == (48, 64, 3)
        assert np.abs(ours.astype(int) - np.asarray(cut_first)).max() <= 2
        assert np.abs(ours.astype(int) - np.asarray(theirs)).mean() < 3


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_large_jpeg_is_decoded_smaller_and_gives_the_same_part_of_it(orientation):
    large = photograph(1600, 1200)
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = encoded(large, quality=95, exif=exif)
    upright = {1: large, 3: large.rotate(180), 6: large.rotate(-90, expand=True), 8: large.rotate(90, expand=True)}[orientation]
    assert upright_size(jpeg) == upright.size
    for seed in range(5):
        smaller = crop(large, (64, 64), 0.2, seed, "JPEG", quality=95, exif=exif)
        whole = crop(upright, (64, 64), 0.2, seed, "BMP")
        assert np.abs(smaller.astype(int) - whole).mean() < 2


def test_a_crop_is_a_part_of_the_upright_image_where_exif_follows_xmp():
    large = photograph(480, 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = encoded(large, quality=95, exif=exif)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"
    jpeg = jpeg[:2] + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp + jpeg[2:]
    upright = large.rotate(-90, expand=True)
    for seed in range(20):
        ours = np.asarray(RandomResizedCrop(0.2, (32, 32), "bicubic")(jpeg, random.Random(seed)))
        assert np.abs(ours.astype(int) - crop(upright, (32, 32), 0.2, seed, "BMP")).mean() < 3


@pytest.mark.parametrize(("size", "smaller"), [((255, 300), False), ((256, 300), True), ((600, 500), True), ((1024, 1024), True)])
def test_only_a_jpeg_whose_crop_keeps_twice_its_size_is_decoded_smaller(size, smaller):
    jpeg = encoded(photograph(*size).effect_spread(8), quality=95)
    ours = np.asarray(RandomResizedCrop(1.0, (64, 64), "bicubic")(jpeg, random.Random(0)))
    of_whole = crop(decode(jpeg), (64, 64), 1.0, 0, "BMP")
    assert (ours != of_whole).any() == smaller


@pytest.mark.parametrize("data", [b"", b"no image", encoded(photograph(1600, 1200))[:40], encoded(photograph(1600, 1200))[:3000]])
def test_bytes_that_cannot_be_decoded_are_named(data):
    with pytest.raises(ImageError, match=r"(?i)empty file|known format|truncated"):
        RandomResizedCrop(0.08, (32, 32), "bicubic")(data, random.Random(0))


@pytest.mark.parametrize("seed", range(20))
def test_a_padded_crop_is_a_part_of_the_image_with_its_mirrored_border(seed):
    pixels = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    part = np.asarray(PaddedCrop(4, (12, 16))(Image.fromarray(pixels), random.Random(seed)))
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    places = [(y, x) for y in range(9) for x in range(9) if (padded[y : y + 12, x : x + 16] == part).all()]
    assert len(places) == 1


def test_a_padded_crop_comes_from_every_place():
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    draw, drawn = PaddedCrop(1, (8, 8)), random.Random(0)
    assert len({np.asarray(draw(Image.fromarray(pixels), drawn)).tobytes() for _ in range(200)}) == 9

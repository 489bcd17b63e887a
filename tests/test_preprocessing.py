import io
import itertools
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from transformers import ViTImageProcessor

from nst_data.errors import NstError
from nst_data.images import decode, image_hash, phash, phash_thumbnail, upright_size
from nst_data.sources import Row
from nst_train.classifiers.loading import load_images
from nst_train.transforms.preprocessing import _OVERSIZE, ProcessorPreprocessing, TimmPreprocessing, decode_pixels, thumbnail

pytestmark = pytest.mark.filterwarnings(r"ignore:Corrupt EXIF data:UserWarning")  # users never see it: `nst_data.images`

CONFIG = {
    "input_size": (3, 64, 64),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
}
CASES = {
    "center": {},
    "bilinear": {"interpolation": "bilinear"},
    "whole": {"crop_pct": 1.0},
    "squash": {"crop_mode": "squash"},
    "border": {"crop_mode": "border"},
    "tall": {"input_size": (3, 96, 64)},
    "wide-squash": {"input_size": (3, 48, 80), "crop_mode": "squash"},
    "enlarged": {"input_size": (3, 224, 224)},
}
SIZES = [(200, 150), (150, 200), (130, 130), (64, 64), (40, 90), (301, 77)]


def photograph(width, height, seed=0):
    """Smooth noise at four scales, as photographs have it."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for cells, strength in ((3, 0.5), (12, 0.3), (50, 0.15), (200, 0.05)):
        for channel in range(3):
            coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
            pixels[..., channel] += strength * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((pixels * 255).clip(0, 255).astype(np.uint8))


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def app1(kind):
    """A JPEG's segment that says that the sixth orientation is up: XMP, or EXIF with an integer of some type."""
    number = {"EXIF": 3, "LONG": 4, "BYTE": 1}.get(kind)
    directory = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x0112, number or 0, 1, 6, 0)
    content = directory if number else b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def all_kinds():
    image = photograph(131, 90)
    jpegs = {
        "4:2:0": {},
        "4:2:2": {"subsampling": 1},
        "4:4:4": {"subsampling": 0},
        "progressive": {"progressive": True},
        "with restarts": {"restart_marker_rows": 1},
        "coarse": {"quality": 10},
        "in RGB": {"keep_rgb": True},
        "with a comment": {"comment": b"\xff\xd8\xff\xc0" * 20},
        **{f"turned by EXIF {orientation}": {"exif": turned(orientation)} for orientation in range(1, 10)},
        "with broken EXIF": {"exif": b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff\x01\x12"},
    }
    found = {name: encode(image, **options) for name, options in jpegs.items()}
    for segments in ("XMP, EXIF", "EXIF, XMP", "LONG", "BYTE", "XMP"):
        found[f"turned by {segments}"] = found["4:2:0"][:2] + b"".join(app1(kind) for kind in segments.split(", ")) + found["4:2:0"][2:]
    found |= {f"JPEG {mode}": encode(image.convert(mode)) for mode in ("L", "CMYK")}
    found["JPEG of two pictures"] = encode(image, "MPO", save_all=True, append_images=[image])  # Pillow never reduces it
    found["JPEG of one pixel"] = encode(image.resize((1, 1)))
    found |= {f"PNG {mode}": encode(image.convert(mode), "PNG") for mode in ("RGB", "L", "P", "LA", "RGBA", "1", "I;16")}
    return found | {kind: encode(image, kind) for kind in ("WEBP", "GIF", "BMP", "TIFF")}


KINDS = all_kinds()


def levels(left, right):
    """(largest, mean) difference in levels of 255."""
    apart = np.abs(np.asarray(left, np.int64) - np.asarray(right, np.int64))
    return apart.max(), apart.mean()


@pytest.mark.parametrize("name", KINDS)
def test_an_image_is_decoded_to_the_pixels_that_pillow_gives(name):
    expected = np.asarray(decode(KINDS[name]))
    for exact in (False, True):
        np.testing.assert_array_equal(decode_pixels(KINDS[name], exact=exact).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("name", KINDS)
def test_an_image_of_reduced_size_has_the_pixels_that_pillow_gives(name):
    for least_side_px in (11, 22, 45, 90):  # an eighth of the shorter side, a quarter, half, all
        expected = np.asarray(decode(KINDS[name], least_side_px))
        np.testing.assert_array_equal(decode_pixels(KINDS[name], least_side_px).permute(1, 2, 0).numpy(), expected)


def test_a_jpeg_of_few_pixels_is_reduced_as_pillow_does_it():
    for width, height in itertools.product((1, 2, 3, 4, 5, 7, 8, 9, 17), repeat=2):
        encoded = encode(photograph(width, height))
        for least_side_px in (1, 2, 4):
            expected = np.asarray(decode(encoded, least_side_px))
            np.testing.assert_array_equal(decode_pixels(encoded, least_side_px).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("least_side_px", [None, 11, 22, 45])
def test_what_libjpeg_turbo_decodes_is_not_left_to_pillow(least_side_px, monkeypatch):
    monkeypatch.setattr("nst_train.transforms.preprocessing.decode", None)
    for name in ("4:2:0", "progressive", "turned by EXIF 6", "JPEG L"):
        decode_pixels(KINDS[name], least_side_px)


@pytest.mark.parametrize(
    ("segments", "is_turned"), [("XMP, EXIF", True), ("EXIF, XMP", True), ("LONG", True), ("BYTE", True), ("XMP", False)]
)
def test_exif_says_which_side_is_up_wherever_it_stands_and_xmp_does_not(segments, is_turned):
    expected = decode_pixels(KINDS["turned by EXIF 6" if is_turned else "4:2:0"])
    assert expected.shape == ((3, 131, 90) if is_turned else (3, 90, 131))
    assert torch.equal(decode_pixels(KINDS[f"turned by {segments}"]), expected)
    assert upright_size(KINDS[f"turned by {segments}"]) == (expected.shape[2], expected.shape[1])


def test_a_jpeg_in_arrows_signed_bytes_is_not_left_to_pillow(monkeypatch):
    monkeypatch.setattr("nst_train.transforms.preprocessing.decode", None)
    encoded = KINDS["4:2:0"]
    assert torch.equal(decode_pixels(memoryview(encoded).cast("b")), decode_pixels(encoded))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES)
def test_the_exact_transform_is_timms_bit_for_bit(case, size):
    config = CONFIG | CASES[case]
    preprocessing = TimmPreprocessing.from_data_config(config, exact=True)
    encoded = encode(photograph(*size))
    own = create_transform(**config, is_training=False)(decode(encoded))
    assert torch.equal(preprocessing.finish(preprocessing.prepare(decode_pixels(encoded, exact=True))[None])[0], own)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES)
def test_the_fast_transform_is_within_two_levels_of_timms(case, size):
    config = CONFIG | CASES[case]
    fast, exact = TimmPreprocessing.from_data_config(config), TimmPreprocessing.from_data_config(config, exact=True)
    pixels = decode_pixels(encode(photograph(*size)))
    largest, mean = levels(fast.prepare(pixels), exact.prepare(pixels))
    assert largest <= 2
    assert mean < 0.25


@pytest.mark.parametrize("name", KINDS)
def test_the_fast_transform_is_close_for_every_kind_of_image(name):
    fast, exact = TimmPreprocessing.from_data_config(CONFIG), TimmPreprocessing.from_data_config(CONFIG, exact=True)
    largest, mean = levels(fast.prepare(decode_pixels(KINDS[name])), exact.prepare(decode_pixels(KINDS[name], exact=True)))
    assert largest <= 2
    assert mean < 0.25


def test_an_image_of_the_right_size_passes_as_it_is():
    preprocessing = TimmPreprocessing.from_data_config(CONFIG | {"crop_pct": 1.0})
    pixels = decode_pixels(encode(photograph(64, 64)))
    assert torch.equal(preprocessing.prepare(pixels), pixels)


@pytest.mark.parametrize(("size", "factor"), [((3000, 2000), 8), ((400, 600), 2), ((200, 284), 1)])
def test_a_large_jpeg_is_decoded_at_a_size_that_the_network_does_not_tell_from_the_whole(size, factor):
    encoded = encode(photograph(*size), quality=90)
    side = 200 // _OVERSIZE
    preprocessing = TimmPreprocessing.from_data_config(CONFIG | {"input_size": (3, side, side), "crop_pct": 1.0})
    assert preprocessing.min_side_px == side * _OVERSIZE
    reduced = decode_pixels(encoded, preprocessing.min_side_px)
    assert tuple(reduced.shape) == (3, size[1] // factor, size[0] // factor)
    largest, mean = levels(preprocessing.prepare(reduced), preprocessing.prepare(decode_pixels(encoded)))
    assert largest <= 4
    assert mean < 0.5


def test_only_a_jpeg_is_decoded_at_a_reduced_size():
    image = photograph(400, 300)
    assert decode_pixels(encode(image), 100).shape == (3, 150, 200)
    assert decode_pixels(encode(image, "PNG"), 100).shape == (3, 300, 400)
    assert TimmPreprocessing.from_data_config(CONFIG, exact=True).min_side_px is None


@pytest.mark.parametrize("name", KINDS)
def test_the_thumbnail_is_pillows_within_two_levels(name):
    image = decode(KINDS[name])
    largest, _ = levels(thumbnail(decode_pixels(KINDS[name])).permute(1, 2, 0), phash_thumbnail(image))
    assert largest <= 2


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (31, 200), (640, 480), (300, 1000)])
def test_the_thumbnail_is_pillows_at_any_size(size):
    image = photograph(*size)
    found, expected = thumbnail(torch.from_numpy(np.array(image)).permute(2, 0, 1)).permute(1, 2, 0), phash_thumbnail(image)
    assert found.shape == expected.shape == (32, 32, 3)
    assert levels(found, expected)[0] <= 2
    one, other = phash(np.stack([found, expected]))
    assert (int(one) ^ int(other)).bit_count() <= 2


def test_a_processor_gives_its_own_pixel_values():
    processor = ViTImageProcessor(size={"height": 30, "width": 40}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    preprocessing = ProcessorPreprocessing("tiny", processor)
    encoded = encode(photograph(70, 50))
    own = processor(images=decode(encoded), return_tensors="pt")["pixel_values"]
    assert torch.equal(preprocessing.finish(preprocessing.prepare(decode_pixels(encoded))[None]), own)


def test_a_processor_whose_output_has_no_fixed_size_is_refused():
    with pytest.raises(NstError, match=r"ViTImageProcessor:.*one output size, found \[\(3, 48, 64\), \(3, 640, 480\)\]"):
        ProcessorPreprocessing("tiny", ViTImageProcessor(do_resize=False))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_strip_that_would_be_huge_when_resized_is_an_error(kind):
    contents = [encode(Image.new("RGB", (10, height)), kind) for height in (2500, 2501)]
    rows = [Row(index, str(index), content) for index, content in enumerate(contents)]
    images = load_images(rows, [TimmPreprocessing.from_data_config(CONFIG)], 2, hashes=True)
    assert images.readable == [0]
    assert images.reasons == [(1, "10x2501 pixels: one side is more than 250 times the other")]


def test_an_image_that_the_transform_refuses_is_an_error_and_its_neighbors_are_not():
    preprocessing = TimmPreprocessing.from_data_config(CONFIG | {"crop_mode": "border", "input_size": (3, 32, 32)})
    contents = [encode(image, "PNG") for image in (photograph(40, 40), Image.new("RGB", (1, 200)), photograph(50, 30))]
    images = load_images([Row(index, str(index), content) for index, content in enumerate(contents)], [preprocessing], 4, hashes=True)
    assert images.readable == [0, 2]
    assert images.hashes == [image_hash(contents[0]), image_hash(contents[2])]
    assert images.reasons[0][1].startswith("1x200 pixels, which the teacher's transform refuses (")
    assert images.pixels[0].shape == (4, 3, 32, 32)
    assert not images.pixels[0][[1, 3]].any()


@pytest.mark.parametrize("name", KINDS)
def test_without_the_faster_decoder_the_pixels_are_the_same(name, monkeypatch):
    expected = decode_pixels(KINDS[name])
    monkeypatch.setattr("nst_train.transforms.preprocessing.decode_jpeg", None)
    assert torch.equal(decode_pixels(KINDS[name]), expected)

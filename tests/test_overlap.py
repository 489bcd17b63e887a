"""Which images count as near-duplicates, measured on real images and on images like photographs."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from nst_data.digits import write_digits
from nst_data.images import decode, phash, phash_thumbnail
from nst_data.selection.hash_index import HashIndex
from nst_data.selection.overlap import DECODED_SIDE_PX, HeldOut, ImageDescriptors
from nst_data.sources import open_source


def digits(side_px):
    scans = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    return [Image.fromarray(scan).convert("RGB").resize((side_px, side_px), Image.Resampling.BICUBIC) for scan in scans]


def photographs(side_px=96):
    """Pieces of scikit-learn's two photographs that are no plain sky."""
    pieces = [
        photograph[top : top + side_px, left : left + side_px]
        for photograph in load_sample_images().images
        for top in range(0, photograph.shape[0] - side_px, side_px)
        for left in range(0, photograph.shape[1] - side_px, side_px)
    ]
    return [Image.fromarray(piece) for piece in pieces if piece.std(axis=(0, 1)).min() > 12]


def generated(count, side_px=96):
    """Colored noise whose amplitude falls with frequency, as that of photographs does."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side_px)[:, None], np.fft.fftfreq(side_px)[None]) + 1 / side_px
    waves = np.fft.fft2(rng.normal(size=(count, 3, side_px, side_px))) / frequency**1.3
    pixels = np.fft.ifft2(waves).real
    pixels = 128 + 45 * (pixels - pixels.mean(axis=(2, 3), keepdims=True)) / pixels.std(axis=(2, 3), keepdims=True)
    return [Image.fromarray(one) for one in pixels.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)]


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def resized(image, factor, resampling=Image.Resampling.BICUBIC):
    return image.resize((round(image.width * factor), round(image.height * factor)), resampling)


def brighter(image, factor):
    return Image.fromarray((np.asarray(image, np.float32) * factor).clip(0, 255).round().astype(np.uint8))


COPIES = {
    "half the size": lambda image: encoded(resized(image, 0.5, Image.Resampling.BILINEAR)),
    "three quarters of the size": lambda image: encoded(resized(image, 0.75, Image.Resampling.LANCZOS)),
    "one and a half of the size": lambda image: encoded(resized(image, 1.5)),
    "JPEG 50": lambda image: encoded(image, "JPEG", quality=50),
    "JPEG 95": lambda image: encoded(image, "JPEG", quality=95),
    "5% brighter": lambda image: encoded(brighter(image, 1.05)),
    "5% darker": lambda image: encoded(brighter(image, 0.95)),
}
IMAGES = {"digits": digits(32)[::30], "photographs": photographs(), "generated": generated(40)}


def phashes_and_looks(images):
    thumbnails = np.stack([phash_thumbnail(decode(image, DECODED_SIDE_PX)) for image in images])
    return phash(thumbnails), ImageDescriptors.from_thumbnails(thumbnails)


def held_out(images):
    """These images as HeldOut.read gives them."""
    phashes, looks = phashes_and_looks(images)
    return HeldOut(frozenset(), looks, HashIndex(phashes))


def shows_held_out(images, held):
    """Whether each image shows what one of the held-out ones shows."""
    phashes, looks = phashes_and_looks(images)
    return np.array([held.matches(looks.take(slice(row, row + 1)), int(phashes[row])) for row in range(len(images))])


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("kind", IMAGES)
def test_of_changed_copies_95_percent_or_more_are_found(kind, copy):
    held = held_out([encoded(image) for image in IMAGES[kind]])
    assert len(held.index) >= 30
    assert shows_held_out([COPIES[copy](image) for image in IMAGES[kind]], held).mean() >= 0.95


def test_of_distinct_digits_fewer_than_1_in_1000_are_called_duplicates_of_other_digits():
    """All scans of the demo, each against all others: the same ten shapes in the same place, 8 pixels wide."""
    phashes, looks = phashes_and_looks([encoded(image) for image in digits(8)])
    index = HashIndex(phashes)
    candidates, called = 0, 0
    for row in range(len(phashes)):
        others = index.find_near(int(phashes[row]))
        others = others[others != row]
        candidates += len(others) > 0
        called += bool(looks.take(others).matches(looks.take(slice(row, row + 1))).any())
    assert candidates > 100, "hashes alone do not tell digits apart"
    assert called < len(phashes) / 1000


@pytest.mark.parametrize("kind", ["photographs", "generated"])
def test_distinct_photographs_are_not_called_duplicates(kind):
    images = [encoded(image) for image in IMAGES[kind]]
    assert not shows_held_out(images[::2], held_out(images[1::2])).any()


def test_the_demos_digits_are_kept(tmp_path):
    write_digits(tmp_path / "digits", 0)
    held = HeldOut.read([open_source(str(tmp_path / "digits" / part)) for part in ("test", "labeled")], with_near_duplicates=True)
    pool = open_source(str(tmp_path / "digits" / "pool"))
    assert (len(held.index), len(pool)) == (600, 1197)
    assert shows_held_out([pool.read(row) for row in range(len(pool))], held).sum() <= 1


def test_the_same_shape_in_another_color_is_another_image():
    shape = np.asarray(generated(1)[0]).mean(axis=2, keepdims=True)
    red, green = (encoded(Image.fromarray((shape * tint).astype(np.uint8))) for tint in ([1, 0.4, 0.4], [0.4, 0.65, 0.4]))
    assert shows_held_out([red, green], held_out([red])).tolist() == [True, False]


def test_plain_images_are_no_near_duplicates_of_one_another(tmp_path):
    for level in (60, 61, 200):
        Image.new("RGB", (32, 32), (level, level, level)).save(tmp_path / f"{level}.png")
    held = HeldOut.read([open_source(str(tmp_path))], with_near_duplicates=True)
    assert (len(held.image_hashes), len(held.index)) == (3, 0)


def test_how_an_image_is_compared_does_not_depend_on_its_company():
    images = [encoded(image) for image in IMAGES["photographs"]]
    phashes, looks = phashes_and_looks(images)
    for row, image in enumerate(images):
        alone = phashes_and_looks([image])
        assert alone[0][0] == phashes[row]
        assert all(np.array_equal(one[0], many[row]) for one, many in zip(alone[1], looks, strict=True))


def test_any_number_of_threads_reads_the_same(tmp_path):
    pq.write_table(pa.table({"image": [encoded(image) for image in digits(8)[:150]]}), tmp_path / "digits.parquet")
    source = open_source(str(tmp_path / "digits.parquet"))
    one, three = (HeldOut.read([source], True, threads=threads) for threads in (1, 3))
    assert one.image_hashes == three.image_hashes
    assert all(np.array_equal(a, b) for a, b in zip(one.descriptors, three.descriptors, strict=True))

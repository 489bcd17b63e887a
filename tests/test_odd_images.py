"""Every decoder on odd images of strangers: the RGB that each must give, or the reason of its error, and nothing on the screen."""

from random import Random

import numpy as np
import pytest
from odd_images import all_odd_images

from nst_data.images import ImageError, decode, image_hash, upright_size
from nst_train.transforms.crops import RandomResizedCrop
from nst_train.transforms.preprocessing import decode_pixels

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # users see no warning of Pillow's: `nst_data.images`
ALL = all_odd_images()
ODD = {one.name: one for one in ALL}


def exactly(encoded):
    return np.asarray(decode(encoded))


def fast(encoded):
    return decode_pixels(encoded).permute(1, 2, 0).numpy()


def fast_from_arrow(encoded):
    return fast(memoryview(encoded).cast("b"))


DECODERS = [exactly, fast, fast_from_arrow]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_image_gives_its_rgb_or_the_reason_of_its_error(name, capfd):
    _, encoded, expected, off = ODD[name]
    hashed = image_hash(encoded)
    if isinstance(expected, str):
        for decoder in DECODERS:
            with pytest.raises(ImageError, match=expected) as caught:
                decoder(encoded)
            assert "\n" not in str(caught.value)
    else:
        found = [decoder(encoded) for decoder in DECODERS]
        for pixels in found:
            assert pixels.shape == expected.shape
            assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= off
            np.testing.assert_array_equal(pixels, found[0])
        assert upright_size(encoded) == (expected.shape[1], expected.shape[0])
    assert image_hash(encoded) == hashed
    assert capfd.readouterr() == ("", "")


def damaged_copies(number):
    """Odd pictures with a few bytes changed, most of them near the start, where sizes and orientations stand."""
    rng = np.random.default_rng(0)
    readable = [one.encoded for one in ALL if not isinstance(one.expected, str)]
    for _ in range(number):
        changed = bytearray(readable[rng.integers(len(readable))])
        near_the_start = min(len(changed), 300) if rng.random() < 0.7 else len(changed)
        for place in rng.integers(near_the_start, size=rng.choice([1, 2, 8])):
            changed[place] = rng.integers(256)
        yield bytes(changed)


def test_every_decoder_gives_the_same_of_damaged_copies_and_crops_lie_inside(capfd):
    outcomes = set()
    for number, encoded in enumerate(damaged_copies(500)):
        found = [outcome(decoder, encoded) for decoder in DECODERS]
        assert {type(one) for one in found} in ({np.ndarray}, {str})
        outcomes.add(type(found[0]))
        if isinstance(found[0], np.ndarray):
            for pixels in found[1:]:
                np.testing.assert_array_equal(pixels, found[0])
            assert upright_size(encoded) == found[0].shape[1::-1]
            np.testing.assert_array_equal(decode_pixels(encoded, 4).permute(1, 2, 0).numpy(), np.asarray(decode(encoded, 4)))
            crop = RandomResizedCrop(0.2, (8, 8), "bilinear")(encoded, Random(number))
            assert crop.size == (8, 8)
    assert outcomes == {np.ndarray, str}
    assert capfd.readouterr() == ("", "")


def outcome(decoder, encoded):
    try:
        return decoder(encoded)
    except ImageError as error:
        return str(error)


def test_the_odd_images_are_many_and_no_two_the_same():
    assert len(ALL) == len(ODD) == len({one.encoded for one in ALL}) >= 150

import io
import json
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_image

from nst_data.errors import NstError, UsageError
from nst_train.evaluation.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, check_opencv, corrupt
from nst_train.evaluation.corruptions.blur import blur_along, enlarge, smooth
from nst_train.evaluation.corruptions.parameters import benchmark_px, parameters_of
from nst_train.evaluation.corruptions.plasma import plasma

ALL = CORRUPTIONS + EXTRA_CORRUPTIONS
FLAT = np.full((40, 56, 3), (200, 120, 31), dtype=np.uint8)

# With the published parameters the mean absolute change does not grow with each severity: {size: {corruption: steps where it does}}.
# Glass blur and elastic transform trade their parameters against each other; frost and snow take from the image as they add; motion blur
# and fog have two severities of one strength.
GROWING_STEPS = {
    32: {"glass_blur": [(1, 4), (3, 5)], "motion_blur": [(1, 2), (2, 3), (4, 5)], "frost": [(1, 2), (1, 5)], "elastic_transform": []},
    224: {
        "glass_blur": [(1, 3), (3, 5)],
        "snow": [(1, 2), (2, 4), (4, 5)],
        "frost": [(1, 2), (2, 3), (4, 5)],
        "fog": [(1, 2), (2, 3), (4, 5)],
        "elastic_transform": [(1, 2), (3, 4), (4, 5)],
    },
}


def photographs(side=None, count=10):
    """Pieces of the two photographs that scikit-learn ships, uint8, square; without a size as they are, one standing."""
    whole = [load_sample_image("china.jpg"), np.rot90(load_sample_image("flower.jpg")).copy()]
    if side is None:
        return whole
    pieces = [Image.fromarray(whole[index % 2][40 * (index // 2) :][:230, :230]) for index in range(count)]
    return [np.array(piece.resize((side, side), Image.Resampling.BOX)) for piece in pieces]


def digits(count=4):
    images = [Image.fromarray((image * 15).astype(np.uint8)).resize((32, 48)) for image in load_digits().images[:count]]
    return [np.array(image.convert("RGB")) for image in images]


def change(images, name, severity):
    return np.mean([np.abs(corrupt(image, name, severity, seed).astype(float) - image).mean() for seed, image in enumerate(images)])


def test_the_fifteen_stand_in_the_papers_order_and_four_extra_ones_apart():
    assert " ".join(CORRUPTIONS) == (
        "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness contrast "
        "elastic_transform pixelate jpeg_compression"
    )
    assert EXTRA_CORRUPTIONS == ("speckle_noise", "gaussian_blur", "spatter", "saturate")


@pytest.mark.parametrize("name", ALL)
def test_shape_and_type_stay_and_the_image_itself_is_not_touched(name):
    for image in (*digits(1), FLAT, *(whole[:64, :301] for whole in photographs()), np.zeros((32, 200, 3), np.uint8)):
        before = image.copy()
        for severity in SEVERITIES:
            corrupted = corrupt(image, name, severity, seed=0)
            assert (corrupted.shape, corrupted.dtype) == (image.shape, np.uint8)
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_change_more_with_each_severity_where_the_published_parameters_make_them(name, side):
    images = photographs(side)
    changes = [change(images, name, severity) for severity in SEVERITIES]
    for lower, higher in GROWING_STEPS[side].get(name, [(1, 2), (2, 3), (3, 4), (4, 5)]):
        assert changes[lower - 1] < changes[higher - 1], (lower, higher, changes)
    assert min(changes) > 1


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"glass_blur", "elastic_transform"}))
def test_whole_photographs_of_any_aspect_change_more_at_the_highest_severity(name):
    assert change(photographs(), name, 1) < change(photographs(), name, 5)


@pytest.mark.parametrize("side", [32, 64, 224])
def test_what_frost_leaves_of_the_image_shrinks_with_each_severity(side):
    image = photographs(side)[1]
    draws = [[corrupt(image, "frost", severity, seed) for seed in range(8)] for severity in SEVERITIES]
    alike = [np.mean([np.corrcoef(image.ravel(), icy.ravel())[0, 1] for icy in drawn]) for drawn in draws]
    assert all(np.diff(alike) < 0), alike


def test_results_depend_on_image_name_severity_and_seed_alone():
    image = photographs(48)[0]
    work = [(name, severity, seed) for name in ALL for severity in (1, 5) for seed in (0, 7)]
    expected = {job: corrupt(image, *job).tobytes() for job in work}
    assert corrupt(image, "fog", np.int64(5), np.int64(7)).tobytes() == corrupt(image, "fog", 5.0, 7).tobytes() == expected["fog", 5, 7]
    np.random.seed(3)  # nothing reads or moves NumPy's global state
    state = np.random.get_state()[1].copy()
    with ThreadPoolExecutor(4) as pool:
        again = dict(zip(work[::-1], pool.map(lambda job: corrupt(image, *job).tobytes(), work[::-1]), strict=True))
    assert again == expected
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_another_process_gives_the_same_bytes():
    code = (
        "import sys, zlib, numpy as np\n"
        "from nst_train.evaluation.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt\n"
        "image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)\n"
        "print([zlib.crc32(corrupt(image, name, 4, 11).tobytes()) for name in reversed(CORRUPTIONS + EXTRA_CORRUPTIONS)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert json.loads(done.stdout)[::-1] == [zlib.crc32(corrupt(image, name, 4, 11).tobytes()) for name in ALL]


SEEDLESS = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur", "saturate"}


@pytest.mark.parametrize("name", ALL)
def test_another_seed_gives_other_noise_where_there_is_any(name):
    image = photographs(64)[0]
    same = np.array_equal(corrupt(image, name, 3, seed=0), corrupt(image, name, 3, seed=1))
    assert same == (name in SEEDLESS)


def test_severities_share_their_draws():
    gray = np.full((64, 64, 3), 128, np.uint8)
    weak, strong = (corrupt(gray, "gaussian_noise", severity, 0).astype(float).ravel() for severity in (1, 2))
    assert np.corrcoef(weak, strong)[0, 1] > 0.99


def test_parameters_are_those_of_the_benchmark_nearest_in_size():
    assert [benchmark_px(side) for side in (32, 45, 46, 64, 119, 120, 224, 600)] == [32, 32, 64, 64, 64, 224, 224, 224]
    assert [parameters_of("jpeg_compression", severity, 32) for severity in SEVERITIES] == [(80,), (65,), (58,), (50,), (40,)]
    assert [parameters_of("jpeg_compression", severity, 224) for severity in SEVERITIES] == [(25,), (18,), (15,), (10,), (7,)]
    assert parameters_of("elastic_transform", 2, 224) == (488, pytest.approx(19.52), pytest.approx(48.8))


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("name", ALL)
def test_every_severity_has_as_many_parameters(name, size):
    counts = {len(parameters_of(name, severity, size)) for severity in SEVERITIES}
    assert counts == {len(parameters_of(name, 1, 224))}


@pytest.mark.parametrize(("side", "stds"), [(32, (0.04, 0.06, 0.08, 0.09, 0.10)), (224, (0.08, 0.12, 0.18, 0.26, 0.38))])
def test_gaussian_noise_has_the_published_standard_deviation(side, stds):
    gray = np.full((side, side, 3), 128, np.uint8)
    for severity, std in zip(SEVERITIES, stds, strict=True):
        noisy = corrupt(gray, "gaussian_noise", severity, 5)
        inside = (noisy > 0) & (noisy < 255)
        quartiles = np.quantile(noisy, [0.25, 0.75])  # clipping leaves them alone
        assert inside.mean() > 0.75
        assert (quartiles[1] - quartiles[0]) / 1.349 == pytest.approx(255 * std, rel=0.1)


def test_speckle_noise_is_in_proportion_to_the_level():
    dark, light = (corrupt(np.full((224, 224, 3), level, np.uint8), "speckle_noise", 1, 5).std() for level in (40, 120))
    assert dark == pytest.approx(0.15 * 40, rel=0.03)
    assert light == pytest.approx(0.15 * 120, rel=0.03)


def test_shot_noise_has_a_variance_in_proportion_to_the_level():
    for level in (30, 90):
        noisy = corrupt(np.full((224, 224, 3), level, np.uint8), "shot_noise", 1, 5) / 255
        assert noisy.mean() == pytest.approx(level / 255, abs=0.004)
        assert noisy.var() == pytest.approx(level / 255 / 60, rel=0.05)


def test_impulse_noise_sets_the_published_share_of_values_to_black_or_white():
    noisy = corrupt(np.full((224, 224, 3), 128, np.uint8), "impulse_noise", 5, 5)
    assert set(np.unique(noisy)) == {0, 128, 255}
    assert (noisy == 0).mean() == pytest.approx(0.27 / 2, abs=0.004)
    assert (noisy == 255).mean() == pytest.approx(0.27 / 2, abs=0.004)


@pytest.mark.parametrize("name", ["glass_blur", "motion_blur", "zoom_blur", "contrast", "elastic_transform", "pixelate", "gaussian_blur"])
def test_a_flat_picture_stays_as_it_is(name):
    for side in (40, 100, 224):
        flat = np.full((side, side + 31, 3), (200, 120, 31), np.uint8)
        for severity in SEVERITIES:
            np.testing.assert_array_equal(corrupt(flat, name, severity, 0), flat)


def test_brightness_adds_to_the_largest_channel_and_keeps_the_proportions():
    bright = corrupt(FLAT, "brightness", 2, 0)  # 0.1 of 255 at 32 px
    np.testing.assert_array_equal(bright[0, 0], np.floor(np.array([200, 120, 31]) * (225.5 / 200)))
    np.testing.assert_array_equal(corrupt(FLAT, "brightness", 5, 0)[0, 0], [255, 153, 39])
    assert np.unique(corrupt(np.zeros_like(FLAT), "brightness", 3, 0)).tolist() == [38]  # 0.15 of 255


def test_contrast_draws_levels_to_the_mean_of_their_channel():
    halves = FLAT.copy()
    halves[:20] = 0
    lower, upper = corrupt(halves, "contrast", 2, 0)[[0, -1], 0].astype(float)  # by a half
    np.testing.assert_array_equal(lower, np.floor(np.array([200, 120, 31]) * 0.25))
    np.testing.assert_array_equal(upper, np.floor(np.array([200, 120, 31]) * 0.75))


def test_saturate_changes_hsv_saturation_alone():
    import matplotlib.colors

    image = photographs(64)[0]
    hsv = matplotlib.colors.rgb_to_hsv(image / 255.0)
    for severity, (factor, shift) in zip(SEVERITIES, [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)], strict=True):
        wanted = hsv.copy()
        wanted[..., 1] = np.clip(hsv[..., 1] * factor + shift, 0, 1)
        expected = matplotlib.colors.hsv_to_rgb(wanted) * 255
        assert np.abs(corrupt(image, "saturate", severity, 0) - expected).max() < 1.01


def test_jpeg_compression_is_pillows():
    image = photographs()[0]
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=10)
    np.testing.assert_array_equal(corrupt(image, "jpeg_compression", 4, 0), np.array(Image.open(file)))


def test_pixelate_takes_means_over_boxes():
    image = photographs()[1][:240, :128]
    means = image.reshape(60, 4, 32, 4, 3).mean(axis=(1, 3))
    off = corrupt(image, "pixelate", 5, 0) - np.kron(means, np.ones((4, 4, 1)))
    assert np.abs(off).max() <= 1  # rounded once along rows and once along columns


def test_smooth_is_scipys_gaussian_filter():
    image = photographs(96)[0].astype(np.float32)
    for sigma, truncate, border, mode in ((1.5, 4, cv2.BORDER_REPLICATE, "nearest"), (30, 3, cv2.BORDER_REFLECT, "reflect")):
        expected = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode=mode, truncate=truncate)
        np.testing.assert_allclose(smooth(image, sigma, truncate, border), expected, atol=1e-2)
    assert smooth(image, 0.05) is image  # narrower than a pixel


def test_defocus_blur_is_a_disk():
    dot = np.zeros((225, 225, 3), np.uint8)
    dot[112, 112] = 255
    rows, columns = np.mgrid[-112:113, -112:113]
    dots = np.tile(dot[100:125, 100:125], (9, 9, 1))  # 81 of them, so that a disk of 317 pixels is above one level
    blurred = corrupt(dots, "defocus_blur", 5, 0)[..., 0].astype(float)
    disk = ((rows**2 + columns**2) <= 100).astype(float)
    expected = ndimage.correlate(dots[..., 0].astype(float), disk[102:123, 102:123] / disk.sum(), mode="mirror")
    assert np.abs(blurred - expected).mean() < 0.6  # rounded down, the rim softened


@pytest.mark.parametrize("factor", [1, 1.01, 1.13, 2.25, 4, 4.5])
def test_enlarge_is_scipys_zoom_of_the_middle(factor):
    image = photographs(64)[0].astype(np.float32)
    part = int(np.ceil(64 / factor))
    first = (64 - part) // 2
    zoomed = ndimage.zoom(image[first : first + part, first : first + part], (factor, factor, 1), order=1)
    trim = (len(zoomed) - 64) // 2
    off = np.abs(enlarge(image, factor) - zoomed[trim : trim + 64, trim : trim + 64])
    assert off.mean() < 0.3  # OpenCV 4 interpolates at 1/32 of a pixel
    assert off.max() < 4


def test_zoom_blur_is_the_mean_of_the_image_and_its_enlargements():
    image = photographs(32)[0].astype(np.float32)
    enlarged = [enlarge(image, factor) for factor in (1, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06)]
    expected = (image + sum(enlarged)) / 8
    np.testing.assert_allclose(corrupt(photographs(32)[0], "zoom_blur", 1, 0), expected - 0.5, atol=0.502)


def test_motion_spreads_a_dot_over_half_a_gaussian():
    dot = np.zeros((1, 64), np.uint8)
    dot[0, 40] = 255
    weights = np.exp(-(np.arange(21) ** 2) / (2 * 3.0**2))
    np.testing.assert_allclose(blur_along(dot, 10, 3, 0)[0, 40 - 20 : 41], 255 * (weights / weights.sum())[::-1], atol=1e-3)
    down = blur_along(dot.T.copy(), 10, 3, 90)
    np.testing.assert_allclose(down[20:41, 0], 255 * (weights / weights.sum())[::-1], atol=1e-3)


def test_glass_blur_is_the_published_loop():
    image, reach, severity = np.vstack([photographs(37)[0], photographs(37)[1][:3]]), 1, 4  # 40 high; two rounds
    sigma, _, rounds = parameters_of("glass_blur", severity, 37)
    random = np.random.default_rng([9, *b"glass_blur"])
    pixels = (smooth(image, sigma) + 1e-3).astype(np.uint8)
    for _ in range(rounds):
        shifts = random.integers(-reach, reach, (2, 40 - 2 * reach, 37 - 2 * reach), dtype=np.int32)
        for row in range(40 - reach, reach, -1):
            for column in range(37 - reach, reach, -1):
                down, right = shifts[:, row - reach - 1, column - reach - 1]
                pixels[row, column] = pixels[row + down, column + right]
    np.testing.assert_array_equal(corrupt(image, "glass_blur", severity, 9), (smooth(pixels, sigma) + 1e-3).astype(np.uint8))


@pytest.mark.parametrize("severity", [1, 2, 5])
def test_elastic_transform_is_an_affine_map_and_then_smooth_displacements(severity):
    image = np.vstack([photographs(33)[0], photographs(33)[1][:7]])  # 33 wide, 40 high
    strength, sigma, affine = parameters_of("elastic_transform", severity, 33)
    random = np.random.default_rng([4, *b"elastic_transform"])
    corners = np.array([[27, 31], [27, 9], [5, 9]], np.float32)
    moved = corners + random.uniform(-affine, affine, (3, 2)).astype(np.float32)
    matrix = np.linalg.solve(np.column_stack([corners, np.ones(3)]), moved).T  # from old places to new ones
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    rows, columns = np.mgrid[:40, :33].astype(float)
    source_column, source_row, _ = np.einsum("ij,jrc->irc", back, np.stack([columns, rows, np.ones_like(rows)]))
    noise = random.random((2, 40, 33), dtype=np.float32) * 2 - 1
    down, right = (strength * (ndimage.gaussian_filter(layer, sigma, truncate=3) if sigma else layer) for layer in noise)
    expected = np.empty(image.shape)
    for channel in range(3):
        turned = ndimage.map_coordinates(image[..., channel].astype(float), [source_row, source_column], order=1, mode="mirror")
        expected[..., channel] = ndimage.map_coordinates(turned, [rows + down, columns + right], order=1, mode="reflect")
    off = np.abs(corrupt(image, "elastic_transform", severity, 4) - expected)
    assert off.mean() < 0.8  # rounded down: a half
    assert np.quantile(off, 0.99) < 3


def test_plasma_is_a_smooth_periodic_map_from_0_to_1():
    cloud = plasma(64, 3, np.random.default_rng(0))
    assert (cloud.shape, cloud.min(), cloud.max()) == ((64, 64), 0, 1)
    steps = np.abs(cloud - np.roll(cloud, 1, axis=0)).mean(axis=1)
    assert steps.max() < 0.05  # the first row, next to the last one, included
    rough = plasma(64, 1.4, np.random.default_rng(0))
    assert np.abs(np.diff(rough)).mean() > 2 * np.abs(np.diff(cloud)).mean()


def test_the_noise_of_plasma_shrinks_by_the_square_of_the_decay_with_each_halving():
    def noise(heights):
        """Of the points that came last between two neighbors: how far they are from the mean of the four around them."""
        middles = heights[1::2, 1::2]
        around = heights[::2, ::2] + np.roll(heights[::2, ::2], -1, axis=1) + middles + np.roll(middles, 1, axis=0)
        return (heights[::2, 1::2] - around / 4).std()

    cloud = plasma(256, 1.5, np.random.default_rng(0))
    assert noise(cloud[::2, ::2]) / noise(cloud) == pytest.approx(1.5**2, rel=0.05)
    assert noise(cloud[::4, ::4]) / noise(cloud[::2, ::2]) == pytest.approx(1.5**2, rel=0.05)


def test_snow_falls_on_a_whitened_image_and_upside_down_too():
    snowy = corrupt(np.zeros((96, 80, 3), np.uint8), "snow", 1, 0)  # at 64 px the image keeps 0.8 of itself
    assert np.bincount(snowy.ravel()).argmax() == snowy.min() == int(0.2 * 127.5)  # where no flake has been
    np.testing.assert_array_equal(snowy, snowy[::-1, ::-1])
    flakes = snowy[..., 0].astype(float)
    assert np.abs(np.diff(flakes, axis=0)).mean() < np.abs(np.diff(flakes, axis=1)).mean()  # streaks run down


def test_spatter_is_pale_water_or_brown_mud():
    black, white = np.zeros((128, 160, 3), np.uint8), np.full((128, 160, 3), 255, np.uint8)
    wet = corrupt(black, "spatter", 3, 0)
    brightest = wet.reshape(-1, 3)[wet[..., 1].argmax()]
    np.testing.assert_array_equal(brightest, [int(0.5 * 175), int(0.5 * 238), int(0.5 * 238)])
    red, green, blue = (corrupt(white, "spatter", 5, 0)[..., channel] for channel in range(3))
    assert (red.min(), green.min(), blue.min()) == (63, 42, 20)
    assert ((red == 255) | (red <= 255 - 0.8 * (255 - 63))).all()  # what is covered by less than 0.8 is not
    assert 0.05 < (red < 255).mean() < 0.9


def test_fog_stays_in_the_images_range_and_leaves_black_black():
    gray = np.full((64, 64, 3), 100, np.uint8)
    foggy = corrupt(gray, "fog", 5, 0)
    assert foggy.max() == 100  # where the cloud is thickest
    assert not corrupt(np.zeros_like(gray), "fog", 5, 0).any()


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (224, 224), (700, 40), (40, 900)])
def test_frost_covers_images_of_any_size(shape):
    icy = corrupt(np.zeros((*shape, 3), np.uint8), "frost", 5, 0).astype(float)
    assert icy.mean() > 20
    assert icy.std(axis=(0, 1)).min() > 3


BAD = {
    "name": (FLAT, "rain", 1, 0, UsageError, "corruption: expected one of gaussian_noise, .*saturate, found 'rain'"),
    "severity 0": (FLAT, "fog", 0, 0, UsageError, "severity of fog: expected 1 to 5, found 0"),
    "severity 2.5": (FLAT, "fog", 2.5, 0, UsageError, "severity of fog: expected 1 to 5, found 2.5"),
    "float": (FLAT / 255, "fog", 1, 0, NstError, r"expected an RGB image as uint8 array .* found float64, shape \(40, 56, 3\)"),
    "gray": (FLAT[..., 0], "fog", 1, 0, NstError, r"expected an RGB image .* found uint8, shape \(40, 56\)"),
    "list": ([[1]], "fog", 1, 0, NstError, "expected an RGB image .* found list"),
    "small": (FLAT[:31], "fog", 1, 0, NstError, "expected an image of 32 px or more on both sides, found 56x31; enlarge it first"),
    "negative seed": (FLAT, "fog", 1, -1, NstError, "expected a whole number from 0 up as seed, found -1"),
    "broken seed": (FLAT, "fog", 1, 0.5, NstError, "expected a whole number from 0 up as seed, found 0.5"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_in_one_line(case):
    pixels, name, severity, seed, kind, message = BAD[case]
    with pytest.raises(kind, match=message) as caught:
        corrupt(pixels, name, severity, seed)
    assert "\n" not in str(caught.value)


def test_opencv_counts_as_installed_while_another_thread_imports_it(monkeypatch):
    monkeypatch.setattr(cv2, "__spec__", None)  # as it is for a moment then
    check_opencv()

"""Operations against the formulas and the pixel arithmetic of the released code, written out in NumPy."""

import math
from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment

from nst_train.noise_settings import Noise
from nst_train.settings import TrainSettings
from nst_train.transforms.randaugment import FILL, OPERATIONS, Operation, RandAugment, cutout, cutout_px, operation_amount, translate_px

LEVELS = [0, 5, 9, 10, 15, 27]
FORMULAS = {
    "AutoContrast": [0, 0, 0, 0, 0, 0],
    "Equalize": [0, 0, 0, 0, 0, 0],
    "Invert": [0, 0, 0, 0, 0, 0],
    "Rotate": [0, 15, 27, 30, 45, 81],
    "Posterize": [0, 2, 3, 4, 6, 10],
    "Solarize": [0, 128, 230, 256, 384, 691],
    "SolarizeAdd": [0, 55, 99, 110, 165, 297],
    "Color": [0.1, 1.0, 1.72, 1.9, 2.8, 4.96],
    "Contrast": [0.1, 1.0, 1.72, 1.9, 2.8, 4.96],
    "Brightness": [0.1, 1.0, 1.72, 1.9, 2.8, 4.96],
    "Sharpness": [0.1, 1.0, 1.72, 1.9, 2.8, 4.96],
    "ShearX": [0, 0.15, 0.27, 0.3, 0.45, 0.81],
    "ShearY": [0, 0.15, 0.27, 0.3, 0.45, 0.81],
    "TranslateX": [0, 50, 90, 100, 150, 270],
    "TranslateY": [0, 50, 90, 100, 150, 270],
    "Cutout": [0, 20, 36, 40, 60, 108],
}
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(PIXELS[:5, :6]).resize((48, 40), Image.Resampling.BICUBIC))  # neighbors alike, as in photographs


def changed(name, amount, pixels=PIXELS):
    return np.asarray(Operation(name, amount)(Image.fromarray(pixels), Unsigned()))


class Unsigned(Random):
    """Never draws the other sign."""

    def random(self):
        return 0.9


def blend(degenerate, image, factor):
    mixed = np.float32(degenerate) + np.float32(factor) * (np.float32(image) - np.float32(degenerate))
    return np.clip(mixed, 0, 255).astype(np.uint8)


def is_moved(result, pixels, matrix):
    """Each pixel is the nearest one to (a x + b y + c, d x + e y + f), counted from the middle of the first pixel; 128 outside.

    Between two pixels either will do: Pillow's coordinates are in 1/65536.
    """
    height, width, _ = pixels.shape
    y, x = np.mgrid[:height, :width]
    a, b, c, d, e, f = matrix
    at_x, at_y = a * x + b * y + c, d * x + e * y + f
    near_x, near_y = np.floor(at_x + 0.5).astype(int), np.floor(at_y + 0.5).astype(int)
    inside = (near_x >= 0) & (near_x < width) & (near_y >= 0) & (near_y < height)
    expected = np.full_like(pixels, 128)
    expected[inside] = pixels[near_y[inside], near_x[inside]]
    between = (np.abs(at_x % 1 - 0.5) < 0.002) | (np.abs(at_y % 1 - 0.5) < 0.002)
    assert between.mean() < 0.2
    return (result == expected)[~between].all()


def test_there_are_the_16_operations_of_the_released_code():
    assert len(OPERATIONS) == 16
    assert set(OPERATIONS) == set(FORMULAS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_amount_of_each_operation_follows_the_released_formula_unclipped(name):
    assert [operation_amount(name, level) for level in LEVELS] == pytest.approx(FORMULAS[name])


def test_scaled_pixel_amounts_are_the_released_ones_at_600_and_at_32_pixels_and_in_proportion_elsewhere():
    assert (translate_px(600), cutout_px(600)) == (100, 40)
    assert (translate_px(32), cutout_px(32)) == (4, 4)
    assert (translate_px(300), cutout_px(300)) == (50, 20)
    assert [operation_amount("Cutout", 5, 32), operation_amount("TranslateX", 5, 32)] == [2, 2]


# The released code's translate_const of 100 and cutout_const of 40, times magnitude / 10, whatever the size; 32 // 8 of each for SVHN.
RELEASED_PX = {
    "efficientnet-b2": (60, 24),
    "efficientnet-b3": (120, 48),
    "efficientnet-b4": (150, 60),
    "efficientnet-b5": (180, 72),
    "efficientnet-b6": (240, 96),
    "efficientnet-b7": (270, 108),
    "efficientnet-l2": (270, 108),
    "resnet-50": (90, 36),
    "svhn": (2, 2),
    "efficientnet-b2-code": (60, 24),
    "efficientnet-b7-code": (270, 108),
    "svhn-code": (2, 2),
}


@pytest.mark.parametrize("preset", RELEASED_PX)
def test_presets_translate_and_cut_out_as_many_pixels_as_the_released_code(preset):
    settings = TrainSettings(preset=preset)
    amounts = {one.name: one.amount for one in RandAugment(settings.noise, settings.image_size).operations}
    assert (amounts["TranslateX"], amounts["Cutout"]) == pytest.approx(RELEASED_PX[preset])
    assert amounts["TranslateX"] == amounts["TranslateY"]


def test_in_training_by_a_preset_an_image_moves_by_the_released_pixels():
    settings = TrainSettings(preset="efficientnet-b2", crop_scale_min=1, flip=0)
    policy = RandAugment(settings.noise, 260)
    (moved,) = (one for one in policy.operations if one.name == "TranslateX")
    white = np.full((260, 260, 3), 255, np.uint8)
    assert {int((changed_at(moved, white, seed) == FILL).all(-1).sum()) for seed in range(4)} == {60 * 260}


@pytest.mark.parametrize("level", LEVELS)
def test_posterize_shifts_by_a_byte_that_wraps_and_is_clamped_to_7(level):
    shift = min((8 - int(level / 10 * 4)) % 256, 7)
    assert (changed("Posterize", operation_amount("Posterize", level)) == PIXELS >> shift << shift).all()


@pytest.mark.parametrize(("level", "threshold"), [(0, 0), (5, 128), (9, 230), (10, 0), (15, 128), (27, 179)])
def test_solarize_compares_with_a_threshold_that_wraps_at_256(level, threshold):
    expected = np.where(threshold > PIXELS, PIXELS, 255 - PIXELS)
    assert (changed("Solarize", operation_amount("Solarize", level)) == expected).all()


@pytest.mark.parametrize("level", LEVELS)
def test_solarize_add_adds_below_128_and_clips(level):
    added = np.clip(PIXELS.astype(int) + int(level / 10 * 110), 0, 255)
    assert (changed("SolarizeAdd", operation_amount("SolarizeAdd", level)) == np.where(PIXELS < 128, added, PIXELS)).all()


@pytest.mark.parametrize("level", LEVELS)
def test_brightness_blends_with_black_clipped_and_rounded_down(level):
    factor = operation_amount("Brightness", level)
    assert (changed("Brightness", factor) == blend(np.zeros_like(PIXELS), PIXELS, factor)).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(32, 32), (40, 48), (300, 300)])
def test_contrast_blends_with_the_number_of_pixels_over_256(level, shape):
    pixels = np.resize(PIXELS, (*shape, 3))
    gray, factor = min(255, shape[0] * shape[1] // 256), operation_amount("Contrast", level)
    assert (changed("Contrast", factor, pixels) == blend(np.full_like(pixels, gray), pixels, factor)).all()


@pytest.mark.parametrize("level", LEVELS)
def test_color_blends_with_gray_to_within_the_rounding_of_gray(level):
    weighted = PIXELS.astype(np.float64) @ [0.2989, 0.587, 0.114]
    gray = np.repeat((weighted / 255 * 255.5).astype(np.uint8)[..., None], 3, axis=2)
    factor = operation_amount("Color", level)
    difference = changed("Color", factor).astype(int) - blend(gray, PIXELS, factor)
    assert np.abs(difference).max() <= math.ceil(abs(1 - factor))
    assert np.abs(difference).mean() <= 0.5 * abs(1 - factor)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pixels", [PIXELS, SMOOTH])
def test_color_with_released_amounts_blends_with_the_released_codes_gray(level, pixels):
    """tf.image.rgb_to_grayscale: levels to [0, 1], weighted, back times 255.5 and rounded down, all in float32."""
    weights, shares = np.float32([0.2989, 0.587, 0.114]), pixels.astype(np.float32) * np.float32(1 / 255)
    gray = (shares * weights).sum(-1, dtype=np.float32) * np.float32(255.5)
    degenerate = np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
    factor = operation_amount("Color", level)
    assert (released("Color", factor, pixels) == blend(degenerate, pixels, factor)).all()


def test_released_grays_are_tensorflows():
    """As TensorFlow 2.21 gives them; Pillow's, one level more, are those of `scaled`."""
    colors = np.uint8([[[69, 78, 10], [128, 155, 248], [208, 171, 0], [100, 219, 141], [20, 76, 123]]])
    assert released("Color", 0.0, colors)[0, :, 0].tolist() == [67, 157, 162, 174, 64]
    assert changed("Color", 0.0, colors)[0, :, 0].tolist() == [68, 158, 163, 175, 65]


def released(name, amount, pixels):
    return np.asarray(Operation(name, amount, "released")(Image.fromarray(pixels), Unsigned()))


@pytest.mark.parametrize("size", [(40, 48), (90, 80)])  # with and without NumPy's look-up
def test_autocontrast_with_released_amounts_stretches_in_float32(size):
    pixels = np.clip(smooth(*size), 3, 249)
    low, high = pixels.min((0, 1)).astype(np.float32), pixels.max((0, 1)).astype(np.float32)
    scale = np.float32(255) / (high - low)
    expected = np.clip(pixels.astype(np.float32) * scale + -low * scale, 0, 255).astype(np.uint8)
    assert (released("AutoContrast", 0, pixels) == expected).all()


@pytest.mark.parametrize("level", [5, 9, 15, 27])
def test_shear_with_released_amounts_rounds_half_a_pixel_up(level):
    """float32(0.15) * 10 is 1.5 in TensorFlow, which rounds it to 2; Pillow's 9830 / 65536 is below 0.15."""
    tall = np.random.default_rng(2).integers(0, 256, (600, 30, 3), dtype=np.uint8)
    hundredths = 3 * level
    x, y = np.meshgrid(np.arange(30), np.arange(600))
    source = x + (hundredths * y + 50) // 100
    expected = np.where((source < 30)[..., None], tall[y, np.minimum(source, 29)], 128)
    assert (released("ShearX", operation_amount("ShearX", level), tall) == expected).all()


@pytest.mark.parametrize("level", LEVELS)
def test_sharpness_blends_with_a_smooth_image_rounded_down_and_leaves_the_border(level):
    wide, smooth = PIXELS.astype(int), PIXELS.copy()
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(0, 1))
    smooth[1:-1, 1:-1] = (windows.sum((-1, -2)) + 4 * wide[1:-1, 1:-1]) // 13
    factor = operation_amount("Sharpness", level)
    assert (changed("Sharpness", factor) == blend(smooth, PIXELS, factor)).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("name", "matrix_of"),
    [
        ("ShearX", lambda level: (1, level, 0, 0, 1, 0)),
        ("ShearY", lambda level: (1, 0, 0, level, 1, 0)),
        ("TranslateX", lambda pixels: (1, 0, pixels, 0, 1, 0)),
        ("TranslateY", lambda pixels: (1, 0, 0, 0, 1, pixels)),
    ],
)
def test_shear_and_translate_take_the_nearest_pixel_counted_from_the_first_ones_middle(name, matrix_of, level):
    amount = operation_amount(name, level, 46)
    for signed in (amount, -amount):
        assert is_moved(changed(name, signed), PIXELS, matrix_of(signed))


@pytest.mark.parametrize("degrees", [0, 15, 27, 30, 45, 81, -81])
def test_rotate_turns_around_the_middle_and_takes_the_nearest_pixel(degrees):
    height, width, _ = PIXELS.shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    matrix = (cos, -sin, middle_x - cos * middle_x + sin * middle_y, sin, cos, middle_y - sin * middle_x - cos * middle_y)
    assert is_moved(changed("Rotate", degrees), PIXELS, matrix)


def test_autocontrast_stretches_each_channel_over_all_levels():
    low, high = SMOOTH.min((0, 1)).astype(np.float64), SMOOTH.max((0, 1))
    expected = np.clip((SMOOTH - low) * 255 / (high - low), 0, 255).astype(int)
    assert np.abs(changed("AutoContrast", 0, SMOOTH).astype(int) - expected).max() <= 1


def test_equalize_follows_the_cumulative_histogram():
    expected = np.empty_like(SMOOTH)
    for channel in range(3):
        counts = np.bincount(SMOOTH[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        below = np.concatenate([[0], np.cumsum(counts)[:-1]])
        expected[..., channel] = np.clip((below + step // 2) // step, 0, 255)[SMOOTH[..., channel]]
    assert (changed("Equalize", 0, SMOOTH) == expected).all()


def test_invert_is_255_minus_the_pixel():
    assert (changed("Invert", 0) == 255 - PIXELS).all()


@pytest.mark.parametrize("side", [0, 1, 6, 20, 200])
def test_cutout_grays_a_square_around_a_pixel_and_nothing_else(side):
    covered = set()
    for seed in range(300):
        grayed = (np.asarray(cutout(Image.fromarray(PIXELS), side, Random(seed))) != PIXELS).any(-1)
        assert grayed.sum() <= side * side
        if side == 6:
            rows, columns = np.flatnonzero(grayed.any(1)), np.flatnonzero(grayed.any(0))
            assert len(rows) in range(3, 7)  # half of it at least is inside
            covered |= {(rows[0], columns[0])}
    if side == 6:
        assert len(covered) > 250
        assert min(row for row, _ in covered) == 0


def test_cutout_in_the_policy_has_twice_the_amount_as_its_side():
    pixels = np.zeros((600, 600, 3), np.uint8)
    areas = [
        int((changed_at(Operation("Cutout", operation_amount("Cutout", 5)), pixels, seed) == FILL).all(-1).sum()) for seed in range(20)
    ]
    assert max(areas) == 40 * 40


def changed_at(operation, pixels, seed):
    return np.asarray(operation(Image.fromarray(pixels), Random(seed)))


def test_the_image_given_is_left_as_it_is():
    image = Image.fromarray(PIXELS)
    for operation in RandAugment(Noise(), 40).operations:
        operation(image, Random(1))
    assert (np.asarray(image) == PIXELS).all()


@pytest.mark.parametrize("magnitude", [0, 1, 5, 10, 23, 27, 30, 100])
def test_every_operation_runs_at_every_magnitude(magnitude):
    for operation in RandAugment(Noise(magnitude=magnitude), 40).operations:
        assert operation(Image.fromarray(PIXELS), Random(0)).size == (48, 40)


def test_operations_are_drawn_evenly_with_replacement_and_all_applied():
    drawn = Counter()

    class Counted(Operation):
        def __call__(self, image, random):
            drawn[self.name] += 1
            seen.append(self.name)
            return image

    policy, pairs = RandAugment(Noise(operations=2), 40), Counter()
    policy.operations = [Counted(operation.name, operation.amount) for operation in policy.operations]
    for seed in range(3200):
        seen = []
        policy(Image.fromarray(PIXELS), Random(seed))
        pairs[len(seen), len(set(seen))] += 1
    assert sum(drawn.values()) == 6400
    assert all(300 < drawn[name] < 500 for name in OPERATIONS)  # 400 each: five standard deviations
    assert 120 < pairs[2, 1] < 280  # one pair in 16 holds the same operation twice


def test_signs_are_drawn_evenly():
    turned = Operation("TranslateX", 10)
    left = sum(bool((changed_at(turned, PIXELS, seed)[:, 0] == FILL).all()) for seed in range(400))
    assert 150 < left < 250


def plain(height, width):
    return np.full((height, width, 3), 77, np.uint8)


def one_channel_plain(height, width):
    pixels = np.resize(SMOOTH, (height, width, 3)).copy()
    pixels[..., 1] = 200
    return pixels


def smooth(height, width):
    return np.resize(SMOOTH, (height, width, 3))


def noisy(height, width):
    return np.resize(PIXELS, (height, width, 3))


@pytest.mark.parametrize("size", [(40, 48), (90, 80)])  # with and without NumPy's look-up
@pytest.mark.parametrize("pixels_of", [smooth, noisy, plain, one_channel_plain])
@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Invert", "Color", "Brightness"])
def test_what_timm_does_alike_equals_timms_operation(name, pixels_of, size):
    pixels, amounts = pixels_of(*size), [1.9] if name in ("Color", "Brightness") else []
    theirs = auto_augment.NAME_TO_OP[name](Image.fromarray(pixels), *amounts)
    assert (changed(name, 1.9, pixels) == np.asarray(theirs)).all()


@pytest.mark.parametrize("name", ["Posterize", "Solarize", "SolarizeAdd"])
def test_large_and_small_images_go_through_the_same_table(name):
    large, amount = noisy(120, 48), operation_amount(name, 9)
    assert (changed(name, amount, large)[:40] == changed(name, amount, large[:40])).all()

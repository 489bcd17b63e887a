import io
import struct
import zlib

import numpy as np
import pytest
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from nst_data.decoding import jpeg
from nst_data.images import FORMATS, ImageError, decode, image_hash, jpeg_header, phash, phash_thumbnail, reduced_size
from nst_data.sources.files import IMAGE_SUFFIXES


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(encoded):
    image = decode(encoded)
    assert image.mode == "RGB"
    return np.asarray(image)


def bits_apart(left, right):
    one, other = phash(np.stack([phash_thumbnail(left), phash_thumbnail(right)]))
    return (int(one) ^ int(other)).bit_count()


def test_a_one_bit_image_is_black_and_white():
    image = Image.fromarray(np.array([[False, True], [True, False]]))
    assert image.mode == "1"
    assert pixels(encode(image)).tolist() == [[[0] * 3, [255] * 3], [[255] * 3, [0] * 3]]


def test_a_gray_image_has_three_equal_channels():
    assert pixels(encode(Image.fromarray(np.array([[0, 7, 255]], np.uint8)))).tolist() == [[[0] * 3, [7] * 3, [255] * 3]]


def test_a_palette_image_with_a_transparent_color_lies_over_white():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    assert pixels(encode(image, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_palette_image_with_an_opacity_per_color_lies_over_white():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 0, 0, 0])
    image.putdata([0, 1, 2])
    assert pixels(encode(image, transparency=bytes([255, 0, 51]))).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]


def test_a_gray_image_with_alpha_lies_over_white():
    image = Image.fromarray(np.array([[[0, 255], [0, 0], [0, 51]]], np.uint8))
    assert image.mode == "LA"
    assert pixels(encode(image)).tolist() == [[[0] * 3, [255] * 3, [204] * 3]]


def test_a_color_image_with_alpha_lies_over_white():
    image = Image.fromarray(np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [255, 0, 0, 51]]], np.uint8))
    assert pixels(encode(image)).tolist() == [[[255, 0, 0], [255, 255, 255], [255, 204, 204]]]


def test_a_cmyk_image_becomes_rgb():
    image = Image.frombytes("CMYK", (3, 1), bytes([0, 0, 0, 0, 255, 255, 0, 0, 0, 0, 0, 255]))
    assert pixels(encode(image, "TIFF")).tolist() == [[[255] * 3, [0, 0, 255], [0] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_divided_by_257(kind):
    image = Image.fromarray(np.array([[0, 257, 200 * 257, 65535]], np.uint16))
    assert image.mode == "I;16"
    assert pixels(encode(image, kind))[0, :, 0].tolist() == [0, 1, 200, 255]


def test_floats_up_to_one_fill_the_range():
    assert pixels(encode(Image.fromarray(np.array([[0, 0.2, 1]], np.float32)), "TIFF"))[0, :, 0].tolist() == [0, 51, 255]


def test_floats_whose_range_is_not_known_are_an_error():
    image = Image.fromarray(np.array([[0, 0.2, 1.02]], np.float32))
    with pytest.raises(ImageError, match=r"value range \(0 to 1\.02\).*SMinSampleValue"):
        decode(encode(image, "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_as_its_exif_says(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(picture(1, 0).resize((9, 6)), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    assert expected.size == ((9, 6) if orientation <= 4 else (6, 9))
    np.testing.assert_array_equal(pixels(encoded), np.asarray(expected))


def test_an_impossible_orientation_leaves_the_image_as_it_is():
    exif = Image.Exif()
    exif[0x0112] = 9
    image = picture(0, 0)
    np.testing.assert_array_equal(pixels(encode(image, exif=exif)), np.asarray(image))


def test_the_first_frame_stands_for_an_animation():
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    assert pixels(encode(first, "GIF", save_all=True, append_images=[second]))[0, 0].tolist() == [255, 0, 0]


def test_a_truncated_jpeg_is_an_error_with_the_decoders_reason():
    encoded = encode(picture(0, 0, 64), "JPEG")
    with pytest.raises(ImageError, match="truncated"):
        decode(encoded[: len(encoded) // 2])


OTHERS = ["EPS", "PCX", "ICO", "SGI", "DDS", "DIB"]
STARTS = {
    "WMF": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(12) + b"\x01\x00\x09\x00" + bytes(40),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "GRIB": b"GRIB" + bytes(3) + b"\x01" + bytes(40),
    "BUFR": b"BUFR" + bytes(40),
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(80) + bytes(2720),
    "PSD": b"8BPS\x00\x01" + bytes(6) + b"\x00\x03" + bytes(40),
    "PDF": b"%PDF-1.7\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_format_that_is_not_listed_is_not_opened_though_pillow_could(kind):
    encoded = encode(Image.new("RGB", (32, 32)), kind)
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.format == kind
    with pytest.raises(ImageError, match="not an image in a known format"):
        decode(encoded)


@pytest.mark.parametrize("kind", STARTS)
def test_what_is_no_picture_is_not_opened(kind):
    with pytest.raises(ImageError, match="not an image in a known format"):
        decode(STARTS[kind])


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\necho called >> {tmp_path}/called\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # as if nobody had looked for it yet
    with pytest.raises(ImageError, match="not an image in a known format"):
        decode(encode(Image.new("RGB", (32, 32), "red"), "EPS"))
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_a_file_of_each_suffix_is_opened(suffix, tmp_path):
    path, image = tmp_path / f"a{suffix}", Image.new("1" if suffix == ".pbm" else "L" if suffix == ".pgm" else "RGB", (6, 4), "white")
    image.save(path)
    assert (pixels(path.read_bytes()) == 255).all()
    with Image.open(path) as written:
        assert written.format in FORMATS


def test_an_empty_file_is_an_error():
    with pytest.raises(ImageError, match="empty file"):
        decode(b"")


def test_text_is_an_error():
    with pytest.raises(ImageError, match="not an image in a known format"):
        decode(b"once upon a time there was no image at all")


def test_more_pixels_than_are_decoded_is_an_error(monkeypatch):
    monkeypatch.setattr("nst_data.images.MAX_PIXELS", 99)
    with pytest.raises(ImageError, match="10x10 pixels, more than the 99"):
        decode(encode(Image.new("L", (10, 10))))


def test_the_hash_is_of_the_encoded_bytes():
    encoded = encode(picture(0, 0))
    assert image_hash(encoded) == image_hash(bytearray(encoded)) != image_hash(encode(picture(0, 0), "BMP"))
    assert len(image_hash(encoded)) == 32
    assert image_hash(b"") == "99aa06d3014798d86001c324468d497f"  # from the xxHash specification


@pytest.mark.parametrize("seed", range(5))
def test_a_resized_and_compressed_copy_has_nearly_the_same_phash(seed):
    blobs = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(blobs).resize((128, 96), Image.Resampling.BICUBIC)
    copy = decode(encode(image.resize((80, 60)), "JPEG", quality=60))
    assert bits_apart(image, copy) <= 10  # of 64


@pytest.mark.parametrize("seed", range(5))
def test_another_image_has_a_far_phash(seed):
    first, second = (np.random.default_rng([seed, which]).integers(0, 256, (8, 8, 3), dtype=np.uint8) for which in (0, 1))
    assert bits_apart(Image.fromarray(first).resize((96, 96)), Image.fromarray(second).resize((96, 96))) >= 16


def test_plain_images_of_other_brightness_have_nearly_the_same_phash():
    assert bits_apart(Image.new("RGB", (50, 40), (100, 100, 100)), Image.new("RGB", (50, 40), (255, 255, 255))) <= 1


def test_the_phash_of_an_image_does_not_depend_on_its_batch():
    thumbnails = np.stack([phash_thumbnail(picture(label, 0)) for label in range(3)])
    assert [int(phash(one[None])[0]) for one in thumbnails] == phash(thumbnails).tolist()


def test_the_phashes_of_no_images_are_an_empty_array():
    hashes = phash(np.empty((0, 32, 32), np.uint8))
    assert hashes.shape == (0,)
    assert hashes.dtype == np.int64


def jpegs():
    image = picture(1, 2, 40)
    options = ({}, {"progressive": True}, {"exif": b"Exif\0\0" + bytes(200)}, {"comment": bytes(300)}, {"keep_rgb": True})
    return [encode(image, "JPEG", **one) for one in options] + [encode(image.convert(mode), "JPEG") for mode in ("L", "CMYK")]


@pytest.mark.parametrize(("mode", "components"), [("L", 1), ("RGB", 3), ("CMYK", 4)])
def test_a_jpegs_header_says_its_size_and_components(mode, components):
    assert jpeg_header(encode(Image.new(mode, (7, 5)), "JPEG")) == (7, 5, components)


def test_fill_bytes_and_other_segments_before_the_header_are_passed_over():
    encoded = encode(Image.new("RGB", (7, 5)), "JPEG")
    segment = b"\xff\xff\xff\xed\x00\x06\xff\xc0\xff\xc0"
    assert jpeg_header(encoded[:2] + segment + encoded[2:]) == (7, 5, 3)


@pytest.mark.parametrize("encoded", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(40), bytes(100)])
def test_what_is_no_jpeg_has_no_header(encoded):
    assert jpeg_header(encoded) is None


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC9, 0xCF])
def test_a_jpeg_that_is_lossless_arithmetic_or_hierarchical_is_left_to_pillow(marker):
    encoded = encode(Image.new("RGB", (7, 5)), "JPEG")
    assert jpeg_header(encoded.replace(b"\xff\xc0", bytes([0xFF, marker]))) is None


def test_a_jpeg_of_twelve_bits_is_left_to_pillow():
    encoded = encode(Image.new("RGB", (7, 5)), "JPEG")
    assert jpeg_header(encoded.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c")) is None


@pytest.mark.parametrize("number", range(len(jpegs())))
def test_a_jpeg_cut_short_anywhere_has_the_whole_ones_header_or_none(number):
    encoded = jpegs()[number]
    whole = jpeg_header(encoded)
    assert whole is not None
    assert {jpeg_header(encoded[:length]) for length in range(len(encoded) + 1)} == {None, whole}


@given(st.binary(max_size=60), st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x04ab", b"\xff\xd8\xff\xc0\x00\x11\x08"]))
@settings(max_examples=400, deadline=None)
def test_any_bytes_have_a_header_or_none(content, start):
    header = jpeg_header(memoryview(start + content))
    assert header is None or all(0 <= value < 2**16 for value in header)


def test_a_header_is_read_from_signed_bytes_as_arrow_gives_them():
    encoded = encode(Image.new("RGB", (700, 500)), "JPEG")
    assert jpeg_header(memoryview(encoded).cast("b")) == (700, 500, 3)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600))
@settings(max_examples=200, deadline=None)
def test_a_reduced_size_is_an_eighth_at_least_and_the_smallest_that_is_allowed(width, height, least):
    reduced = reduced_size(width, height, least)
    sizes = [(width // factor, height // factor) for factor in (8, 4, 2, 1)]
    assert reduced == next((size for size in sizes if min(size) >= least), (width, height))


def test_reduced_decoding_asks_pillow_for_the_size_that_is_announced():
    encoded = encode(picture(0, 0, 100).resize((101, 75)), "JPEG")
    for least_side_px in (9, 10, 18, 19, 37, 38, 75):
        width, height = reduced_size(101, 75, least_side_px)
        decoded = decode(encoded, least_side_px).size
        assert all(0 <= side - announced <= 1 for side, announced in zip(decoded, (width, height), strict=True))  # the decoder rounds up


def test_a_dark_image_of_16_bits_with_a_transparent_color_stays_dark():
    dark = encode(Image.fromarray(np.array([[[0, 1, 0]]], np.uint8)))
    header, hidden = _chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)), _chunk(b"tRNS", bytes(6))
    data = _chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">6H", 1, 2, 3, 0, 0, 0)))
    assert pixels(dark[:8] + header + hidden + data + _chunk(b"IEND", b"")).tolist() == [[[0] * 3, [0] * 3]]


@pytest.mark.parametrize("name", [b"exif", b"transparency"])
def test_a_text_of_a_png_with_the_name_of_what_pillow_keeps_changes_nothing(name):
    plain = encode(picture(0, 0, 12))
    at = plain.index(b"IDAT") - 4
    for kind, content in ((b"tEXt", b"\0abc"), (b"zTXt", b"\0\0" + zlib.compress(b"abc")), (b"iTXt", b"\0\0\0\0\0abc")):
        assert (pixels(plain[:at] + _chunk(kind, name + content) + plain[at:]) == pixels(plain)).all()


def _chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.filterwarnings("error")
def test_a_signalling_nan_is_black_and_says_nothing():
    half = encode(Image.fromarray(np.array([[0.5, 1]], np.float32)), "TIFF")
    assert pixels(half.replace(struct.pack("<f", 0.5), bytes.fromhex("0100807f"))).tolist() == [[[0] * 3, [255] * 3]]


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.new("RGB", (7, 5)), "JPEG", exif=exif)


@given(
    st.sampled_from([*jpegs(), turned()]), st.integers(0, 700), st.lists(st.tuples(st.integers(0, 700), st.binary(max_size=3)), max_size=4)
)
@settings(max_examples=300, deadline=None)
def test_the_short_way_to_a_jpegs_frame_and_exif_ends_where_the_walk_through_its_segments_does(encoded, length, changes):
    damaged = bytearray(encoded[:length] if length else encoded)
    for place, put in changes:
        damaged[place : place + len(put)] = put
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "_first_frame", lambda _: None)
        patch.setattr(jpeg, "_SMALL_IMAGE_BYTES", -1)
        walked = jpeg_header(bytes(damaged)), jpeg.jpeg_exif(bytes(damaged))
    assert (jpeg_header(bytes(damaged)), jpeg.jpeg_exif(bytes(damaged))) == walked
    assert jpeg.jpeg_exif(turned()) != b""

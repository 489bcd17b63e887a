"""Odd image files made by code: what strangers have, each with the RGB that it must give or the reason of its error."""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageCms

COLORS = [[(200, 30, 40), (20, 160, 60), (30, 50, 190)], [(230, 220, 30), (90, 90, 90), (250, 250, 250)]]
BLOCK_PX = 16  # a whole unit of every JPEG subsampling: plain colors come back within rounding
BLOCKS = np.repeat(np.repeat(np.array(COLORS, np.uint8), BLOCK_PX, axis=0), BLOCK_PX, axis=1)
PLAIN = np.full((16, 32, 3), COLORS[0][0], np.uint8)
GRAY = np.array(Image.fromarray(BLOCKS).convert("L"))
UNKNOWN, UNKNOWN_TIFF = "not an image in a known format", "a damaged TIFF, or one with an unsupported pixel format"


class Odd(NamedTuple):
    """`expected` is the RGB, within `off` levels, or what the reason must hold."""

    name: str
    encoded: bytes
    expected: np.ndarray | str
    off: int = 0


def all_odd_images():
    makers = (pngs, png_transparency, png_others, tiffs, deep_tiffs, tiff_compressions, simple_formats, modern_formats)
    makers += (jpegs, refused_jpegs, oriented, odd_orientations, cut_short, damaged, bombs, small_and_long, foreign)
    return [one for make in makers for one in make()]


def saved(image, kind, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def gray(*values):
    """One row of gray pixels, as RGB."""
    return np.repeat(np.array(values, np.uint8)[None, :, None], 3, axis=2)


def colors(*values):
    return np.array([values], np.uint8)


# PNG


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, bits, color, pixels, *before, interlaced=0, after=()):
    """`pixels` are whole rows, without filters."""
    row = len(pixels) // height
    filtered = b"".join(b"\0" + pixels[row * y : row * (y + 1)] for y in range(height)) if not interlaced else pixels
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced))
    body = b"".join(before) + chunk(b"IDAT", zlib.compress(filtered)) + b"".join(after)
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


PALETTE = chunk(b"PLTE", bytes([200, 0, 0, 0, 150, 0, 0, 0, 100, 9, 8, 7]))
FOUR = colors((200, 0, 0), (0, 150, 0), (0, 0, 100), (9, 8, 7))


def pngs():
    yield Odd("png gray 1 bit", png(4, 1, 1, 0, bytes([0b01010000])), gray(0, 255, 0, 255))
    yield Odd("png gray 2 bits", png(4, 1, 2, 0, bytes([0b00011011])), gray(0, 85, 170, 255))
    yield Odd("png gray 4 bits", png(4, 1, 4, 0, bytes([0x07, 0xEF])), gray(0, 119, 238, 255))
    yield Odd("png gray 8 bits", png(3, 1, 8, 0, bytes([0, 7, 255])), gray(0, 7, 255))
    yield Odd("png gray 16 bits", png(3, 1, 16, 0, struct.pack(">3H", 0, 200 * 257, 65535)), gray(0, 200, 255))
    yield Odd("png gray 16 bits rounds", png(2, 1, 16, 0, struct.pack(">2H", 128, 129)), gray(0, 1))
    yield Odd("png rgb 8 bits", png(2, 1, 8, 2, bytes([1, 2, 3, 4, 5, 6])), colors((1, 2, 3), (4, 5, 6)))
    yield Odd("png rgb 16 bits", png(1, 1, 16, 2, struct.pack(">3H", 257, 65535, 40 * 257)), colors((1, 255, 40)))
    for bits, packed in ((2, [0b00011011]), (4, [0x01, 0x23]), (8, [0, 1, 2, 3])):
        yield Odd(f"png palette {bits} bits", png(4, 1, bits, 3, bytes(packed), PALETTE), FOUR)
    yield Odd("png palette 1 bit", png(2, 1, 1, 3, bytes([0b01000000]), PALETTE), FOUR[:, :2])
    yield Odd("png gray and alpha 8 bits", png(3, 1, 8, 4, bytes([0, 255, 0, 0, 0, 51])), gray(0, 255, 204))
    yield Odd("png gray and alpha 16 bits", png(2, 1, 16, 4, struct.pack(">4H", 0, 65535, 0, 0)), gray(0, 255))
    yield Odd("png rgba 8 bits", png(2, 1, 8, 6, bytes([255, 0, 0, 255, 255, 0, 0, 51])), colors((255, 0, 0), (255, 204, 204)))
    yield Odd("png rgba 16 bits", png(2, 1, 16, 6, struct.pack(">8H", 65535, 0, 0, 65535, 9, 9, 9, 0)), colors((255, 0, 0), (255,) * 3))


def png_transparency():
    def hidden(*values):
        return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))

    yield Odd("png gray 1 bit, one transparent", png(2, 1, 1, 0, bytes([0b01000000]), hidden(0)), gray(255, 255))
    yield Odd("png gray 2 bits, one transparent", png(4, 1, 2, 0, bytes([0b00011011]), hidden(1)), gray(0, 255, 170, 255))
    yield Odd("png gray 4 bits, one transparent", png(2, 1, 4, 0, bytes([0x37]), hidden(3)), gray(255, 119))
    yield Odd("png gray 8 bits, one transparent", png(2, 1, 8, 0, bytes([7, 200]), hidden(7)), gray(255, 200))
    yield Odd("png gray 16 bits, one transparent", png(3, 1, 16, 0, struct.pack(">3H", 256, 257, 0), hidden(257)), gray(1, 255, 0))
    yield Odd("png rgb, one transparent", png(2, 1, 8, 2, bytes([1, 2, 3, 4, 5, 6]), hidden(1, 2, 3)), colors((255,) * 3, (4, 5, 6)))
    pair = struct.pack(">6H", 1000, 2000, 3000, 1001, 2000, 3000)  # one color at 8 bits: both are shown in it
    yield Odd("png rgb 16 bits, one transparent", png(2, 1, 16, 2, pair, hidden(1000, 2000, 3000)), colors(*[(3, 7, 11)] * 2))
    opacities = chunk(b"tRNS", bytes([255, 0, 51]))
    expected = colors((200, 0, 0), (255,) * 3, (204, 204, 224), (9, 8, 7))
    yield Odd("png palette, opacities", png(4, 1, 8, 3, bytes([0, 1, 2, 3]), PALETTE, opacities), expected)


def png_others():
    yield Odd("png interlaced", png(1, 1, 8, 2, b"\0" + bytes([5, 6, 7]), interlaced=1), colors((5, 6, 7)))
    seven = b"\0\x01" + b"\0\x02" + b"\0\x03\x04" + b"\0\x05\x06\x07\x08"  # Adam7 of one row: passes 1, 2, 4 and 6
    yield Odd("png interlaced row", png(8, 1, 8, 0, seven, interlaced=1), gray(1, 5, 3, 6, 2, 7, 4, 8))
    halves = [chunk(b"IDAT", half) for half in (zlib.compress(b"\0\7")[:4], zlib.compress(b"\0\7")[4:])]
    yield Odd("png in two pieces", png(1, 1, 8, 0, b"", after=halves).replace(chunk(b"IDAT", zlib.compress(b"\0")), b""), gray(7))
    frames = [Image.fromarray(255 - BLOCKS)]
    yield Odd("png animated", saved(BLOCKS, "PNG", save_all=True, append_images=frames), BLOCKS)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield Odd("png with an ICC profile", saved(BLOCKS, "PNG", icc_profile=profile), BLOCKS)
    bomb = zlib.compress(bytes(2_000_000), 9)
    yield Odd("png with an ICC profile that unpacks to 2 MB", png(1, 1, 8, 0, b"\7", chunk(b"iCCP", b"x\0\0" + bomb)), "too large")
    yield Odd("png with text that unpacks to 2 MB", png(1, 1, 8, 0, b"\7", chunk(b"zTXt", b"x\0\0" + bomb)), "too large")
    yield Odd("png with gamma", png(1, 1, 8, 0, b"\x07", chunk(b"gAMA", struct.pack(">I", 100_000))), gray(7))
    yield Odd("png with an unknown chunk", png(1, 1, 8, 0, b"\x07", chunk(b"npTc", bytes(50))), gray(7))
    yield Odd("png with bytes after its end", saved(BLOCKS, "PNG") + b"PK\x03\x04" * 9, BLOCKS)


# TIFF

_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d"}


def tiff(tags, pixels, order="<"):
    """Uncompressed, one strip; tags as {number: (type, values)}."""
    tags = {259: (3, [1]), 273: (4, [8]), 279: (4, [len(pixels)])} | tags
    pixels += b"\0" * (len(pixels) % 2)
    directory = 8 + len(pixels)
    end = directory + 2 + 12 * len(tags) + 4
    entries, long_values = b"", b""
    for number, (kind, values) in sorted(tags.items()):
        raw = values if kind == 2 else struct.pack(f"{order}{len(values)}{_CODES[kind]}", *values)
        if len(raw) > 4:
            place = struct.pack(f"{order}I", end + len(long_values))
            long_values += raw + b"\0" * (len(raw) % 2)
        else:
            place = raw.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", number, kind, len(values)) + place
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory)
    return start + pixels + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + long_values


def row_tiff(width, bits, samples, photometric, pixels, order="<", **more):
    """A TIFF of one row; `more` are further tags, as t339=(3, [2])."""
    tags = {256: (3, [width]), 257: (3, [1]), 258: (3, [bits] * samples), 262: (3, [photometric]), 277: (3, [samples]), 278: (3, [1])}
    return tiff(tags | {int(name[1:]): value for name, value in more.items()}, pixels, order)


def tiffs():
    for order in "<>":
        yield Odd(f"tiff gray 8 bits {order}", row_tiff(2, 8, 1, 1, bytes([5, 250]), order), gray(5, 250))
        sixteen = struct.pack(f"{order}3H", 0, 200 * 257, 65535)
        yield Odd(f"tiff gray 16 bits {order}", row_tiff(3, 16, 1, 1, sixteen, order), gray(0, 200, 255))
        yield Odd(f"tiff rgb {order}", row_tiff(1, 8, 3, 2, bytes([1, 2, 3]), order), colors((1, 2, 3)))
        sixteen = struct.pack(f"{order}3H", 257, 65535, 40 * 257)
        yield Odd(f"tiff rgb 16 bits {order}", row_tiff(1, 16, 3, 2, sixteen, order), colors((1, 255, 40)))
    yield Odd("tiff gray 1 bit", row_tiff(2, 1, 1, 1, bytes([0b01000000])), gray(0, 255))
    yield Odd("tiff gray 1 bit, white is zero", row_tiff(2, 1, 1, 0, bytes([0b01000000])), gray(255, 0))
    yield Odd("tiff gray 2 bits", row_tiff(4, 2, 1, 1, bytes([0b00011011])), gray(0, 85, 170, 255))
    yield Odd("tiff gray 4 bits", row_tiff(2, 4, 1, 1, bytes([0x0E])), gray(0, 238))
    yield Odd("tiff gray 8 bits, white is zero", row_tiff(2, 8, 1, 0, bytes([5, 250])), gray(250, 5))
    yield Odd("tiff gray 16 bits, white is zero", row_tiff(2, 16, 1, 0, struct.pack("<2H", 0, 200 * 257)), gray(255, 55))
    yield Odd("tiff gray 12 bits", row_tiff(2, 12, 1, 1, bytes([0xFF, 0xF3, 0x33])), gray(255, 51))
    red, green, blue = [257 * 200] + [0] * 255, [0, 257 * 150] + [0] * 254, [0] * 256
    palette = row_tiff(2, 8, 1, 3, bytes([0, 1]), t320=(3, red + green + blue))
    yield Odd("tiff palette", palette, FOUR[:, :2])
    yield Odd("tiff gray, alpha", row_tiff(1, 8, 2, 1, bytes([0, 51]), t338=(3, [2])), gray(204))
    yield Odd("tiff gray, alpha multiplied in", row_tiff(1, 8, 2, 1, bytes([50, 100]), t338=(3, [1])), gray(205), 1)
    yield Odd("tiff rgb, alpha", row_tiff(1, 8, 4, 2, bytes([255, 0, 0, 51]), t338=(3, [2])), colors((255, 204, 204)))
    yield Odd("tiff rgb, alpha multiplied in", row_tiff(1, 8, 4, 2, bytes([51, 0, 0, 51]), t338=(3, [1])), colors((255, 204, 204)))
    yield Odd("tiff rgb, a band more", row_tiff(1, 8, 4, 2, bytes([1, 2, 3, 0]), t338=(3, [0])), colors((1, 2, 3)))
    yield Odd("tiff rgb, two bands more", row_tiff(1, 8, 5, 2, bytes([1, 2, 3, 0, 0]), t338=(3, [0, 0])), colors((1, 2, 3)))
    yield Odd("tiff of seven bands", row_tiff(1, 8, 7, 2, bytes(7), t338=(3, [0] * 4)), UNKNOWN_TIFF)
    yield Odd("tiff of five gray bands", row_tiff(1, 8, 5, 1, bytes(5), t338=(3, [0] * 4)), UNKNOWN_TIFF)
    yield Odd("tiff cmyk", row_tiff(2, 8, 4, 5, bytes([0, 255, 255, 0, 0, 0, 0, 255])), colors((255, 0, 0), (0, 0, 0)))
    yield Odd("tiff cmyk 16 bits", row_tiff(1, 16, 4, 5, struct.pack("<4H", 0, 65535, 65535, 0)), colors((255, 0, 0)))
    yield Odd("tiff ycbcr", row_tiff(1, 8, 3, 6, bytes([76, 85, 255]), t530=(3, [1, 1])), colors((255, 0, 0)), 2)
    yield Odd("tiff lab", row_tiff(2, 8, 3, 8, bytes([255, 0, 0, 0, 0, 0])), colors((255,) * 3, (0, 0, 0)), 1)
    planes = row_tiff(2, 8, 3, 2, bytes([1, 2, 3, 4, 5, 6]), t284=(3, [2]), t273=(4, [8, 10, 12]), t279=(4, [2, 2, 2]))
    yield Odd("tiff in planes", planes, colors((1, 3, 5), (2, 4, 6)))
    pages = [Image.fromarray(255 - BLOCKS)]
    yield Odd("tiff of two pages", saved(BLOCKS, "TIFF", save_all=True, append_images=pages), BLOCKS)
    yield Odd("tiff 64 bits an offset", saved(BLOCKS, "TIFF", big_tiff=True), BLOCKS)


def deep_tiffs():
    unknown = r"unknown value range \("

    def floats(*values, **more):
        return row_tiff(len(values), 32, 1, more.pop("photometric", 1), struct.pack(f"<{len(values)}f", *values), t339=(3, [3]), **more)

    def whole(code, bits, kind, *values, **more):
        return row_tiff(len(values), bits, 1, 1, struct.pack(f"<{len(values)}{code}", *values), t339=(3, [kind]), **more)

    nan, infinite = float("nan"), float("inf")
    span = {"t340": (11, [-10.0]), "t341": (11, [10.0])}
    yield Odd("floats from 0 to 1", floats(0, 0.2, 0.5, 1), gray(0, 51, 128, 255))
    yield Odd("floats, white is zero", floats(0, 0.2, 1, photometric=0), gray(255, 204, 0))
    yield Odd("floats with NaN", floats(nan, 0, 0.2, 1), gray(0, 0, 51, 255))
    yield Odd("floats with NaN, white is zero", floats(nan, 0, 1, photometric=0), gray(0, 255, 0))
    yield Odd("floats with infinity", floats(-infinite, 0.2, infinite), gray(0, 51, 255))
    yield Odd("floats a rounding above 1", floats(0, 0.2, 1.0000001), gray(0, 51, 255))
    yield Odd("floats, one 1.02", floats(0, 0.2, 1.02), unknown + "0 to 1.02")
    yield Odd("floats, negative", floats(-0.5, 0.2, 1), unknown + "-0.5 to 1")
    yield Odd("floats of 16-bit counts", floats(0, 1000.5, 65535), unknown + "0 to 65535")
    yield Odd("floats, whole, of 8 bits", floats(0, 100, 255), gray(0, 100, 255))
    yield Odd("floats, broken, up to 255", floats(0, 99.5, 255), unknown + "0 to 255")
    yield Odd("floats with a stated range", floats(-10, 0, 10, **span), gray(0, 128, 255))
    yield Odd("floats beyond a stated range", floats(-99, 0, 99, **span), gray(0, 128, 255))
    yield Odd("floats with half a stated range", floats(-10, 0, 10, t340=(11, [-10.0])), unknown)
    yield Odd("floats with a range that ends where it begins", floats(0, 5.5, t340=(11, [0.0]), t341=(11, [0.0])), unknown)
    yield Odd("floats with GDAL's no data", floats(-9999, 0.2, 1, t42113=(2, b"-9999\0")), gray(0, 51, 255))
    yield Odd("floats with GDAL's no data as nan", floats(nan, 0.2, 1, t42113=(2, b"nan\0")), gray(0, 51, 255))
    yield Odd("floats, all NaN", floats(nan, nan), "the image has no finite pixel values")
    yield Odd("floats of 64 bits", row_tiff(1, 64, 1, 1, struct.pack("<d", 0.5), t339=(3, [3])), UNKNOWN_TIFF)
    yield Odd("floats of 16 bits", row_tiff(1, 16, 1, 1, np.float16(0.5).tobytes(), t339=(3, [3])), UNKNOWN_TIFF)
    yield Odd("floats in RGB", row_tiff(1, 32, 3, 2, struct.pack("<3f", 0, 0.5, 1), t339=(3, [3] * 3)), UNKNOWN_TIFF)
    yield Odd("floats, big-endian", row_tiff(2, 32, 1, 1, struct.pack(">2f", 0.2, 1), ">", t339=(3, [3])), gray(51, 255))
    yield Odd("integers of 32 bits, unsigned, large", whole("I", 32, 1, 0, 2**32 - 1), unknown + "0 to 4.29497e")
    yield Odd("integers of 32 bits, unsigned, of 8 bits", whole("I", 32, 1, 0, 100, 255), gray(0, 100, 255))
    counts = {"t340": (4, [0]), "t341": (4, [65535])}
    yield Odd("integers of 32 bits with a stated range", whole("I", 32, 1, 0, 200 * 257, 65535, **counts), gray(0, 200, 255))
    yield Odd("integers of 32 bits, signed", whole("i", 32, 2, -5, 100), unknown + "-5 to 100")
    yield Odd("integers of 32 bits, signed, of 8 bits", whole("i", 32, 2, 0, 100, 255), gray(0, 100, 255))
    yield Odd("integers of 16 bits, signed", whole("h", 16, 2, -5, 2000), unknown + "-5 to 2000")
    yield Odd("integers of 16 bits, signed, of 8 bits", whole("h", 16, 2, 0, 100, 255), gray(0, 100, 255))
    heights = {"t340": (8, [-100]), "t341": (8, [155])}
    yield Odd("integers of 16 bits, signed, with a stated range", whole("h", 16, 2, -100, 0, 155, **heights), gray(0, 100, 255))
    yield Odd("integers of 8 bits, signed", whole("b", 8, 2, -1, 5), unknown + "-1 to 5")
    yield Odd("portable floats from 0 to 1", b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0.2, 1), gray(51, 255))
    yield Odd("portable floats, larger", b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0, 7.5), unknown + "0 to 7.5")


def tiff_compressions():
    zstd = ["zstd"] * (PIL.__version__ >= "12")  # writing one with an older Pillow, whose libtiff has no zstd, damages memory
    for compression in ["tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", *zstd]:
        yield Odd(f"tiff {compression}", saved(BLOCKS, "TIFF", compression=compression), BLOCKS)
    yield Odd("tiff jpeg", saved(BLOCKS, "TIFF", compression="jpeg", quality=95), BLOCKS, 6)
    bits = Image.fromarray(GRAY > 128)
    for compression in ("group3", "group4", "tiff_ccitt"):
        yield Odd(f"tiff {compression}", saved(bits, "TIFF", compression=compression), np.array(bits.convert("RGB")))
    whole = saved(BLOCKS, "TIFF", compression="tiff_lzw")
    yield Odd("tiff lzw, damaged", whole[:40] + b"\xff" * 60 + whole[100:], "decoder error")
    yield Odd("tiff with a tag of unknown type", row_tiff(1, 8, 1, 1, b"\x07", t65000=(1, [1] * 9)), gray(7))


# formats without options, and new ones


def simple_formats():
    plain = Image.fromarray(BLOCKS)
    for kind in ("BMP", "TGA", "PPM"):
        yield Odd(f"{kind} rgb", saved(BLOCKS, kind), BLOCKS)
        yield Odd(f"{kind} gray", saved(GRAY, kind), np.repeat(GRAY[..., None], 3, axis=2))
    yield Odd("BMP palette", saved(plain.quantize(6), "BMP"), BLOCKS)
    yield Odd("GIF palette", saved(plain.quantize(6), "GIF"), BLOCKS)
    yield Odd("BMP 1 bit", saved(Image.fromarray(GRAY > 128), "BMP"), np.repeat((GRAY > 128)[..., None] * np.uint8(255), 3, axis=2))
    yield Odd("TGA rle", saved(BLOCKS, "TGA", compression="tga_rle"), BLOCKS)
    yield Odd("TGA rows from the top", saved(BLOCKS, "TGA", orientation=1), BLOCKS)
    alpha = np.dstack([BLOCKS, np.full(GRAY.shape, 0, np.uint8)])
    yield Odd("TGA, all transparent", saved(alpha, "TGA"), np.full_like(BLOCKS, 255))
    yield Odd("GIF animated", saved(plain.quantize(6), "GIF", save_all=True, append_images=[Image.new("P", plain.size)]), BLOCKS)
    see_through = Image.new("P", (2, 1))
    see_through.putpalette([10, 20, 30, 40, 50, 60])
    see_through.putpixel((1, 0), 1)
    yield Odd("GIF with a transparent color", saved(see_through, "GIF", transparency=1), colors((10, 20, 30), (255,) * 3))
    yield Odd("bitmap in text", b"P1 2 1 0 1", gray(255, 0))
    yield Odd("graymap in text", b"P2\n# a remark\n2 1 15\n0 15\n", gray(0, 255))
    yield Odd("pixmap in text", b"P3 1 1 255 1 2 3", colors((1, 2, 3)))
    yield Odd("bitmap", b"P4 2 1\n" + bytes([0b01000000]), gray(255, 0))
    yield Odd("graymap up to 3", b"P5 2 1 3\n" + bytes([1, 3]), gray(85, 255))
    yield Odd("graymap up to 1023", b"P5 2 1 1023\n" + struct.pack(">2H", 0, 1023), gray(0, 255))
    yield Odd("graymap up to 65535", b"P5 2 1 65535\n" + struct.pack(">2H", 200 * 257, 65535), gray(200, 255))
    yield Odd("pixmap up to 65535", b"P6 1 1 65535\n" + struct.pack(">3H", 257, 65535, 40 * 257), colors((1, 255, 40)))
    yield Odd("pixmap with a wrong maximum", b"P6 1 1 70000\n" + bytes(6), "maxval")


def modern_formats():
    alpha = np.dstack([BLOCKS, np.full(GRAY.shape, 51, np.uint8)])
    over_white = (255 - (255 - BLOCKS.astype(int)) / 5).round().astype(np.uint8)
    yield Odd("WEBP lossless", saved(BLOCKS, "WEBP", lossless=True), BLOCKS)
    yield Odd("WEBP lossy", saved(PLAIN, "WEBP", quality=95), PLAIN, 4)
    yield Odd("WEBP with alpha", saved(alpha, "WEBP", lossless=True, exact=True), over_white, 1)
    animated = {"lossless": True, "save_all": True, "append_images": [Image.fromarray(255 - BLOCKS)]}
    yield Odd("WEBP animated", saved(BLOCKS, "WEBP", **animated), BLOCKS)
    yield Odd("JPEG2000", saved(BLOCKS, "JPEG2000"), BLOCKS)
    yield Odd("JPEG2000, lossy", saved(BLOCKS, "JPEG2000", irreversible=True), BLOCKS, 3)
    yield Odd("JPEG2000 gray", saved(GRAY, "JPEG2000"), np.repeat(GRAY[..., None], 3, axis=2))
    yield Odd("JPEG2000 with alpha", saved(alpha, "JPEG2000"), over_white, 1)
    deep = np.array([[0, 200 * 257, 65535]], np.uint16)
    yield Odd("JPEG2000 gray 16 bits", saved(deep, "JPEG2000"), gray(0, 200, 255))
    yield Odd("JPEG2000 without its box", saved(BLOCKS, "JPEG2000", no_jp2=True), BLOCKS)
    yield Odd("AVIF", saved(PLAIN, "AVIF", quality=95), PLAIN, 4)
    yield Odd("AVIF with alpha", saved(alpha, "AVIF", quality=100, subsampling="4:4:4"), over_white, 3)
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - BLOCKS)]}
    yield Odd("AVIF animated", saved(BLOCKS, "AVIF", quality=100, subsampling="4:4:4", **frames), BLOCKS, 3)


# JPEG


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg(image=BLOCKS, *segments, **options):
    encoded = saved(image, "JPEG", **{"quality": 95, "subsampling": 0} | options)
    return encoded[:2] + b"".join(segments) + encoded[2:]


def with_marker(old, new):
    return jpeg().replace(b"\xff" + old, b"\xff" + new, 1)


def jpegs():
    off = 6
    for name, options in {
        "plain": {},
        "progressive": {"progressive": True},
        "with restarts": {"restart_marker_blocks": 1},
        "optimized": {"optimize": True},
        "in RGB": {"keep_rgb": True},
    }.items():
        yield Odd(f"jpeg {name}", jpeg(**options), BLOCKS, off)
    for name, number in (("4:2:2", 1), ("4:2:0", 2)):  # plain: colors run over the edges of blocks
        yield Odd(f"jpeg {name}", jpeg(PLAIN, subsampling=number), PLAIN, off)
    yield Odd("jpeg gray", jpeg(GRAY), np.repeat(GRAY[..., None], 3, axis=2), off)
    ink = Image.frombytes("CMYK", (16, 16), bytes([0, 255, 255, 0]) * 256)
    red = np.full((16, 16, 3), (255, 0, 0), np.uint8)
    yield Odd("jpeg cmyk", jpeg(ink), red, off)
    # Adobe's inks are inverted: no cyan and all of magenta and yellow are the YCbCr of (0, 255, 255)
    ycck = np.dstack([np.full((16, 16), level, np.uint8) for level in (179, 171, 1)] + [np.full((16, 16), 255, np.uint8)])
    adobe = saved(Image.frombytes("CMYK", (16, 16), (255 - ycck).tobytes()), "JPEG", quality=95)
    yield Odd("jpeg ycck", adobe.replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2"), red, off)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield Odd("jpeg with an ICC profile", jpeg(icc_profile=profile), BLOCKS, off)
    yield Odd("jpeg with half an ICC profile", jpeg(BLOCKS, segment(0xE2, b"ICC_PROFILE\0\1\2" + profile[:50])), BLOCKS, off)
    yield Odd("jpeg with a comment like a header", jpeg(comment=b"\xff\xd8\xff\xc0" * 20), BLOCKS, off)
    yield Odd("jpeg with a thumbnail in EXIF", jpeg(BLOCKS, segment(0xE1, b"Exif\0\0" + jpeg(255 - BLOCKS))), BLOCKS, off)
    yield Odd("jpeg with fill bytes", jpeg(BLOCKS, b"\xff\xff\xff"), BLOCKS, off)
    yield Odd("jpeg with junk between segments", jpeg(BLOCKS, segment(0xFE, b"x"), b"junk"), BLOCKS, off)
    yield Odd("jpeg with bytes after its end", jpeg() + b"PK\x03\x04" * 9, BLOCKS, off)
    pictures = {"quality": 95, "subsampling": 0, "save_all": True, "append_images": [Image.fromarray(255 - BLOCKS)]}
    yield Odd("jpeg of two pictures", saved(BLOCKS, "MPO", **pictures), BLOCKS, off)
    damaged = bytearray(jpeg(np.tile(BLOCKS, (8, 8, 1)), restart_marker_blocks=4))
    damaged[-2000:-1990] = b"\xff\xd3" * 5
    yield Odd("jpeg, damaged in one place", bytes(damaged), np.tile(BLOCKS, (8, 8, 1)), 255)


def refused_jpegs():
    yield Odd("jpeg of 12 bits", jpeg().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), UNKNOWN)
    yield Odd("jpeg, lossless", with_marker(b"\xc0", b"\xc3"), "broken data stream")
    yield Odd("jpeg, hierarchical", with_marker(b"\xc0", b"\xc5"), "broken data stream")
    no_rows = bytearray(jpeg())
    at = no_rows.index(b"\xff\xc0")
    no_rows[at + 5 : at + 7] = b"\0\0"
    yield Odd("jpeg without a number of rows", bytes(no_rows), UNKNOWN)
    yield Odd("jpeg without tables", jpeg().replace(b"\xff\xdb", b"\xff\xfe"), "broken data stream")
    yield Odd("jpeg of its first bytes", b"\xff\xd8\xff\xe0", UNKNOWN)
    yield Odd("jpeg with a segment longer than the file", jpeg(BLOCKS, b"\xff\xed\xff\xff"), "Truncated")


# orientation

XMP_SIX = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description tiff:Orientation=\"6\"/></x:xmpmeta>"


def exif(value, kind=3, count=1, order="<", before=()):
    """A directory with an orientation of any type and count; `before` are tags of one byte each that precede it."""
    entries = [(tag, 1, 1, bytes([7])) for tag in before] + [(0x0112, kind, count, struct.pack(f"{order}{_CODES[kind]}", value))]
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return start + b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries) + bytes(4)


def turned(number, pixels=BLOCKS):
    """What a viewer shows: EXIF says which side of the picture the first row and column are."""
    if number >= 5:
        pixels = pixels.transpose(1, 0, 2)
    across = number in (2, 3, 6, 7)
    down = number in (3, 4, 7, 8)
    return pixels[:: -1 if down else 1, :: -1 if across else 1]


def oriented():
    for number in range(1, 9):
        tag = b"Exif\0\0" + exif(number)
        yield Odd(f"jpeg turned {number}", jpeg(exif=tag), turned(number), 6)
        yield Odd(f"png turned {number}", saved(BLOCKS, "PNG", exif=tag), turned(number))
        yield Odd(f"webp turned {number}", saved(BLOCKS, "WEBP", lossless=True, exif=tag), turned(number))
        yield Odd(f"tiff turned {number}", tiff_of_blocks(t274=(3, [number])), turned(number))
        yield Odd(f"avif turned {number}", saved(BLOCKS, "AVIF", quality=100, subsampling="4:4:4", exif=tag), turned(number), 3)


def tiff_of_blocks(**more):
    height, width, _ = BLOCKS.shape
    tags = {256: (3, [width]), 257: (3, [height]), 258: (3, [8] * 3), 262: (3, [2]), 277: (3, [3]), 278: (3, [height])}
    return tiff(tags | {int(name[1:]): value for name, value in more.items()}, BLOCKS.tobytes())


def odd_orientations():
    def app1(content):
        return segment(0xE1, b"Exif\0\0" + content)

    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP_SIX.replace(b'"6"', b'"3"'))
    upright, six, off = turned(1), turned(6), 6
    in_jpeg = {
        "after XMP": ([xmp, app1(exif(6))], six),
        "before XMP": ([app1(exif(6)), xmp], six),
        "after a profile and a comment": ([segment(0xE2, b"ICC_PROFILE\0\1\1x"), segment(0xFE, b"x"), app1(exif(6))], six),
        "in two segments": ([app1(exif(6)[:9]), app1(exif(6)[9:])], six),
        "after fill bytes": ([b"\xff\xff", app1(exif(6))], six),
        "after junk": ([segment(0xFE, b"x"), b"junk", app1(exif(6))], six),
        "big-endian": ([app1(exif(6, order=">"))], six),
        "as LONG": ([app1(exif(6, 4))], six),
        "as LONG, big-endian": ([app1(exif(6, 4, order=">"))], six),
        "as BYTE": ([app1(exif(6, 1))], six),
        "as BYTE, big-endian": ([app1(exif(6, 1, order=">"))], six),
        "as SSHORT": ([app1(exif(6, 8))], six),
        "as SLONG, big-endian": ([app1(exif(6, 9, order=">"))], six),
        "after other tags": ([app1(exif(6, before=(0x10E, 0x10F, 0x110)))], six),
        "as FLOAT": ([app1(exif(6, 11))], upright),
        "of two values": ([app1(exif(6, count=2))], six),
        "of many values": ([app1(exif(26, 4, count=3) + struct.pack("<3I", 6, 1, 1))], six),
        "of many values outside": ([app1(exif(5000, 4, count=3))], upright),
        "of no value": ([app1(exif(6, count=0))], upright),
        "0": ([app1(exif(0))], upright),
        "9": ([app1(exif(9))], upright),
        "65542": ([app1(exif(65542, 4))], upright),
        "-1": ([app1(exif(-1, 8))], upright),
        "cut off": ([app1(exif(6)[:16])], upright),
        "in a directory outside": ([app1(b"II*\0\xff\xff\0\0")], upright),
        "without a byte order": ([app1(b"XX*\0" + exif(6)[4:])], upright),
        "in an empty segment": ([app1(b"")], upright),
        "of XMP alone": ([segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP_SIX)], upright),
        "of EXIF against XMP": ([xmp, app1(exif(8))], turned(8)),
        "in APP2": ([segment(0xE2, b"Exif\0\0" + exif(6))], upright),
    }
    for name, (segments, expected) in in_jpeg.items():
        yield Odd(f"jpeg, orientation {name}", jpeg(BLOCKS, *segments), expected, off)
    plain = jpeg()
    scan = plain.index(b"\xff\xda")
    yield Odd("jpeg, orientation right before the scan", plain[:scan] + app1(exif(6)) + plain[scan:], six, off)
    yield Odd("jpeg, progressive, orientation after XMP", jpeg(BLOCKS, xmp, app1(exif(6)), progressive=True), six, off)
    yield Odd("jpeg gray, orientation as LONG", jpeg(GRAY, app1(exif(6, 4))), turned(6, np.repeat(GRAY[..., None], 3, axis=2)), off)
    text = f"\nexif\n{len(exif(6)):8}\n{exif(6).hex()}\n".encode()
    height, width, _ = BLOCKS.shape
    whole = (width, height, 8, 2, BLOCKS.tobytes())
    yield Odd("png, orientation in text", png(*whole, chunk(b"tEXt", b"Raw profile type exif\0" + text)), six)
    yield Odd("png, orientation in broken text", png(*whole, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n8\nxyz\n")), upright)
    yield Odd("png, orientation after the pixels", png(*whole, after=[chunk(b"eXIf", exif(6))]), six)
    yield Odd("png, orientation as LONG", png(*whole, chunk(b"eXIf", exif(6, 4))), six)
    yield Odd("png, orientation as BYTE", png(*whole, chunk(b"eXIf", exif(6, 1))), six)
    itext = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_SIX
    yield Odd("png, orientation of XMP alone", png(*whole, chunk(b"iTXt", itext)), upright)
    yield Odd("webp, orientation of XMP alone", saved(BLOCKS, "WEBP", lossless=True, xmp=XMP_SIX), upright)
    yield Odd("webp, orientation as BYTE", saved(BLOCKS, "WEBP", lossless=True, exif=exif(6, 1)), six)
    yield Odd("tiff, orientation of XMP alone", tiff_of_blocks(t700=(1, list(XMP_SIX))), upright)
    yield Odd("tiff, orientation as LONG", tiff_of_blocks(t274=(4, [6])), six)
    yield Odd("tiff, orientation as BYTE", tiff_of_blocks(t274=(1, [6])), six)
    yield Odd("tiff, orientation of two values", tiff_of_blocks(t274=(3, [6, 6])), six)
    yield Odd("tiff, orientation 9", tiff_of_blocks(t274=(3, [9])), upright)
    yield Odd("tiff lzw, turned", saved(BLOCKS, "TIFF", compression="tiff_lzw", tiffinfo={274: 6}), six)


# damage


def whole_files():
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "TGA"):
        yield kind, saved(noise, kind)
    yield "GIF", saved(Image.fromarray(noise).quantize(64), "GIF")
    yield "TIFF lzw", saved(noise, "TIFF", compression="tiff_lzw")
    yield "JPEG progressive", saved(noise, "JPEG", progressive=True)


CUT_SHORT = f"[Tt]runcated|broken data stream|could not create decoder|{UNKNOWN}|{UNKNOWN_TIFF}"


def cut_short():
    for kind, whole in whole_files():
        for share in (0.1, 0.5, 0.95):
            yield Odd(f"{kind} cut to {share:.0%}", whole[: int(share * len(whole))], CUT_SHORT)


def damaged():
    png_file = saved(BLOCKS, "PNG")
    at = png_file.index(b"IDAT")
    yield Odd("png with damaged pixels", png_file[: at + 10] + b"\xff\0\xff\0" + png_file[at + 14 :], "broken data stream")
    yield Odd("png without pixels", png_file[: at - 4] + chunk(b"IEND", b""), "cannot load this image")
    yield Odd("png of 3 bits", png(4, 1, 3, 0, bytes(4)), UNKNOWN)
    yield Odd("gif without a picture", saved(Image.fromarray(GRAY), "GIF")[:13] + b"\x3b", UNKNOWN)
    yield Odd("empty file", b"", "empty file")
    yield Odd("zeros", bytes(100), UNKNOWN)


# size


def bombs():
    most = "more than the 178956970 that are decoded|decompression bomb"
    yield Odd("png of 30000 by 30000", _png_header(30000, 30000), most)
    yield Odd("png of 2^31 - 1 by 2^31 - 1", _png_header(2**31 - 1, 2**31 - 1), most)
    yield Odd("png without width", _png_header(0, 5), UNKNOWN)
    gif, bmp, frame = bytearray(saved(GRAY, "GIF")), bytearray(saved(BLOCKS, "BMP")), bytearray(jpeg())
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp[18:26] = struct.pack("<ii", 40000, 40000)
    at = frame.index(b"\xff\xc0")
    frame[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    yield Odd("gif of 65535 by 65535", bytes(gif), most)
    yield Odd("bmp of 40000 by 40000", bytes(bmp), most)
    yield Odd("jpeg of 60000 by 60000", bytes(frame), most)
    yield Odd("ppm of 50000 by 50000", b"P6 50000 50000 255\n", most)
    yield Odd("tga of 60000 by 60000", struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 60000, 60000, 24, 0), most)
    yield Odd("tiff of 60000 by 60000", row_tiff(60000, 8, 1, 1, b"\0", t257=(4, [60000])), most)


def _png_header(width, height):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def small_and_long():
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF"):
        yield Odd(f"{kind} of one pixel", saved(Image.new("L", (1, 1), 128), kind), gray(128), 2)
    for kind in ("PNG", "JPEG", "WEBP"):
        tall = Image.new("RGB", (1, 3000), "white")
        yield Odd(f"{kind} of 1 by 3000", saved(tall, kind), np.full((3000, 1, 3), 255, np.uint8), 1)
        yield Odd(f"{kind} of 3000 by 1", saved(tall.transpose(Image.Transpose.TRANSPOSE), kind), np.full((1, 3000, 3), 255, np.uint8), 1)


# what is no picture of these formats


def foreign():
    yield Odd("text", b"once upon a time there was no image", UNKNOWN)
    yield Odd("html", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", UNKNOWN)
    yield Odd("svg", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", UNKNOWN)
    yield Odd("pdf", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n", UNKNOWN)
    yield Odd("postscript", saved(BLOCKS, "EPS"), UNKNOWN)
    yield Odd("postscript, binary", b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, 500) + bytes(20) + saved(BLOCKS, "EPS"), UNKNOWN)
    for kind in ("ICO", "PCX", "SGI", "DDS", "DIB"):
        yield Odd(kind, saved(BLOCKS, kind), UNKNOWN)
    yield Odd("metafile", b"\xd7\xcd\xc6\x9a\0\0" + bytes(12) + b"\x01\0\x09\0" + bytes(40), UNKNOWN)
    yield Odd("photoshop", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 1, 1, 8, 3) + bytes(40), UNKNOWN)
    yield Odd("fits", b"SIMPLE  =                    T".ljust(80) + b"END".ljust(80) + bytes(2720), UNKNOWN)
    yield Odd("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(60), UNKNOWN)
    yield Odd("grib", b"GRIB" + bytes(3) + b"\x01" + bytes(60), UNKNOWN)
    yield Odd("heic", struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(60), UNKNOWN)
    yield Odd("jpeg xl", b"\xff\x0a" + bytes(60), UNKNOWN)
    yield Odd("zip", b"PK\x03\x04" + bytes(60), UNKNOWN)
    yield Odd("gzip", b"\x1f\x8b\x08" + bytes(60), UNKNOWN)
    yield Odd("pam", b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n\1\2\3", UNKNOWN)
    yield Odd("play list", b"#EXTM3U\nhttp://127.0.0.1/a.png\n", UNKNOWN)

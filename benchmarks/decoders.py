"""What decoding a JPEG costs with five decoders, whole and at reduced size, and how far their pixels are from Pillow's.

    python benchmarks/decoders.py IMAGES [--side 160] [--count 100] [--rounds 5] [--enlarged 4000]

IMAGES is a folder of images or any other source, such as ../shared/data/imagenet-samples/samples.parquet. One thread, CPU time; image by
image all decoders in turn, in another order each round, so that all see the same machine. Reduced is the smallest of 1/2, 1/4 and 1/8
whose sides are both at least `--side`. With `--enlarged` each image is resized to this longer side first and encoded again at quality 90,
as large as a phone's photographs. Decoders that are not installed are named and left out. What comes out is RGB in NumPy, not turned.
"""

import argparse
import importlib.metadata
import io
import statistics
import time
import warnings
from collections import defaultdict

import numpy as np
import torch
from PIL import Image

from nst_data.decoding.jpeg import jpeg_header
from nst_data.decoding.orientation import jpeg_orientation
from nst_data.images import reduced_factor
from nst_data.sources import open_source
from nst_train.transforms.preprocessing import decode_pixels

warnings.filterwarnings("ignore")  # torchvision says at each call that it is deprecated


def by_pillow():
    def decode(encoded, width, height, factor):
        image = Image.open(io.BytesIO(encoded))
        if factor > 1:
            image.draft(None, (width // factor, height // factor))
        return np.asarray(image.convert("RGB"))

    return decode


def by_simplejpeg():
    from simplejpeg import decode_jpeg

    def decode(encoded, width, height, factor):
        return decode_jpeg(encoded, "RGB", min_width=-(-width // factor), min_height=-(-height // factor))

    return decode


def by_torchvision():
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(encoded, width, height, factor):
        content = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)  # bytes, which cannot be written to, are no tensor
        return None if factor > 1 else decode_jpeg(content, ImageReadMode.RGB).permute(1, 2, 0).numpy()

    return decode


def by_opencv():
    import cv2

    cv2.setNumThreads(1)
    # the reduced gray ones are the reduced color ones without BGR
    reduced = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}

    def decode(encoded, width, height, factor):
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | reduced[factor]
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)

    return decode


def by_torchcodec():
    from torchcodec.decoders import decode_jpeg

    return lambda encoded, width, height, factor: None if factor > 1 else decode_jpeg(encoded).permute(1, 2, 0).numpy()


def by_nst():
    def decode(encoded, width, height, factor):
        return decode_pixels(encoded, min(width, height) // factor if factor > 1 else None).permute(1, 2, 0).numpy()

    return decode


DECODERS = {
    "pillow": by_pillow,
    "simplejpeg": by_simplejpeg,
    "torchvision": by_torchvision,
    "opencv-python-headless": by_opencv,
    "torchcodec": by_torchcodec,
    "nst": by_nst,
}


def installed():
    """The decoders by name and version, of those that can be imported."""
    decoders = {}
    for package, make in DECODERS.items():
        try:
            decoders[f"{package} {importlib.metadata.version(package)}"] = make()
        except (ImportError, RuntimeError, OSError) as error:  # the last two where a library that it loads is not there
            print(f"{package} is left out: {str(error).splitlines()[0]}")
    return decoders


def jpegs(path, count, enlarged):
    """The first color JPEGs that are not turned, as bytes."""
    source, images, n_skipped = open_source(path), [], 0
    for row in source.rows(range(len(source))):
        encoded = bytes(row.read())
        header = jpeg_header(encoded)
        if header is None or header.components != 3 or jpeg_orientation(encoded) != 1:
            n_skipped += 1
            continue
        images.append(larger(encoded, enlarged) if enlarged else encoded)
        if len(images) == count:
            break
    print(f"{len(images)} JPEGs, {n_skipped} other images left out")
    return images


def larger(encoded, side):
    image, file = Image.open(io.BytesIO(encoded)).convert("RGB"), io.BytesIO()
    factor = side / max(image.size)
    image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def differences(decoders, images, factors):
    """For each decoder (largest, mean) difference from Pillow in levels of 255, and None for one that gives whole images alone."""
    largest, total, values = defaultdict(int), defaultdict(int), defaultdict(int)
    for encoded, factor in zip(images, factors, strict=True):
        header = jpeg_header(encoded)
        decoded = {name: decode(encoded, header.width, header.height, factor) for name, decode in decoders.items()}
        expected = decoded[next(iter(decoders))].astype(np.int16)
        for name, pixels in decoded.items():
            if pixels is not None:
                deviation = np.abs(pixels - expected)
                largest[name] = max(largest[name], int(deviation.max()))
                total[name] += int(deviation.sum(dtype=np.int64))
                values[name] += deviation.size
    return {name: (largest[name], total[name] / values[name]) if name in values else None for name in decoders}


def timed(decoders, images, factors, rounds):
    """For each decoder its seconds of CPU time in each round."""
    names, seconds = list(decoders), {name: [0.0] * rounds for name in decoders}
    for turn in range(rounds):
        for encoded, factor in zip(images, factors, strict=True):
            header = jpeg_header(encoded)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                before = time.process_time()
                decoders[name](encoded, header.width, header.height, factor)
                seconds[name][turn] += time.process_time() - before
    return seconds


def print_table(decoders, images, factors, rounds):
    deviations = differences(decoders, images, factors)  # which also warms up
    seconds = timed({name: decode for name, decode in decoders.items() if deviations[name]}, images, factors, rounds)
    of_pillow = seconds[next(iter(decoders))]
    print("| decoder | CPU time, Pillow = 1 | ms an image | largest difference | mean |\n|---|---|---|---|---|")
    for name in decoders:
        if deviations[name] is None:
            print(f"| {name} | whole images only | | | |")
            continue
        ratios = [own / pillow for own, pillow in zip(seconds[name], of_pillow, strict=True)]
        ratio_text = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        largest, mean = deviations[name]
        print(f"| {name} | {ratio_text} | {statistics.median(seconds[name]) / len(images) * 1e3:.2f} | {largest} | {mean:.4f} |")


def print_sizes(what, images, factors):
    sides = [[side // factor for side in jpeg_header(encoded)[:2]] for encoded, factor in zip(images, factors, strict=True)]
    width, height = np.median(sides, 0)
    print(f"\n{what}: {len(images)} images, in the median {width:.0f}x{height:.0f} px\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--enlarged", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    decoders, images = installed(), jpegs(arguments.images, arguments.count, arguments.enlarged)
    factors = [reduced_factor(*jpeg_header(encoded)[:2], arguments.side) for encoded in images]
    print_sizes("Whole", images, [1] * len(images))
    print_table(decoders, images, [1] * len(images), arguments.rounds)
    if max(factors) == 1:
        print(f"\nnone is reduced: no image has both sides of {2 * arguments.side} px or more")
        return
    images, factors = zip(*((encoded, factor) for encoded, factor in zip(images, factors, strict=True) if factor > 1), strict=True)
    print_sizes(f"Reduced to no less than {arguments.side} px", images, factors)
    print_table(decoders, images, factors, arguments.rounds)


if __name__ == "__main__":
    main()

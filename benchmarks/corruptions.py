"""The corruptions looked at, measured and timed.

    python benchmarks/corruptions.py sheet docs/corruptions.png                                 # all of them on one page
    python benchmarks/corruptions.py sheet docs/corruptions-32px.png --side 32
    python benchmarks/corruptions.py change --images ../shared/data/cifar10/test.parquet        # by severity, 20 images
    python benchmarks/corruptions.py change --images ../shared/data/imagenet-samples/samples.parquet --side 224
    python benchmarks/corruptions.py speed                                                      # milliseconds an image
    python benchmarks/corruptions.py reference                                                  # beside imagecorruptions-imaug

`change` and `sheet` show the mean absolute change in levels of 255. `reference` wants `pip install imagecorruptions-imaug`, whose OpenCV is
another package than nst's with the same files: use an environment of its own, with this folder's parent in PYTHONPATH.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from nst_train.evaluation.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, corrupt

NAMES = CORRUPTIONS + EXTRA_CORRUPTIONS
SHEET_PX, CROP = 224, (60, 40, 440, 420)
CREDIT = "Photograph by danielbuechele, flickr.com/photos/danielbuechele/6061409035, CC BY 2.0, cropped and corrupted"
REPEATS = 5
SEED = 1  # of the sheet: dark ice, which shows on a bright sky


def sample(name: str = "china.jpg") -> Image.Image:
    """A photograph that scikit-learn ships, with its author's license."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(name))


def images_of(source: str, limit: int, side_px: int | None) -> list[np.ndarray]:
    """Decoded images; with a side, resized and cropped as ImageNet-C's are (256 for 224) or, below, resized to it."""
    from nst_data.images import decode
    from nst_data.sources import open_source

    opened = open_source(source)
    images = (decode(row.read()) for row in opened.rows(range(min(limit, len(opened)))))
    return [np.array(image if side_px is None else centered(image, side_px)) for image in images]


def centered(image: Image.Image, side_px: int) -> Image.Image:
    shorter = round(side_px * 256 / 224) if side_px >= SHEET_PX else side_px
    factor = shorter / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BILINEAR)
    left, top = (image.width - side_px) // 2, (image.height - side_px) // 2
    return image.crop((left, top, left + side_px, top + side_px))


def change(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.abs(after.astype(np.float32) - before).mean())


def draw_sheet(path: str, side_px: int) -> None:
    """A row for each of the fifteen: the image itself, and five severities; images under 100 px enlarged without smoothing."""
    image = np.array(sample().crop(CROP).resize((side_px, side_px), Image.Resampling.BOX))
    shown = 112 if side_px >= 112 else 96
    label, line = 150, shown + 4
    page = Image.new("RGB", (label + 6 * line, 24 + len(CORRUPTIONS) * line + 20), "white")
    draw = ImageDraw.Draw(page)
    for column, text in enumerate(["clean", *(f"severity {severity}" for severity in SEVERITIES)]):
        draw.text((label + column * line, 6), text, fill="black")
    for row, name in enumerate(CORRUPTIONS):
        draw.text((6, 24 + row * line + shown // 2), name, fill="black")
        for column, pixels in enumerate([image, *(corrupt(image, name, severity, SEED) for severity in SEVERITIES)]):
            smooth = Image.Resampling.LANCZOS if side_px > shown else Image.Resampling.NEAREST
            page.paste(Image.fromarray(pixels).resize((shown, shown), smooth), (label + column * line, 24 + row * line))
    draw.text((6, page.height - 16), f"{side_px} px. {CREDIT}", fill="black")
    Image.fromarray(np.rint(np.array(page) / 5).astype(np.uint8) * 5).save(path, optimize=True)  # fewer levels: half the bytes


def print_changes(images: list[np.ndarray]) -> None:
    print("| corruption | " + " | ".join(map(str, SEVERITIES)) + " | images where each severity changes more |\n|---|" + "---|" * 6)
    for name in NAMES:
        rows = [[change(image, corrupt(image, name, severity, seed)) for severity in SEVERITIES] for seed, image in enumerate(images)]
        growing = sum(all(np.diff(row) > 0) for row in rows)
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in np.mean(rows, axis=0)) + f" | {growing} of {len(images)} |")


def milliseconds(work: Callable[[int], object]) -> float:
    """The median of some runs after a first one."""
    seconds = []
    for seed in range(REPEATS + 1):
        start = time.perf_counter()
        work(seed)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[1:])


def print_speed() -> None:
    """Mean over the severities, one thread."""
    photograph = sample()
    sizes = {side: np.array(centered(photograph, side)) for side in (32, 64, 224)}
    images = {"32": sizes[32], "64": sizes[64], "224": sizes[224], "640x427": np.array(photograph)}
    print("| corruption | " + " | ".join(images) + " |\n|---|" + "---|" * len(images))
    table = {}
    for name in NAMES:
        table[name] = [
            statistics.mean(milliseconds(lambda seed: corrupt(image, name, severity, seed)) for severity in SEVERITIES)
            for image in images.values()
        ]
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in table[name]) + " |")
    means = np.mean([table[name] for name in CORRUPTIONS], axis=0)
    print("| mean of the fifteen | " + " | ".join(f"{value:.2f}" for value in means) + " |")


def print_reference(photograph: Image.Image, seeds: int = 8) -> None:
    """Change and time at severities 1, 3 and 5, at 224 px, beside another implementation of the same set."""
    from imagecorruptions import corrupt as other

    image = np.array(centered(photograph, 224))
    print("| corruption | change, here | there | ms, here | there |\n|---|---|---|---|---|")
    for name in NAMES:
        ours, theirs, timings = [], [], []
        for severity in (1, 3, 5):
            ours.append(np.mean([change(image, corrupt(image, name, severity, seed)) for seed in range(seeds)]))
            theirs.append(np.mean([change(image, other(image, severity=severity, corruption_name=name)) for _ in range(seeds)]))
            own_ms = milliseconds(lambda seed: corrupt(image, name, severity, seed))
            timings.append((own_ms, milliseconds(lambda seed: other(image, severity=severity, corruption_name=name))))
        (own_ms, peer_ms), columns = np.mean(timings, axis=0), (" ".join(f"{value:.1f}" for value in values) for values in (ours, theirs))
        print(f"| {name} | " + " | ".join(columns) + f" | {own_ms:.1f} | {peer_ms:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sheet", "change", "speed", "reference"])
    parser.add_argument("path", nargs="?", help="the picture that `sheet` writes, the photograph that `reference` takes")
    parser.add_argument("--images", metavar="SOURCE")
    parser.add_argument("--side", type=int, metavar="PX", help="of the sheet's image; of `change`: resize and crop to it first")
    parser.add_argument("--limit", type=int, default=20, metavar="N")
    args = parser.parse_args()
    if args.what == "sheet":
        draw_sheet(args.path, args.side or SHEET_PX)
    elif args.what == "change":
        print_changes(images_of(args.images, args.limit, args.side))
    elif args.what == "speed":
        print_speed()
    else:
        print_reference(Image.open(args.path).convert("RGB") if args.path else sample())


if __name__ == "__main__":
    main()

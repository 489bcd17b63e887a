"""scikit-learn's digits, 1,797 real scans of 8x8 pixels, as class folders and a pool: data for `nst demo` without a download."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from nst_data.store.files import move_unless_exists, temporary_path

LABELED_PER_CLASS, TEST = 10, 500


def write_digits(folder: Path, seed: int) -> None:
    """Write the digits as image files.

    Args:
        folder: Receives `labeled` (10 per class), `test` (500) and `pool` (the rest, without labels). An existing folder is left as it is.
        seed: Seed of the split.
    """
    if folder.is_dir():
        return
    from sklearn.datasets import load_digits  # importing takes a second

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    order = np.random.default_rng(seed).permutation(len(images))
    test, rest = order[:TEST], order[TEST:]
    labeled = np.concatenate([rest[digits.target[rest] == digit][:LABELED_PER_CLASS] for digit in range(10)])
    staging = temporary_path(folder.with_name(f".{folder.name}"))
    shutil.rmtree(staging, ignore_errors=True)
    for index in order:
        split = "test" if index in test else "labeled" if index in labeled else "pool"
        destination = staging / split if split == "pool" else staging / split / str(digits.target[index])
        destination.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).save(destination / f"{index:04d}.png")
    move_unless_exists(staging, folder)
    shutil.rmtree(staging, ignore_errors=True)  # if another process was first, it wrote the same images

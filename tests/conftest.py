"""Images and stores that the tests make; nothing is downloaded."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may ask the public Hub for anything


def picture(label: int, index: int, size_px: int = 16) -> Image.Image:
    """A small RGB image: a bright bar at a place that the label decides, over noise that the index decides."""
    rng = np.random.default_rng([label, index])
    pixels = rng.integers(0, 90, (size_px, size_px, 3), dtype=np.uint8)
    start = label * size_px // 4
    pixels[:, start : start + size_px // 4] += 150
    return Image.fromarray(pixels)


def write_class_folders(folder: Path, classes: list[str], per_class: int, first: int = 0) -> Path:
    """`folder`/CLASS/INDEX.png for every class."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + per_class):
            picture(label, index).save(folder / name / f"{index:03d}.png")
    return folder


def write_pool(folder: Path, classes: int, per_class: int, first: int = 100) -> Path:
    """A folder of images without labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for label in range(classes):
        for index in range(first, first + per_class):
            picture(label, index).save(folder / f"{label}-{index:03d}.png")
    return folder


@pytest.fixture
def labeled_folder(tmp_path):
    return write_class_folders(tmp_path / "labeled", ["ant", "bee", "cat"], 4)


@pytest.fixture
def pool_folder(tmp_path):
    return write_pool(tmp_path / "pool", 3, 5)

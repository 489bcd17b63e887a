"""How fast training images are made, beside timm's loader.

    python benchmarks/train_input.py --images ../shared/data/cifar10/labeled.parquet --size 32
    python benchmarks/train_input.py --images ../shared/data/imagenet-samples/samples.parquet --size 224

Images/s of the input pipeline (decode, random resized crop, flip, RandAugment of two operations at magnitude 27, batches of uint8)
over encoded images in memory, beside timm's create_loader with the same policy in its words, `rand-m27-n2-p1-mmax27`. In one process and
with two workers; in rounds, one after the other, so that both see the same machine.
"""

import argparse
import functools
import gc
import io
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_loader
from torch.utils.data import Dataset

from nst_data.sources import open_source
from nst_train.batches.batches import LabeledImages, training_batches
from nst_train.noise_settings import Noise
from nst_train.settings import TrainSettings
from nst_train.transforms.noise import training_transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoded(Dataset[tuple[Image.Image, int]]):
    """Encoded images in memory, decoded as timm's own datasets do it. timm's loader sets `transform`."""

    transform: Callable[[Image.Image], Any] | None = None

    def __init__(self, images: list[bytes]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.open(io.BytesIO(self._images[index])).convert("RGB")
        return (self.transform(image) if self.transform else image), 0


class InMemory:
    """What `training_batches` asks of a source, over encoded images in memory."""

    location, class_names = "memory", ["one"]

    def __init__(self, images: list[bytes]) -> None:
        self._images = images

    def read(self, row: int) -> bytes:
        return self._images[row]


def encoded_images(path: str, count: int) -> list[bytes]:
    """The first images of a source, over and over up to `count`."""
    source = open_source(path)
    first = [bytes(row.read()) for row in source.rows(range(min(len(source), count)))]
    return [first[row % len(first)] for row in range(count)]


def ours(images: list[bytes], settings: TrainSettings, data_config: dict[str, Any], workers: int) -> Iterator[object]:
    labeled = LabeledImages(InMemory(images), np.arange(len(images)), np.zeros(len(images), np.int64))  # type: ignore[arg-type]
    transforms = training_transforms(settings, data_config)
    return training_batches(settings, labeled, None, transforms, range(len(images) // settings.batch_size), workers)


def timms(images: list[bytes], settings: TrainSettings, data_config: dict[str, Any], workers: int) -> Iterator[object]:
    loader = create_loader(
        Encoded(images),
        input_size=data_config["input_size"],
        batch_size=settings.batch_size,
        is_training=True,
        scale=(settings.crop_scale_min, 1.0),
        hflip=settings.flip,
        color_jitter=None,
        auto_augment=f"rand-m{settings.noise.magnitude}-n{settings.noise.operations}-p1-mmax{settings.noise.magnitude}",
        interpolation=data_config["interpolation"],
        mean=MEAN,
        std=STD,
        num_workers=workers,
        persistent_workers=False,
        use_prefetcher=True,
        device=torch.device("cpu"),
        pin_memory=False,
    )
    return iter(loader.loader)  # without the prefetcher, which normalizes on the device


class Cost(NamedTuple):
    """Of one way over one round."""

    images_per_second: float
    cpu_us_per_image: float  # of all processes, workers' start and end too


def cost_of(make: Callable[[], Iterator[object]], images: int, batch_size: int, warm: int) -> Cost:
    """Images/s without the first `warm` batches, in which workers start; CPU time of the whole."""
    cpu_before, since, counted = cpu_seconds(), 0.0, 0
    for index, _ in enumerate(make()):
        if index + 1 == warm:
            since = time.perf_counter()
        counted += index + 1 > warm
    seconds = time.perf_counter() - since
    gc.collect()  # ends the workers
    return Cost(counted * batch_size / seconds, 1e6 * (cpu_seconds() - cpu_before) / images)


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = [resource.getrusage(scope) for scope in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def compare_input(arguments: argparse.Namespace) -> None:
    """Ours beside timm's, in one process and with workers."""
    torch.set_num_threads(1)
    settings = TrainSettings(
        model="test_resnet",
        image_size=arguments.size,
        batch_size=arguments.batch_size,
        crop_scale_min=arguments.crop_scale_min,
        noise=Noise(magnitude=arguments.magnitude),
    )
    data_config = {"input_size": (3, arguments.size, arguments.size), "interpolation": "bicubic", "mean": MEAN, "std": STD}
    images = encoded_images(arguments.images, arguments.count)
    print(f"{len(images):,} images, {arguments.size} px, batches of {arguments.batch_size}, {len(os.sched_getaffinity(0))} CPUs")
    for workers in (0, 2):
        costs: dict[str, list[Cost]] = {"nst": [], "timm": []}
        for turn in range(arguments.rounds):
            for name in ("nst", "timm") if turn % 2 else ("timm", "nst"):
                make = functools.partial({"nst": ours, "timm": timms}[name], images, settings, data_config, workers)
                costs[name].append(cost_of(make, len(images), arguments.batch_size, warm=max(1, 2 * workers)))
        print(f"{workers} workers:" if workers else "one process:")
        report("images/s", [(own.images_per_second, peer.images_per_second) for own, peer in zip(*costs.values(), strict=True)])
        report("CPU us an image", [(own.cpu_us_per_image, peer.cpu_us_per_image) for own, peer in zip(*costs.values(), strict=True)])


def report(what: str, pairs: list[tuple[float, float]]) -> None:
    """Medians of (ours, timm's) and of their ratio, with its spread."""
    own, peer = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratios = [first / second for first, second in pairs]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds"
    print(f"  {what}: nst {own:,.0f}, timm {peer:,.0f}, ratio {statistics.median(ratios):.2f} ({spread})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--crop-scale-min", type=float, default=0.08)
    parser.add_argument("--magnitude", type=int, default=27)
    parser.add_argument("--rounds", type=int, default=5)
    compare_input(parser.parse_args())


if __name__ == "__main__":
    main()

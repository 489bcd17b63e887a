"""How near `nst label` comes to what decoding and the network alone allow, and to two other tools that do the same job.

    python benchmarks/label.py --images ../shared/data/cifar10/unlabeled.parquet --model test_resnet --size 32
    python benchmarks/label.py --images ../shared/data/imagenet-samples/samples.parquet --model efficientnet_b0 --size 224
    python benchmarks/label.py --images generated                                      # 2,000 JPEGs of 500x375 px
    python benchmarks/label.py --changes TEACHER --store STORE --images ../shared/data/cifar10/test.parquet --size 500
    python benchmarks/label.py --memory --images ../shared/data/cifar10/unlabeled.parquet   # peak of 50,000 and of 500,000 images

Everything is timed in one run, in rounds, in steady state: imports, start-up and the first batches apart. On CPUs decoding and network
share the cores, so the limit is the sum of their costs; decoding alone is timed in threads, as `nst label` does it, and in a process for
each core, where no thread waits for another. Peers: transformers' image-classification pipeline over the images, and timm's
create_loader over image files with results kept in memory.
"""

import argparse
import functools
import io
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from PIL import Image
from timm.data import ImageDataset, create_loader, resolve_model_data_config
from torch import nn

from nst_data.images import phash
from nst_data.prefetch import map_batches_in_threads
from nst_data.progress import Progress, Task
from nst_data.sources import Source, open_source
from nst_data.store.store import Store
from nst_train.classifiers.inference import _Forward, choose_computation, plain_batches
from nst_train.classifiers.loading import load_images
from nst_train.classifiers.teachers import Teacher, load_classifier
from nst_train.labeling.label import label
from nst_train.networks.models import save_teacher
from nst_train.settings import LabelSettings, TrainSettings
from nst_train.transforms.preprocessing import decode_pixels, stack_thumbnails, thumbnail

CORES = len(os.sched_getaffinity(0))


class Clock(Progress):
    """The rate of a task without its first tenth."""

    rate = 0.0

    @staticmethod
    def say(line: str) -> None:
        """Nothing."""

    def task(self, name: str, total: int, unit: str, done: int = 0) -> Any:
        """Times what is advanced."""
        clock = self

        class Timed:
            def __enter__(self) -> Task:
                self.count, self.since, self.counted = 0, time.perf_counter(), 0
                return self

            def advance(self, amount: int, note: str = "") -> None:
                self.count += amount
                if not self.counted and self.count >= total / 10:
                    self.since, self.counted = time.perf_counter(), self.count

            def __exit__(self, *_: object) -> None:
                clock.rate = (self.count - self.counted) / (time.perf_counter() - self.since)

        return Timed()


def rate_of(images: int, work: Callable[[], object]) -> float:
    since = time.perf_counter()
    work()
    return images / (time.perf_counter() - since)


def generated(folder: Path, count: int = 2_000) -> Path:
    """JPEGs of 500x375 px with the spectrum of photographs."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        layers = [rng.integers(0, 255, (375 // step + 1, 500 // step + 1, 3), dtype=np.uint8) for step in (125, 25, 5)]
        parts = [np.asarray(Image.fromarray(layer).resize((500, 375), Image.Resampling.BICUBIC), np.float32) for layer in layers]
        file = io.BytesIO()
        Image.fromarray((0.55 * parts[0] + 0.3 * parts[1] + 0.15 * parts[2]).astype(np.uint8)).save(file, "JPEG", quality=90)
        images.append(file.getvalue())
    pq.write_table(pa.table({"image": images}), folder / "generated.parquet", row_group_size=500)
    return folder / "generated.parquet"


def repeated(source: Source, count: int, path: Path) -> Path:
    """`count` rows of a source's images, over and over."""
    encoded = [bytes(row.read()) for row in source.rows(range(min(len(source), count)))]
    with pq.ParquetWriter(path, pa.schema([("image", pa.binary())])) as writer:
        for start in range(0, count, 5_000):
            writer.write_table(pa.table({"image": [encoded[row % len(encoded)] for row in range(start, min(start + 5_000, count))]}))
    return path


def make_teacher(model: str, size: int, folder: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=10)
    settings = TrainSettings(model=model, image_size=size, crop_pct=1.0 if size <= 64 else 0.875)
    folder.mkdir()
    save_teacher(network, folder, [f"class {index}" for index in range(10)], settings)


def forward_rate(teacher: Teacher, seconds: float) -> tuple[float, str]:
    """The network alone, at its best: whole batches in a thread for each core, or one batch over all cores, for some batch sizes."""
    best = (0.0, "")
    preprocessing = teacher.preprocessings[0]
    shape = preprocessing.prepare(torch.zeros(3, 64, 64, dtype=torch.uint8)).shape
    default = choose_computation(teacher, None, "fp32", False).batch_size
    for batch_size, threads in itertools.product(sorted({default, 32, 128}), (1, CORES)):
        computation = choose_computation(teacher, batch_size, "fp32", False)
        forward = _Forward(teacher, computation)
        images = [torch.zeros(batch_size, *shape, dtype=torch.uint8)]
        torch.set_num_threads(threads)
        lanes = CORES if threads == 1 else 1
        with ThreadPoolExecutor(lanes) as pool:
            list(pool.map(lambda _: forward(images), range(lanes)))
            once = time.perf_counter()
            list(pool.map(lambda _: forward(images), range(lanes)))
            rounds = max(2, int(seconds / (time.perf_counter() - once)))
            rate = rate_of(batch_size * lanes * rounds, lambda: list(pool.map(lambda _: forward(images), range(lanes * rounds))))
        best = max(best, (rate, f"batch {batch_size}, {lanes} x {threads} threads"))
    return best


def decode_rate(teacher: Teacher, source: Source, hashes: bool) -> float:
    """Bytes to what the network reads, on all cores."""
    torch.set_num_threads(1)

    def work() -> None:
        for _ in map_batches_in_threads(
            lambda batch: load_images(batch.rows, teacher.preprocessings, 256, hashes), plain_batches(source, 256), CORES
        ):
            pass

    return rate_of(len(source), work)


@functools.cache
def _undisturbed(folder: str, images: str) -> tuple[Teacher, Source]:
    torch.set_num_threads(1)
    return Teacher.from_members(load_classifier(f"local-dir:{folder}", Store(Path(folder).parent / "store"))[0]), open_source(images)


def _decodes(folder: str, images: str, seconds: float) -> float:
    """The rate of one thread in a process of its own."""
    teacher, source = _undisturbed(folder, images)
    since, count = time.perf_counter(), 0
    for batch in itertools.chain.from_iterable(plain_batches(source, 256) for _ in itertools.count()):
        load_images(batch.rows, teacher.preprocessings, 256, hashes=False)
        count += len(batch.rows)
        if time.perf_counter() - since > seconds:
            break
    return count / (time.perf_counter() - since)


def undisturbed_rate(processes: ProcessPoolExecutor, top: Path, seconds: float = 3.0) -> float:
    """Bytes to what the network reads, in a process for each core: no lock of Python's between them."""
    futures = [processes.submit(_decodes, str(top / "teacher"), str(top / "pool.parquet"), seconds) for _ in range(CORES)]
    return sum(future.result() for future in futures)


def label_rate(store: Store, teacher: str, source: Source, corpus: str, **settings: Any) -> float:
    clock = Clock()
    label(store, corpus, teacher, source, LabelSettings(**settings), progress=clock)
    return clock.rate


def pipeline_rate(folder: Path, source: Source) -> float:
    """transformers' pipeline, with its images decoded by Pillow as its own loader does."""
    from transformers import pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(CORES)
    classify = pipeline("image-classification", model=str(folder), device="cpu")

    def images() -> Iterator[Image.Image]:
        for row in source.rows(range(len(source))):
            yield Image.open(io.BytesIO(row.read())).convert("RGB")

    results, first, since = 0, len(source) // 10, 0.0
    for _ in classify(images(), batch_size=64, top_k=None):
        results += 1
        if results == first:
            since = time.perf_counter()
    return (results - first) / (time.perf_counter() - since)


def loader_rate(network: nn.Module, config: dict[str, Any], folder: Path, count: int) -> float:
    """timm's loader over image files, workers as many as cores, results kept."""
    torch.set_num_threads(CORES)
    loader = create_loader(
        ImageDataset(str(folder)), config["input_size"], 256, use_prefetcher=False, num_workers=CORES, crop_pct=config["crop_pct"],
        interpolation=config["interpolation"], mean=config["mean"], std=config["std"], device=torch.device("cpu"),
    )  # fmt: skip
    outputs, first, n_seen, since = [], count // 10, 0, 0.0
    counted = 0
    with torch.inference_mode():
        for images, _ in loader:
            outputs.append(network(images).softmax(dim=1).half())
            n_seen += len(images)
            if not since and n_seen >= first:
                since, counted = time.perf_counter(), n_seen
    return (n_seen - counted) / (time.perf_counter() - since)


def speed(images: Path, model: str, size: int, rounds: int, count: int, peers: bool, top: Path) -> None:
    source = open_source(str(repeated(open_source(str(images)), count, top / "pool.parquet")))
    make_teacher(model, size, top / "teacher")
    name, store = f"local-dir:{top / 'teacher'}", Store(top / "store")
    classifier, _ = load_classifier(name, store)
    teacher, config = Teacher.from_members(classifier), dict(resolve_model_data_config(classifier.network))
    config["input_size"], config["crop_pct"] = (3, size, size), 1.0 if size <= 64 else 0.875
    (top / "files").mkdir()
    for row in source.rows(range(len(source))):
        (top / "files" / f"{row.id:07d}.jpg").write_bytes(row.read())
    rates_by_name: dict[str, list[float]] = {}
    processes = ProcessPoolExecutor(CORES, mp_context=multiprocessing.get_context("spawn"))
    undisturbed_rate(processes, top, 0.1)  # they import
    for number in range(rounds):
        forward, forward_setup = forward_rate(teacher, 3.0)
        measured = {
            "decode alone": decode_rate(teacher, source, hashes=False),
            "decode and hashes": decode_rate(teacher, source, hashes=True),
            "decode in processes": undisturbed_rate(processes, top),
            "forward alone": forward,
            "nst label": label_rate(store, name, source, f"round-{number}"),
        }
        if peers:
            measured["nst label --exact-transform"] = label_rate(store, name, source, f"exact-{number}", exact_transform=True)
            measured["transformers pipeline"] = pipeline_rate(top / "teacher", source)
            network = timm.create_model(name, pretrained=True).eval()
            measured["timm loader loop"] = loader_rate(network, config, top / "files", len(source))
        measured["limit"] = 1 / (1 / measured["decode alone"] + 1 / measured["forward alone"])
        measured["limit in processes"] = 1 / (1 / measured["decode in processes"] + 1 / measured["forward alone"])
        for contender, rate in measured.items():
            rates_by_name.setdefault(contender, []).append(rate)
        print(
            f"round {number + 1} (forward: {forward_setup}): "
            + ", ".join(f"{contender} {rate:,.0f}" for contender, rate in measured.items()),
            flush=True,
        )
    print(f"\n{model} at {size} px, {len(source):,} images, {CORES} cores, medians of {rounds} rounds, images/s:")
    for contender, rates in rates_by_name.items():
        ratio = statistics.median(own / peer for own, peer in zip(rates_by_name["nst label"], rates, strict=True))
        print(f"  {contender:<28} {statistics.median(rates):>9,.0f}   nst label is {ratio:.2f} of it")
    processes.shutdown()
    print_hash_share(source, statistics.median(rates_by_name["nst label"]))
    if peers:
        print_changes(store)


def print_hash_share(source: Source, rate: float) -> None:
    """The perceptual hash's part of what an image costs."""
    decoded = [decode_pixels(row.read()) for row in source.rows(range(min(len(source), 512)))]
    torch.set_num_threads(1)
    seconds_per_image = float("inf")
    for _ in range(5):
        since = time.perf_counter()
        for start in range(0, len(decoded), 256):
            phash(stack_thumbnails([thumbnail(pixels) for pixels in decoded[start : start + 256]]))
        seconds_per_image = min(seconds_per_image, (time.perf_counter() - since) / len(decoded))
    print(f"  perceptual hash: {1e6 * seconds_per_image:,.1f} us, {100 * seconds_per_image * rate / CORES:.1f}% of an image's cost")


def print_changes(store: Store) -> None:
    """How many labels the faster decoding and resizing change."""
    fast, exact = (pq.read_table(store.open(f"{name}-0").folder / "pseudo_labels") for name in ("round", "exact"))
    labels = [table["label"].to_numpy() for table in (fast, exact)]
    confidences = [table["confidence"].to_numpy() for table in (fast, exact)]
    changed = int((labels[0] != labels[1]).sum())
    max_change = np.abs(confidences[0] - confidences[1]).max()
    print(f"  against --exact-transform: {changed} of {len(labels[0]):,} labels change, confidences by at most {max_change:.4f}")


def changes(images: Path, teacher: str, store: Path, size: int, count: int, top: Path) -> None:
    """How many labels of a trained teacher change with the faster transform; small images are enlarged to JPEGs of `size` px."""
    source = open_source(str(images))
    enlarged = []
    for row in source.rows(range(min(count, len(source)))):
        file, image = io.BytesIO(), Image.open(io.BytesIO(row.read())).convert("RGB")
        if max(image.size) < size:
            image = image.resize((size, size * 3 // 4), Image.Resampling.BICUBIC)
        image.save(file, "JPEG", quality=90)
        enlarged.append(file.getvalue())
    pq.write_table(pa.table({"image": enlarged}), top / "enlarged.parquet", row_group_size=500)
    (top / "store").mkdir()
    (top / "store" / "teachers").symlink_to(store.absolute() / "teachers")
    pool = open_source(str(top / "enlarged.parquet"))
    label(Store(top / "store"), "round-0", teacher, pool, LabelSettings())
    label(Store(top / "store"), "exact-0", teacher, pool, LabelSettings(exact_transform=True))
    print_changes(Store(top / "store"))


def memory(images: Path, model: str, size: int, top: Path) -> None:
    """Peak resident memory of whole `nst label` commands."""
    make_teacher(model, size, top / "teacher")
    peaks = {}
    for count in (50_000, 500_000):
        repeated(open_source(str(images)), count, top / f"{count}.parquet")
        options = [
            "label",
            top / f"{count}.parquet",
            "--teacher",
            f"local-dir:{top / 'teacher'}",
            "--corpus",
            f"c{count}",
            "--store",
            top / "store",
        ]
        command = [sys.executable, "-c", "from nst_cli.main import run; run()", *map(str, options)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        peaks[count] = usage.ru_maxrss / 1024
        print(f"{count:,} images: peak {peaks[count]:,.0f} MB", flush=True)
    print(f"ratio {peaks[500_000] / peaks[50_000]:.3f}")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--changes", metavar="TEACHER")
    parser.add_argument("--store", type=Path, default=Path("nst-store"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        images = generated(top) if options.images == "generated" else Path(options.images)
        if options.changes:
            changes(images, options.changes, options.store, options.size, options.count, top)
        elif options.memory:
            memory(images, options.model, options.size, top)
        else:
            speed(images, options.model, options.size, options.rounds, options.count, not options.alone, top)


if __name__ == "__main__":
    main()

"""What the suite `corruptions` costs beside its two parts: the corruption functions alone and the forward pass alone.

    python benchmarks/evaluate.py --images ../shared/data/cifar10/test.parquet --model test_resnet --size 32
    python benchmarks/evaluate.py --images ../shared/data/imagenet-samples/samples.parquet --model resnet18 --size 224 --count 16

All three are timed in turn, in one run, on the same images and with as many threads: first each image corrupted 75 times, then as many
forward passes, then `nst evaluate`'s way through both, with reading and decoding. The loss is what that takes longer than the sum.
Networks are untrained. Beside other work the loss in CPU time is the one to look at.
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config

from nst_data.sources import open_source
from nst_train.classifiers.classifier import Classifier
from nst_train.classifiers.inference import choose_computation, move_to_device, plain_batches
from nst_train.classifiers.loading import load_images
from nst_train.classifiers.teachers import Teacher
from nst_train.device import set_threads
from nst_train.evaluation.attacks import PixelClassifier
from nst_train.evaluation.conditions import Corrupted
from nst_train.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from nst_train.evaluation.trials import Candidate, Trial, observe
from nst_train.settings import ReadSettings
from nst_train.transforms.preprocessing import TimmPreprocessing

CONDITIONS = [Corrupted(name, severity, 0) for name in CORRUPTIONS for severity in SEVERITIES]


def seconds(work: Callable[[], object]) -> np.ndarray:
    """(on the wall, of all CPUs together)."""
    began = np.array([time.perf_counter(), time.process_time()])
    work()
    return np.array([time.perf_counter(), time.process_time()]) - began


class Bench:
    """A few images of a source, and the three ways to spend time on them."""

    def __init__(self, images: str, model: str, size_px: int, count: int, threads: int) -> None:
        self.source = First(images, count)
        network = timm.create_model(model, num_classes=1000).eval()
        config = resolve_model_data_config(network) | {"input_size": (3, size_px, size_px)}
        classifier = Classifier(network, TimmPreprocessing.from_data_config(config, exact=True), [str(index) for index in range(1000)])
        self.threads, self.candidate = threads, Candidate(model, classifier, model)
        self.trial = Trial(model, self.source, classifier.class_names, np.zeros(count, dtype=np.int64))
        batch_size = choose_computation(Teacher.from_members(classifier), None, "fp32", False).batch_size
        batch_size = min(batch_size, 2 ** (count - 1).bit_length())
        self.batches = [
            load_images(batch.rows, [classifier.preprocessing], batch_size, hashes=False).pixels[0]
            for batch in plain_batches(self.source, batch_size)
        ]
        self.network = PixelClassifier.wrap(move_to_device(network, torch.device("cpu")), classifier.preprocessing)
        self.pixels = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for batch in self.batches for image in batch][:count]
        set_threads(1)

    def corrupt(self) -> None:
        """A thread takes a batch under one condition, as the suite does it."""
        size = len(self.batches[0])
        pieces = [(self.pixels[start : start + size], condition) for start in range(0, len(self.pixels), size) for condition in CONDITIONS]

        def work(piece: tuple[list[np.ndarray], Corrupted]) -> None:
            for image in piece[0]:
                corrupt(image, piece[1].name, piece[1].severity, 0)

        self._in_threads(work, pieces)

    def classify(self) -> None:
        """As many forward passes, of images in [0, 1]."""

        def work(batch: torch.Tensor) -> None:
            with torch.inference_mode():
                self.network(batch.float().div_(255).contiguous(memory_format=torch.channels_last))

        self._in_threads(work, self.batches * len(CONDITIONS))

    def evaluate(self) -> None:
        observe(self.candidate, self.trial, CONDITIONS, run=ReadSettings(decode_threads=self.threads))

    def _in_threads(self, work: Callable[..., None], pieces: list) -> None:
        with ThreadPoolExecutor(self.threads) as pool:
            for _ in pool.map(work, pieces):
                pass


class First:
    """The first images of a source, as a source."""

    def __init__(self, location: str, count: int) -> None:
        self._source, self._count = open_source(location), count
        self.fingerprint, self.location = self._source.fingerprint, self._source.location

    def __len__(self) -> int:
        return self._count

    def rows(self, wanted: range) -> object:
        return self._source.rows(wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    bench = Bench(arguments.images, arguments.model, arguments.size, arguments.count, arguments.threads)
    n_images, losses = arguments.count * len(CONDITIONS), []
    print(
        f"{arguments.model} at {arguments.size} px, {arguments.count} images, {len(CONDITIONS)} copies of each, {arguments.threads} threads"
    )
    for number in range(arguments.rounds + 1):
        corrupting, classifying, evaluating = seconds(bench.corrupt), seconds(bench.classify), seconds(bench.evaluate)
        if number == 0:  # the first round warms caches
            continue
        losses.append(evaluating / (corrupting + classifying) - 1)
        parts = (("corrupt", corrupting), ("classify", classifying), ("suite", evaluating))
        rates = ", ".join(f"{name} {n_images / elapsed[0]:,.0f}" for name, elapsed in parts)
        wall, cpu = 100 * losses[-1]
        print(f"round {number}: images/s: {rates}; the suite takes {wall:+.1f}% of their sum longer, of CPU time {cpu:+.1f}%", flush=True)
    wall, cpu = 100 * np.median(losses, axis=0)
    print(f"median {wall:+.1f}%, of CPU time {cpu:+.1f}%")


if __name__ == "__main__":
    main()

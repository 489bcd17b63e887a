"""How fast `nst train` is.

    python benchmarks/train.py loop --images ../shared/data/cifar10/labeled.parquet --model efficientnet_b0 --size 96 --threads 1
    python benchmarks/train.py loop --images ../shared/data/cifar10/labeled.parquet --model test_resnet --size 32 --batch-size 32
    python benchmarks/train.py defaults
    python benchmarks/train.py defaults --load 1
    python benchmarks/train.py whole --images ../shared/data/clothing/train.parquet --batch-size 16 --steps 16 --workers 2

`loop`: the whole of `nst train` (workers that decode and augment, step, log, averaged weights) beside a bare PyTorch loop over the same
images, decoded and in memory, with the same network, batch, optimizer, loss and averaged weights. Twice, start-up apart:
step by step, a bare step after each of nst's, so that both see the same machine, with images/s and the CPU time of the training process,
which other work on the machine hardly moves; and in turn, as whole runs, where the workers' share of the machine is felt too.

`defaults`: a step of `nst train` with the precision and the threads that `nst init` writes for this machine, beside a bare step by
PyTorch's own defaults, and beside a bare one with the same choices, of four networks. Each way has a process of its own, since how OpenMP
waits is a process's; they take one step after the other, on images in memory. `--load N`: beside N processes that compute all the time.

`whole`: runs of `nst train` on encoded images as `nst init` sets it up for this machine, and runs of a bare loop by PyTorch's own defaults
with timm's loader and its RandAugment, in turn; as many workers for both.
"""

import argparse
import io
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.utils.model_ema import ModelEmaV3
from torch.nn import functional as F
from train_input import Encoded, encoded_images

from nst_data.freed_memory import keep_freed_memory
from nst_data.images import decode
from nst_data.progress import Progress, Task
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import Source, open_source
from nst_data.store.store import Store, Version
from nst_data.tables.shards import table_files
from nst_train.batches.batches import TrainingBatch
from nst_train.device import autocast, resolve_channels_last, resolve_precision, set_threads, this_device
from nst_train.labeling.label import label
from nst_train.networks.attention import unfuse_attention
from nst_train.networks.models import create_network, training_data_config
from nst_train.noise_settings import Noise
from nst_train.settings import RunSettings, TrainSettings
from nst_train.starting.faster import faster_settings
from nst_train.training.schedule import Schedule
from nst_train.training.step import create_step
from nst_train.training.train import train

NOISE = {"magnitude": 9, "operations": 2, "dropout": 0.2, "stochastic_depth": 0.2}


def now() -> np.ndarray:
    """Seconds on the clock and of this process's CPU time, with no work on a GPU outstanding."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


class Steps(Progress):
    """Seconds of each training step: on the clock and of CPU time; `between` runs after each, apart from it."""

    def __init__(self, between: Callable[[], None]) -> None:
        self._between, self.seconds = between, []

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        self._since = now()
        yield self

    def advance(self, amount: int, note: str = "") -> None:
        self.seconds.append(now() - self._since)
        self._between()
        self._since = now()


@dataclass
class Loop:
    """One training, by `nst train` and bare."""

    settings: TrainSettings
    labeled: Source
    edition: Version
    workers: int

    def __post_init__(self) -> None:
        self._seeds = itertools.count()
        images = [np.asarray(decode(self.labeled.read(row))).transpose(2, 0, 1) for row in range(len(self.labeled))]
        probs = pa.concat_tables(pq.read_table(file) for file in table_files(self.edition.folder, "balanced")).column("probs")
        self._images, self._labels = torch.from_numpy(np.stack(images)), torch.from_numpy(self.labeled.labels)
        self._probs = torch.from_numpy(np.array(probs.to_pylist(), dtype=np.float16))

    def nst_train(self, between: Callable[[], None] = lambda: None) -> tuple[np.ndarray, float]:
        """Seconds of each step of the real loop, shape (steps, 2), and CPU seconds of its workers."""
        store, number, steps = Store(self.edition.folder.parents[2]), next(self._seeds), Steps(between)
        settings = self.settings.model_copy(update={"seed": number})  # of the store's own it would make none twice
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = RunSettings(workers=self.workers)
        train(store, f"run-{number}", self.labeled, settings, pseudo=self.edition, pool=self.labeled, run=run, progress=steps)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return np.array(steps.seconds), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def bare(self, number: int) -> np.ndarray:
        """Seconds of each bare step, shape (steps, 2)."""
        step, seconds = self.bare_step(), []
        for _ in range(number):
            since = now()
            step()
            seconds.append(now() - since)
        return np.array(seconds)

    def bare_step(self) -> Callable[[], None]:
        """A step by PyTorch and timm alone."""
        s, device, classes = self.settings, this_device(), self._probs.shape[1]
        set_threads(s.compute_threads or torch.get_num_threads())
        network = create_network(s, classes)
        network.drop_rate = s.noise.dropout  # timm's own dropout
        network = network.to(device).train()
        averaged = ModelEmaV3(network, decay=s.ema_decay, use_warmup=True)
        rate = s.learning_rate * s.batch_size / 256
        optimizer = create_optimizer_v2(network, s.optimizer, rate, s.weight_decay, s.momentum, alpha=0.9, eps=1e-3)
        config, precision = training_data_config(network, s), resolve_precision(s.precision, device)
        mean, std = (torch.tensor(config[name], device=device).view(1, 3, 1, 1) * 255 for name in ("mean", "std"))
        numbers = itertools.count()

        def step() -> None:
            rows = torch.randint(len(self._images), (s.batch_size * (1 + s.ratio),))
            images, labels = self._images[rows].to(device), self._labels[rows[: s.batch_size]].to(device)
            targets = F.one_hot(labels, classes) * (1 - s.label_smoothing) + s.label_smoothing / classes
            targets = torch.cat([targets, self._probs[rows[s.batch_size :]].to(device).float()])
            with autocast(precision, device.type):
                logits = network((images.float() - mean) / std)
            F.cross_entropy(logits.float(), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            averaged.update(network, next(numbers))

        return step


def stored(images: str, size: int, count: int, folder: Path) -> Source:
    """The first images of a labeled source as JPEGs of the training size."""
    source, rows = open_source(images, labeled=True), []
    for row in range(min(count, len(source))):
        file = io.BytesIO()
        Image.fromarray(np.asarray(decode(source.read(row)))).resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": int(source.labels[row])})
    pq.write_table(pa.Table.from_pylist(rows), folder / "images.parquet", row_group_size=500)
    return open_source(str(folder / "images.parquet"), labeled=True)


def loop(asked: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        source, store = stored(asked.images, asked.size, asked.count, Path(name)), Store(Path(name, "store"))
        epochs = asked.steps * asked.batch_size / len(source)
        of_run = {"epochs": epochs, "batch_size": asked.batch_size, "ratio": 3, "compute_threads": asked.threads}
        settings = TrainSettings(model=asked.model, image_size=asked.size, noise=NOISE, **of_run)
        teacher = train(store, "teacher", source, settings.model_copy(update={"model": "test_resnet", "epochs": 1e-6}))
        edition = balance(store, label(store, "pool", teacher.ref, source), BalanceSettings(min_confidence=0, per_class="none"))
        compare(Loop(settings, source, edition, asked.workers), asked.rounds)


def compare(ways: Loop, rounds: int) -> None:
    s, cores = ways.settings, len(os.sched_getaffinity(0))
    batch = s.batch_size * (1 + s.ratio)
    print(f"{s.model} at {s.image_size} px, {batch} images a step, {this_device()}, {s.compute_threads} compute threads, {cores} cores")
    of_workers, by_step, in_turn = [], [], []
    for _ in range(rounds):
        bare_step, bare = ways.bare_step(), []

        def between(step: Callable[[], None] = bare_step, bare: list[np.ndarray] = bare) -> None:
            since = now()
            step()
            bare.append(now() - since)

        own, _ = ways.nst_train(between)
        by_step.append((np.array(bare)[2:], own[2:]))
        own, workers = ways.nst_train()
        of_workers.append(1e3 * workers / (batch * len(own)))
        in_turn.append((ways.bare(len(own))[2:].sum(axis=0), own[2:].sum(axis=0)))
    bare, own = (np.concatenate(arrays) for arrays in zip(*by_step, strict=True))
    for column, measure in enumerate(("images/s", "CPU time of the training process")):
        ratios = bare[:, column] / own[:, column]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        print(f"  step by step, {measure}: nst train to bare {middle:.3f} (quartiles {low:.2f}, {high:.2f}; {len(ratios)} pairs)")
    print(f"  bare: {batch / np.median(bare[:, 0]):,.0f} images/s, {1e3 * np.median(bare[:, 1]) / batch:.2f} ms of CPU time an image")
    ratios = [first[0] / second[0] for first, second in in_turn]
    print(f"  in turn, images/s: nst train to bare {statistics.median(ratios):.3f} ({' '.join(f'{ratio:.2f}' for ratio in ratios)})")
    print(f"  workers: {statistics.median(of_workers):.2f} ms of CPU time an image", flush=True)


NETWORKS = {"tf_efficientnet_lite0": 128, "mobilenetv3_large_100": 128, "resnet18": 128, "vit_tiny_patch16_224": 128}  # side in pixels
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # how threads of OpenMP wait for one another
WAYS = ("nst", "bare, PyTorch's defaults", "bare, the same choices")
CLASSES, CPU = 10, torch.device("cpu")


def bare_step(settings: TrainSettings, chosen: bool, classes: int = CLASSES, device: torch.device = CPU) -> Callable[[torch.Tensor], None]:
    """A step by PyTorch and timm on normalized images, labeled first: by PyTorch's own defaults, or as nst computes with these settings."""
    network, numbers = create_network(settings, classes), itertools.count()
    precision = resolve_precision(settings.precision, device)
    is_last = chosen and resolve_channels_last(settings.channels_last, network, device.type, precision)
    order = torch.channels_last if is_last else torch.contiguous_format
    network.drop_rate = settings.noise.dropout
    network = network.train().to(device, memory_format=order)
    if chosen and not settings.fused_attention:
        unfuse_attention(network, settings.model)
    averaged = ModelEmaV3(network, decay=settings.ema_decay, use_warmup=True)
    optimizer = create_optimizer_v2(network, settings.optimizer, 0.001, settings.weight_decay, settings.momentum)
    labels = torch.randint(classes, (settings.batch_size,))
    targets = F.one_hot(labels, classes) * (1 - settings.label_smoothing) + settings.label_smoothing / classes
    targets = torch.cat([targets, torch.rand(settings.batch_size * settings.ratio, classes).softmax(dim=1)]).to(device)

    def step(images: torch.Tensor) -> None:
        with autocast(precision if chosen else "fp32", device.type):
            logits = network(images)
        F.cross_entropy(logits.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update(network, next(numbers))

    return step


def step_of(way: str, settings: TrainSettings) -> Callable[[], None]:
    """A training step on random images, labeled and three times as many pseudo-labeled, by one of WAYS."""
    size, labeled, images = settings.image_size, settings.batch_size, settings.batch_size * (1 + settings.ratio)
    network = create_network(settings, CLASSES)
    config, numbers = training_data_config(network, settings), itertools.count()
    pixels = torch.randint(256, (images, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    if way == "nst":
        step = create_step(network, settings, Schedule.of(settings, 1000), config, CLASSES)
        labels, probs = torch.randint(CLASSES, (labeled,)), torch.rand(images - labeled, CLASSES).softmax(dim=1)
        batch = TrainingBatch(pixels, labels, {"probs": probs.half()})
        return lambda: step(next(numbers), batch) and None
    ours = way == "bare, the same choices"
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) * 255 for name in ("mean", "std"))
    pixels, bare = pixels if ours else pixels.contiguous(), bare_step(settings, ours)
    return lambda: bare((pixels.float() - mean) / std)


def settings_of(model: str, size: int, batch_size: int) -> TrainSettings:
    noise = {"operations": 0, "dropout": 0.2, "stochastic_depth": 0.2}
    return TrainSettings(model=model, image_size=size, batch_size=batch_size, ratio=3, optimizer="adamw", noise=noise)


def child(asked: argparse.Namespace) -> None:
    """A step for each line on standard input; its seconds, on the clock and of CPU time, on standard output."""
    settings = settings_of(asked.model, asked.size, asked.batch_size).model_copy(update=json.loads(asked.chosen))
    is_plain = asked.way == WAYS[1]
    if settings.compute_threads and not is_plain:
        set_threads(settings.compute_threads)
    with nullcontext() if is_plain else keep_freed_memory():
        if asked.folder:
            for row in (whole_nst if asked.way == "nst" else whole_bare)(asked, settings):
                print(*row)
            return
        step = step_of(asked.way, settings)
        for _ in sys.stdin:
            since = now()
            step()
            print(*(now() - since), flush=True)


def whole_nst(asked: argparse.Namespace, settings: TrainSettings) -> np.ndarray:
    """Seconds of each step of a run of `nst train`, shape (steps, 2)."""
    store, steps = Store(asked.folder / "store"), Steps(lambda: None)
    source = open_source(str(asked.folder / "images.parquet"), labeled=True)
    settings = settings.model_copy(update={"steps": asked.steps, "seed": asked.seed, "noise": Noise(**NOISE)})
    run = RunSettings(workers=asked.workers)
    train(store, f"run-{asked.model}-{asked.seed}", source, settings, pseudo=asked.edition, pool=source, run=run, progress=steps)
    return np.array(steps.seconds)


def whole_bare(asked: argparse.Namespace, settings: TrainSettings) -> np.ndarray:
    """Seconds of each step of PyTorch's and timm's loop, with timm's loader and its RandAugment."""
    config = training_data_config(create_network(settings, CLASSES), settings)
    images = encoded_images(str(asked.folder / "images.parquet"), asked.steps * settings.batch_size * (1 + settings.ratio))
    loader = create_loader(
        Encoded(images),
        config["input_size"],
        settings.batch_size * (1 + settings.ratio),
        is_training=True,
        use_prefetcher=False,
        auto_augment="rand-m9-n2-p1",
        interpolation="bicubic",
        mean=config["mean"],
        std=config["std"],
        num_workers=asked.workers,
    )
    step, seconds, since = bare_step(settings, chosen=False), [], now()
    for pixels, _ in loader:
        step(pixels)
        seconds.append(now() - since)
        since = now()
    return np.array(seconds)


def defaults(asked: argparse.Namespace) -> None:
    capability, cores = torch.backends.cpu.get_cpu_capability(), len(os.sched_getaffinity(0))
    images = 4 * asked.batch_size
    print(f"{cores} cores, {capability}, {torch.get_num_threads()} threads, {images} images a step, {asked.load} busy processes beside")
    overall: dict[str, list[np.ndarray]] = {way: [] for way in WAYS[1:]}
    with ExitStack() as stack:
        for _ in range(asked.load):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(busy.kill)
        for model, size in NETWORKS.items():
            chosen = faster_settings(settings_of(model, size, asked.batch_size), CLASSES)
            seconds = steps_in_turn(asked, model, size, chosen)
            rate = {way: f"{images / np.median(seconds[way][:, 0]):.1f}" for way in WAYS}
            print(f"{model} at {size} px, `nst init` chooses {chosen or 'nothing'}; images/s: {rate}")
            for way in WAYS[1:]:
                ratios = seconds[way] / seconds["nst"]
                overall[way].append(np.median(ratios, axis=0))
                low, high = np.percentile(ratios, [25, 75], axis=0)
                cells = [f"{middle:.2f} ({a:.2f}-{b:.2f})" for middle, a, b in zip(overall[way][-1], low, high, strict=True)]
                print(f"  nst to {way}: rate {cells[0]}, CPU time {cells[1]}", flush=True)
    for way, ratios in overall.items():
        print(f"nst to {way}, mean over networks: rate {np.mean(ratios, axis=0)[0]:.2f}, CPU time {np.mean(ratios, axis=0)[1]:.2f}")


def whole(asked: argparse.Namespace) -> None:
    images, skipped, ratios = 4 * asked.batch_size, 3, []  # workers fill their queues in the first steps
    print(f"{images} images a step, {asked.steps} steps a run, {asked.workers} workers, {torch.get_num_threads()} threads")
    for model, size in NETWORKS.items():
        chosen, rates = faster_settings(settings_of(model, size, asked.batch_size), CLASSES), {"nst": [], WAYS[1]: []}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "images.parquet")
            first_images = pq.read_table(asked.images).slice(0, asked.count)
            pq.write_table(first_images, file, row_group_size=100, compression="none", use_dictionary=False)
            store, source = Store(Path(folder, "store")), open_source(str(file), labeled=True)
            tiny = TrainSettings(model="test_resnet", image_size=32, steps=1, warmup_epochs=0, batch_size=asked.batch_size)
            labels = label(store, "pool", train(store, "teacher", source, tiny).ref, source)
            edition = balance(store, labels, BalanceSettings(min_confidence=0, per_class="none")).ref
            for seed in range(asked.rounds):
                for way, of_way in rates.items():
                    options = ("--folder", folder, "--edition", edition, "--seed", seed)
                    result = started(asked, way, model, size, chosen, *options).communicate()[0]
                    seconds = np.array([[float(one) for one in line.split()] for line in result.splitlines()])
                    of_way.append(images * len(seconds[skipped:]) / seconds[skipped:, 0].sum())
        step_ratios = [ours / bare for ours, bare in zip(*rates.values(), strict=True)]
        ratios.append(statistics.median(step_ratios))
        rates_text = ", ".join(f"{way} {statistics.median(of_way):.1f}" for way, of_way in rates.items())
        print(f"{model} at {size} px, `nst init` chooses {chosen or 'nothing'}; images/s: {rates_text}")
        print(f"  nst train to the bare loop: {ratios[-1]:.2f} ({' '.join(f'{one:.2f}' for one in step_ratios)})", flush=True)
    print(f"mean over networks: {statistics.mean(ratios):.2f}")


def started(asked: argparse.Namespace, way: str, model: str, size: int, chosen: dict[str, object], *more: object) -> subprocess.Popen[str]:
    """A process that takes steps by one way, with OpenMP as `nst`, or as PyTorch, has it wait."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    environment |= {} if way == WAYS[1] else {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
    options = ["child", "--way", way, "--model", model, "--size", size, "--batch-size", asked.batch_size, "--steps", asked.steps]
    options += ["--workers", asked.workers, "--chosen", json.dumps(chosen), *more]
    command = [sys.executable, __file__, *map(str, options)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def steps_in_turn(asked: argparse.Namespace, model: str, size: int, chosen: dict[str, object]) -> dict[str, np.ndarray]:
    """Seconds of each step, shape (steps, 2), by way; the first of each, in which memory is got, is left out."""
    seconds: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        processes = {}
        for way in WAYS:
            process = started(asked, way, model, size, chosen)
            stack.enter_context(process)
            processes[way] = process
        for _ in range(1 + asked.steps):
            for way, process in processes.items():
                print(file=process.stdin, flush=True)
                seconds[way].append([float(one) for one in process.stdout.readline().split()])
        for process in processes.values():
            process.stdin.close()
    return {way: np.array(one[1:]) for way, one in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loop", "defaults", "whole", "child"], metavar="loop|defaults|whole")
    parser.add_argument("--images", help="a labeled source; its first images are stored as JPEGs of the training size")
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8, help="labeled images in a step, beside three times as many pseudo-labeled")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the network, for both")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--load", type=int, default=0, help="of defaults: busy processes beside")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--edition", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--chosen", default="{}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what in ("loop", "whole") and not arguments.images:
        parser.error(f"{arguments.what} requires --images")
    {"loop": loop, "defaults": defaults, "whole": whole, "child": child}[arguments.what](arguments)


if __name__ == "__main__":
    main()

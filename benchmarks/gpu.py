"""How near `nst label` and `nst train` come to what one GPU, and the CPU cores beside it, allow; and whether they repeat to the byte.

    python benchmarks/gpu.py label --images ../shared/data/imagenet-samples/samples.parquet
    python benchmarks/gpu.py train --images ../shared/data/imagenet-samples/samples.parquet --workers 4,8,12,15
    python benchmarks/gpu.py repeat --images ../shared/data/imagenet-samples/samples.parquet

`label`: images/s of `nst label` in steady state, beside decoding alone (in threads, as `nst label` does it, and in a process for each
core) and the network alone. On a GPU the two overlap, so the limit is the slower of them. `--peer` adds timm's loader with a worker for
each core and the same network in bf16.

`train`: images/s of `nst train` in steady state, with some numbers of workers, beside the workers alone and the network alone: a bare
PyTorch step over images that lie on the GPU already, in the same precision and memory order. Peak memory of the GPU.

`repeat`: each network is trained twice, and once more interrupted and resumed, in processes of their own: are the weights the same bytes?
"""

import argparse
import hashlib
import itertools
import multiprocessing
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import timm
import torch
from label import CORES, Clock, decode_rate, label_rate, loader_rate, make_teacher, repeated, undisturbed_rate
from timm.data import resolve_model_data_config
from train import bare_step

from nst_data.prefetch import map_batches_in_threads
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.store import Store, Version
from nst_train.batches.batches import LabeledImages, training_batches
from nst_train.batches.entries import open_edition
from nst_train.classifiers.decoders import load_batches
from nst_train.classifiers.inference import _Forward, choose_computation, plain_batches
from nst_train.classifiers.loading import load_images
from nst_train.classifiers.teachers import Teacher, load_classifier
from nst_train.device import autocast, resolve_precision, this_device
from nst_train.labeling.label import label
from nst_train.networks.models import create_network, training_data_config
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.train import train
from nst_train.transforms.noise import training_transforms

LABELED = {"efficientnet_b0": 224, "tf_efficientnetv2_s": 384, "vit_base_patch16_224": 224, "tf_efficientnet_l2": 475}
TRAINED = {"efficientnet_b0": 224, "resnet50": 224, "tf_efficientnetv2_s": 300, "vit_small_patch16_224": 224}
SKIPPED = 12  # steps at the start, in which workers fill their queues


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rate(images: int, work: Callable[[], object], least_seconds: float = 2.0) -> float:
    """Images/s of what is done again and again; the first time is not counted."""
    work()
    synchronize()
    since, times = time.perf_counter(), 0
    while time.perf_counter() - since < least_seconds:
        for _ in range(4):
            work()
        synchronize()
        times += 4
    return images * times / (time.perf_counter() - since)


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


# label


def forward_rate(teacher: Teacher) -> tuple[float, int, str]:
    """The network alone as `nst label` has it compute, on images in pinned memory."""
    computation = choose_computation(teacher, None, "auto", False)
    forward = _Forward(teacher, computation)
    shape = teacher.preprocessings[0].prepare(torch.zeros(3, 64, 64, dtype=torch.uint8)).shape
    images = torch.randint(256, (computation.batch_size, *shape[1:], 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    images = images.pin_memory() if torch.cuda.is_available() else images
    return rate(computation.batch_size, lambda: forward([images])), computation.batch_size, computation.precision


def decoding(teacher: Teacher, images: Path, batch_size: int) -> None:
    """How decoding grows with the threads of one process, and with processes as `nst label` uses them."""
    source = open_source(str(images))
    torch.set_num_threads(1)
    for count in (1, 2, 4, 8, 12, CORES - 1, CORES):
        if count > CORES:
            break
        rates = []
        for in_processes in (False, True):
            batches = itertools.islice(plain_batches(source, batch_size), max(8, 2 * count))
            if in_processes:
                ahead = load_batches(teacher, batches, batch_size, True, count)
            else:
                ahead = map_batches_in_threads(
                    lambda batch: load_images(batch.rows, teacher.preprocessings, batch_size, True), batches, count
                )
            since, n_decoded = time.perf_counter(), 0
            for batch, _ in ahead:
                n_decoded += len(batch.rows)
            rates.append(n_decoded / (time.perf_counter() - since))
        print(f"  decoding by {count:>2} threads {rates[0]:,.0f}, by as many processes {rates[1]:,.0f} images/s", flush=True)


def labeling(asked: argparse.Namespace) -> None:
    print(f"nst label, {device_name()}, {CORES} cores", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        pool = repeated(open_source(asked.images), asked.count, top / "pool.parquet")
        for model, size in LABELED.items():
            if asked.models and model not in asked.models:
                continue
            model_folder = top / model
            model_folder.mkdir()
            make_teacher(model, size, model_folder / "teacher")
            (model_folder / "pool.parquet").symlink_to(pool)
            source, store = open_source(str(pool)), Store(model_folder / "store")
            classifier, _ = load_classifier(f"local-dir:{model_folder / 'teacher'}", store)
            teacher = Teacher.from_members(classifier)
            rates = {}
            rates["network alone"], batch, precision = forward_rate(teacher)
            if asked.threads:
                decoding(teacher, pool, batch)
            rates["decoding in threads"] = decode_rate(teacher, source, hashes=True)
            with ProcessPoolExecutor(CORES, mp_context=multiprocessing.get_context("spawn")) as processes:
                undisturbed_rate(processes, model_folder, 0.1)
                rates["decoding in processes"] = undisturbed_rate(processes, model_folder)
            rates["nst label"] = label_rate(store, f"local-dir:{model_folder / 'teacher'}", source, "pool")
            if asked.peer:
                rates["timm loader"] = peer_rate(model_folder, source, model, size)
            limits = [min(rates["network alone"], rates[f"decoding in {way}"]) for way in ("threads", "processes")]
            print(f"{model} at {size} px, batches of {batch}, {precision}: " + ", ".join(f"{a} {b:,.0f}" for a, b in rates.items()))
            print(
                f"  nst label to the limit: {rates['nst label'] / limits[0]:.2f}, in processes {rates['nst label'] / limits[1]:.2f}",
                flush=True,
            )


def peer_rate(where: Path, source: object, model: str, size: int) -> float:
    network = timm.create_model(f"local-dir:{where / 'teacher'}", pretrained=True).eval().to(this_device())
    config = dict(resolve_model_data_config(network)) | {"input_size": (3, size, size)}
    files = where / "files"
    files.mkdir()
    for row in source.rows(range(min(8_000, len(source)))):
        (files / f"{row.id:07d}.jpg").write_bytes(row.read())

    def computed(images: torch.Tensor) -> torch.Tensor:
        with autocast(resolve_precision("auto", this_device()), this_device().type):
            return network(images.to(this_device(), non_blocking=True)).float().cpu()

    return loader_rate(computed, config, files, 8_000)


# train


class Setting:
    """A labeled source and an edition of the same photographs."""

    def __init__(self, images: str, folder: Path) -> None:
        self.store, self.source = Store(folder / "store"), open_source(images, labeled=True)
        tiny = TrainSettings(model="test_resnet", image_size=32, steps=1, warmup_epochs=0, batch_size=8)
        labels = label(self.store, "pool", train(self.store, "teacher", self.source, tiny).ref, self.source)
        self.edition: Version = balance(self.store, labels, BalanceSettings(min_confidence=0, per_class="none"))


def settings_of(model: str, size: int, batch: int, steps: int) -> TrainSettings:
    noise = {"magnitude": 9, "operations": 2, "dropout": 0.2, "stochastic_depth": 0.2}
    of_run = {"batch_size": batch, "ratio": 3, "steps": steps, "warmup_epochs": 0, "optimizer": "adamw", "learning_rate": 1e-3}
    return TrainSettings(model=model, image_size=size, noise=noise, **of_run)


def alone_rate(settings: TrainSettings, classes: int) -> float:
    """The network alone: a bare PyTorch step with the same choices, over images that lie on the device."""
    device, count, side = this_device(), settings.batch_size * (1 + settings.ratio), settings.image_size
    pixels = torch.randint(256, (count, side, side, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    step = bare_step(settings, True, classes, device)
    return rate(count, lambda: step((pixels.float() - 120) / 60))


def input_rate(setting: Setting, settings: TrainSettings, workers: int, steps: int) -> float:
    """The workers alone: batches that nobody trains on."""
    edition = open_edition(
        setting.edition, setting.source, setting.source.class_names, Path(setting.store.root, "input"), False, 0, Clock()
    )
    labeled = LabeledImages(setting.source, torch.arange(len(setting.source)).numpy(), setting.source.labels)
    config = training_data_config(create_network(settings, 10), settings)
    batches = training_batches(settings, labeled, edition, training_transforms(settings, config), range(SKIPPED + steps), workers)
    for number, _ in enumerate(batches):
        if number == SKIPPED - 1:
            since = time.perf_counter()
    return steps * settings.batch_size * (1 + settings.ratio) / (time.perf_counter() - since)


class SteadySteps(Clock):
    """Images/s without the first SKIPPED steps. The last step is logged, which waits for the device."""

    def task(self, name: str, total: int, unit: str, done: int = 0) -> object:
        clock = self

        class Timed:
            def __enter__(self) -> "Timed":
                self.steps, self.images = 0, 0
                return self

            def advance(self, amount: int, note: str = "") -> None:
                self.steps += 1
                if self.steps == SKIPPED:
                    synchronize()
                    self.since = time.perf_counter()
                elif self.steps > SKIPPED:
                    self.images += amount

            def __exit__(self, *_: object) -> None:
                if self.steps > SKIPPED:
                    synchronize()
                    clock.rate = self.images / (time.perf_counter() - self.since)

        return Timed()


def training(asked: argparse.Namespace) -> None:
    print(f"nst train, {device_name()}, {CORES} cores, {4 * asked.batch} images a step, {asked.steps} steps after {SKIPPED}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        setting, seeds = Setting(asked.images, Path(folder)), itertools.count()
        for model, size in TRAINED.items():
            if asked.models and model not in asked.models:
                continue
            settings = settings_of(model, size, asked.batch, asked.steps + SKIPPED)
            network_rate = alone_rate(settings, len(setting.source.class_names))
            print(f"{model} at {size} px: network alone {network_rate:,.0f} images/s", flush=True)
            for workers in asked.workers:
                input_rate_alone = input_rate(setting, settings, workers, max(4, 2 * workers))
                clock = SteadySteps()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                own = settings.model_copy(update={"seed": next(seeds)} | ({"compile": True} if asked.compile else {}))
                run = RunSettings(workers=workers)
                options = {"pseudo": setting.edition, "pool": setting.source, "run": run, "progress": clock}
                train(setting.store, f"run-{own.seed}", setting.source, own, **options)
                peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0
                limit = min(input_rate_alone, network_rate)
                summary = f"{clock.rate / limit:.2f} of the slower, {clock.rate / network_rate:.2f} of the network; {peak:.1f} GB"
                print(f"  {workers} workers: alone {input_rate_alone:,.0f}, nst train {clock.rate:,.0f} images/s: {summary}", flush=True)


# repeat


def one_training(asked: argparse.Namespace) -> None:
    """Train in this process, in the store of `--folder`; prints what the weights' bytes are."""
    store, source, (model,) = Store(asked.folder), open_source(asked.images, labeled=True), asked.models
    settings = settings_of(model, TRAINED[model], 16, asked.steps)
    version = train(store, "run", source, settings, pseudo=store.open(asked.edition), pool=source, run=RunSettings(workers=4))
    print(hashlib.sha256((version.folder / "model.safetensors").read_bytes()).hexdigest()[:12])


def repeating(asked: argparse.Namespace) -> None:
    print(f"repeated trainings of {asked.steps} steps, {device_name()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(asked.images, Path(folder, "first"))
        for model in asked.models or TRAINED:
            results = []
            for number, stop_after in enumerate((None, None, asked.stop_after)):
                store = Path(folder, f"{model}-{number}")
                shutil.copytree(setting.store.root, store)
                options = ["one", "--images", asked.images, "--models", model, "--steps", asked.steps]
                options += ["--folder", store, "--edition", setting.edition.ref]
                command = [sys.executable, __file__, *map(str, options)]
                if stop_after:
                    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                    time.sleep(stop_after)
                    process.send_signal(signal.SIGINT)
                    results.append(f"interrupted ({'done before' if process.wait() == 0 else 'unfinished'}) and resumed")
                results.append(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])
            print(f"{model}: {' '.join(results)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["label", "train", "repeat", "one"], metavar="label|train|repeat")
    parser.add_argument("--images", required=True)
    parser.add_argument("--models", type=lambda text: text.split(","))
    parser.add_argument("--count", type=int, default=20_000, help="of label: images in the pool")
    parser.add_argument("--peer", action="store_true", help="of label: timm's loader too")
    parser.add_argument("--threads", action="store_true", help="of label: decoding in some numbers of threads")
    parser.add_argument("--batch", type=int, default=64, help="of train: labeled images a step, beside three times as many pseudo-labeled")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=lambda text: [int(count) for count in text.split(",")], default=[4, 8, 12, 15])
    parser.add_argument("--compile", action="store_true", help="of train: with torch.compile")
    parser.add_argument("--stop-after", type=float, default=12, help="of repeat: seconds until the third training is interrupted")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--edition", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    {"label": labeling, "train": training, "repeat": repeating, "one": one_training}[arguments.what](arguments)


if __name__ == "__main__":
    main()

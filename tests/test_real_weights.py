"""Networks that know something: ImageNet weights on the two photographs that scikit-learn ships."""

import numpy as np
import pytest
from labels import rows
from PIL import Image
from sklearn.datasets import load_sample_images

from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.evaluation.evaluate import evaluate
from nst_train.labeling.label import label
from nst_train.settings import LabelRunSettings, RunSettings, TrainSettings
from nst_train.training.train import train

PHOTOGRAPHS = {"temple": 0, "flower": 1}


def write_crops(folder, per_class, seed, side_px=200):
    """Squares cut out of the photographs at random, in class folders."""
    rng, images = np.random.default_rng(seed), load_sample_images().images
    for name, index in PHOTOGRAPHS.items():
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            top, left = (rng.integers(0, side - side_px) for side in images[index].shape[:2])
            crop = images[index][top : top + side_px, left : left + side_px]
            Image.fromarray(crop).save(folder / name / f"{number}.png")
    return folder


def test_they_name_what_is_on_the_photographs(real_weights, tmp_path):
    for name, index in PHOTOGRAPHS.items():
        (tmp_path / "pool").mkdir(exist_ok=True)
        Image.fromarray(load_sample_images().images[index]).save(tmp_path / "pool" / f"{name}.png")
    version = label(
        Store(tmp_path / "store"), "photos", real_weights, open_source(tmp_path / "pool"), run=LabelRunSettings(decode_threads=1)
    )
    names = version.manifest.class_names
    assert {row["key"]: names[row["label"]] for row in rows(version)} == {"flower.png": "n11939491", "temple.png": "n03877845"}


@pytest.mark.slow
def test_a_probe_of_them_tells_pieces_of_two_photographs_apart_after_six_of_each(real_weights, tmp_path):
    store, run = Store(tmp_path / "store"), RunSettings(workers=0, decode_threads=1)
    labeled = open_source(write_crops(tmp_path / "labeled", 6, 0), labeled=True)
    version = train(store, "probe", labeled, TrainSettings(model=real_weights, pretrained=True, probe=True), run=run)
    scores = evaluate(store, version, write_crops(tmp_path / "test", 40, 1))
    assert scores["top1"] >= 0.95
    assert scores["ece"] < 0.15

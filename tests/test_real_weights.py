"""Networks that know something: ImageNet weights on the two photographs that scikit-learn ships."""

import math

import numpy as np
import pytest
import torch
from labels import table_rows
from PIL import Image
from sklearn.datasets import load_sample_images

from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.batches.batches import TrainingBatch
from nst_train.evaluation.evaluate import evaluate
from nst_train.labeling.label import label
from nst_train.networks.models import create_network, training_data_config
from nst_train.seeds import seed_network
from nst_train.settings import LabelRunSettings, RunSettings, TrainSettings
from nst_train.training.schedule import Schedule
from nst_train.training.step import create_step
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
    assert {row["key"]: names[row["label"]] for row in table_rows(version)} == {"flower.png": "n11939491", "temple.png": "n03877845"}


def test_by_the_preset_their_first_loss_is_ln_of_the_classes_where_the_networks_own_last_layer_begins_far_above(real_weights):
    losses = {}
    for head_init in ("zero", "network"):
        settings = TrainSettings(preset="pretrained", model=real_weights, **({} if head_init == "zero" else {"head_init": head_init}))
        seed_network(0)
        network = create_network(settings, 10)
        step = create_step(network, settings, Schedule.of(settings, 100), training_data_config(network, settings), 10)
        crops = np.stack([image[top : top + 64, :64] for image in load_sample_images().images for top in range(0, 320, 80)])
        batch = TrainingBatch(torch.from_numpy(crops).permute(0, 3, 1, 2), torch.arange(8), {})
        losses[head_init] = float(step(0, batch)[0].mean())
    assert losses["zero"] == pytest.approx(math.log(10), abs=0.2)
    assert losses["network"] > math.log(10) + 1


@pytest.mark.slow
def test_a_probe_of_them_tells_pieces_of_two_photographs_apart_after_six_of_each(real_weights, tmp_path):
    store, run = Store(tmp_path / "store"), RunSettings(workers=0, decode_threads=1)
    labeled = open_source(write_crops(tmp_path / "labeled", 6, 0), labeled=True)
    version = train(store, "probe", labeled, TrainSettings(model=real_weights, pretrained=True, probe=True), run=run)
    scores = evaluate(store, version, write_crops(tmp_path / "test", 40, 1))
    assert scores["top1"] >= 0.95
    assert scores["ece"] < 0.15

"""Each study of the paper is one switch: what it turns in the images and targets of a step, and that it turns nothing else."""

import numpy as np
import pytest
import torch
from conftest import TINY

from nst_data.sources import open_source
from nst_train.batches.batches import training_batches, without
from nst_train.batches.entries import open_edition
from nst_train.networks.models import create_network
from nst_train.seeds import seed_network
from nst_train.settings import TrainSettings
from nst_train.transforms.noise import training_transforms

CONFIG = {"input_size": (3, 16, 16), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.875}
CLASSES = ["ant", "bee", "cat"]
NOISE = {"magnitude": 9, "operations": 2, "dropout": 0.2, "stochastic_depth": 0.1}


@pytest.fixture(scope="module")
def steps(tiny_store, tmp_path_factory):
    """What settings make of the first four steps: images and labels of labeled ones, images and targets of the others."""
    store, labeled, pool = tiny_store
    images = without(open_source(str(labeled), labeled=True), {})

    def made(**changes):
        settings = TrainSettings(**TINY | {"noise": NOISE, "ratio": 2} | changes)
        work = tmp_path_factory.mktemp("edition")
        pseudo = open_edition(store.open("tiny@gen-1.1"), open_source(str(pool)), CLASSES, work, settings.hard)
        batches = list(training_batches(settings, images, pseudo, training_transforms(settings, CONFIG), range(4), 0))
        return {
            "labeled images": np.concatenate([one.images[: len(one.labels)].numpy() for one in batches]),
            "labels": np.concatenate([one.labels.numpy() for one in batches]),
            "pseudo images": np.concatenate([one.images[len(one.labels) :].numpy() for one in batches]),
            "targets": torch.cat([next(iter(one.pseudo.values())) for one in batches]).numpy(),
        }

    return made


def changed(one, other):
    return {name for name in one if one[name].shape != other[name].shape or not np.array_equal(one[name], other[name])}


@pytest.mark.parametrize(
    ("switch", "turned"),
    [
        ({"hard": True}, {"targets"}),  # study 3
        ({"pseudo_noise": {"operations": 0}}, {"pseudo images"}),  # table 6, second row, with 130M images
        ({"pseudo_noise": {"transform": "evaluation"}}, {"pseudo images"}),  # with 1.3M, where augmentation is a crop and a flip
        ({"pseudo_noise": {"flip": 1}}, {"pseudo images"}),
        ({"pseudo_noise": {"crop_scale_min": 1}}, {"pseudo images"}),
        ({"pseudo_noise": {"dropout": 0, "stochastic_depth": 0}}, set()),  # table 6, third row: in the network alone
        ({"noise": NOISE | {"operations": 0}}, {"labeled images", "pseudo images"}),
        ({"pseudo_only": True}, {"labeled images", "labels"}),  # study 6
        ({"start": "tiny-teacher@gen-0"}, set()),  # study 8: in the weights alone
        ({"loss": "sum"}, set()),
        ({"pseudo_temperature": 0.5}, set()),
        ({"label_smoothing": 0.2}, set()),
        ({"model": "test_efficientnet"}, set()),  # study 4
        ({"accumulate": 2, "precision": "bf16", "clip_grad": 1.0, "sync_batch_norm": True}, set()),
    ],
)
def test_a_switch_turns_these_and_nothing_else(steps, switch, turned):
    assert changed(steps(), steps(**switch)) == turned


def test_a_ratio_gives_more_of_the_same_pseudo_labeled_images_and_leaves_the_labeled_ones_alone(steps):
    """Study 7: twice as many a step are those of twice as many steps."""
    less, more = steps(ratio=2), steps(ratio=4)
    assert changed(less, more) == {"pseudo images", "targets"}
    assert np.array_equal(more["pseudo images"][: len(less["pseudo images"])], less["pseudo images"])


@pytest.mark.parametrize("switch", [{"hard": True}, {"loss": "code"}, {"pseudo_only": True}, {"ratio": 7}])
def test_a_study_begins_with_the_same_weights(switch):
    weights = []
    for changes in ({}, switch):
        seed_network(3)
        weights.append(create_network(TrainSettings(**TINY | {"noise": NOISE} | changes), 3).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

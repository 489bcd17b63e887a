import pytest
import torch
from conftest import TINY
from torch import nn

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source
from nst_train.classifiers.teachers import load_classifier
from nst_train.networks.own_networks import register_network
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.train import train

RUN = RunSettings(workers=0, decode_threads=1)
SETTINGS = TINY | {"model": "own_linear", "noise": {"operations": 0, "dropout": 0.2, "stochastic_depth": 0}}


def linear(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, classes))


@pytest.fixture(scope="module")
def teacher(tiny_store):
    register_network("own_linear", linear, image_size=16, mean=(0.4, 0.5, 0.6))
    store, labeled, _ = tiny_store
    return train(store, "own", open_source(str(labeled), labeled=True), TrainSettings(**SETTINGS), run=RUN)


def test_a_network_of_ones_own_is_trained_sealed_and_loaded_with_its_weights_and_normalization(tiny_store, teacher):
    classifier, _ = load_classifier(teacher.ref, tiny_store[0])
    assert isinstance(classifier.network[1], nn.Linear)
    assert classifier.class_names == ["ant", "bee", "cat"]
    assert (classifier.preprocessing.mean, classifier.preprocessing.input_size) == ((0.4, 0.5, 0.6), (3, 16, 16))
    assert teacher.verify() == []


def test_its_first_weights_follow_the_seed(tiny_store, teacher):
    store, labeled, _ = tiny_store
    register_network("own_linear", linear, image_size=16, mean=(0.4, 0.5, 0.6))
    again = train(store, "own-again", open_source(str(labeled), labeled=True), TrainSettings(**SETTINGS), run=RUN)
    assert again.manifest.files["model.safetensors"] == teacher.manifest.files["model.safetensors"]


def test_a_program_that_did_not_register_it_is_told_what_to_do(tiny_store, teacher, tmp_path):
    import shutil

    shutil.copytree(teacher.folder, tmp_path / "copy")
    config = tmp_path / "copy" / "config.json"
    config.write_text(config.read_text().replace("own_linear", "own_stranger"))
    with pytest.raises(NstError, match=r"own_stranger.*not a timm network.*register_network"):
        load_classifier(f"local-dir:{tmp_path / 'copy'}", tiny_store[0])


def test_blocks_that_it_does_not_have_cannot_be_skipped(tiny_store, teacher):
    store, labeled, _ = tiny_store
    settings = TrainSettings(**SETTINGS | {"noise": {"stochastic_depth": 0.2}})
    with pytest.raises(NstError, match=r"own_linear:.*drop_path_rate.*noise\.stochastic_depth or noise\.dropout to 0"):
        train(store, "own", open_source(str(labeled), labeled=True), settings, run=RUN)


def tied(classes):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, classes))
    network[3].weight = network[2].weight
    return network


def masked(classes):
    network = linear(classes)
    network.register_buffer("mask", torch.full((4,), -torch.inf))
    return network


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (masked, r"own_masked: mask has infinite values, .*; register it with `persistent=False`"),
        (tied, r"own_tied: 2\.weight and 3\.weight share their weights, .*choose another `model`, or untie them"),
    ],
)
def test_weights_that_no_checkpoint_could_hold_are_refused_before_any_step(tiny_store, make, said):
    store, labeled, _ = tiny_store
    register_network(f"own_{make.__name__}", make, image_size=16)
    settings = TrainSettings(**SETTINGS | {"model": f"own_{make.__name__}"})
    with pytest.raises(NstError, match=said):
        train(store, "refused", open_source(str(labeled), labeled=True), settings, run=RUN)
    assert "refused@gen-0" not in store.unfinished()


@pytest.mark.parametrize(
    ("name", "said"), [("test_resnet", "test_resnet:.*timm network; choose another"), ("my-net", "expected a name of letters")]
)
def test_a_name_that_cannot_be_told_from_others_is_refused(name, said):
    with pytest.raises(UsageError, match=said):
        register_network(name, linear, image_size=16)
    assert torch.is_tensor(linear(2)(torch.zeros(1, 3, 16, 16)))

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import timm
import torch
from conftest import TINY, write_class_folders
from safetensors.torch import load_file

from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.classifiers.teachers import load_classifier
from nst_train.labeling.label import label
from nst_train.networks.models import create_network
from nst_train.settings import LabelRunSettings, LabelSettings, RunSettings, TrainSettings
from nst_train.training.train import train
from nst_train.transforms.preprocessing import decode_pixels


@pytest.fixture
def network():
    torch.manual_seed(0)
    return create_network(TrainSettings(preset="svhn"), 10).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The svhn preset, trained for one step, and the folder it was trained on."""
    top = tmp_path_factory.mktemp("svhn")
    labeled = write_class_folders(top / "labeled", ["ant", "bee", "cat"], 2)
    small = {name: TINY[name] for name in ("optimizer", "warmup_epochs", "ema_decay")}
    settings = TrainSettings(preset="svhn", epochs=1, batch_size=6, **small)
    run = RunSettings(workers=0, decode_threads=1)
    return train(Store(top / "store"), "digits", open_source(str(labeled), labeled=True), settings, run=run), labeled


def test_the_final_map_is_4_by_4_at_32_pixels(network):
    assert network.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280, 4, 4)


def test_all_but_the_strides_is_b0(network):
    b0 = timm.create_model("tf_efficientnet_b0", num_classes=10).eval()
    b0.load_state_dict(network.state_dict())
    strides = {name: module.stride for name, module in b0.named_modules() if hasattr(module, "stride")}
    changed = {name for name, module in network.named_modules() if hasattr(module, "stride") and module.stride != strides[name]}
    assert changed == {"blocks.1.0.conv_dw", "blocks.2.0.conv_dw"}
    for name in changed:
        b0.get_submodule(name).stride = (1, 1)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(images), b0(images))


def test_images_are_normalized_by_svhns_own_mean_and_none_of_a_test_image_is_cut_off(trained, tmp_path):
    classifier, _ = load_classifier(f"local-dir:{trained[0].folder}", Store(tmp_path))
    preprocessing = classifier.preprocessing
    assert (preprocessing.input_size, preprocessing.crop_pct) == ((3, 32, 32), 1.0)
    assert preprocessing.mean == pytest.approx((0.4377, 0.4438, 0.4728), abs=1e-4)


def test_a_sealed_teacher_has_the_logits_of_the_trained_network_in_timm_and_transformers_too(trained, tmp_path):
    from transformers import AutoModelForImageClassification

    folder = trained[0].folder
    expected = create_network(TrainSettings(preset="svhn"), 3).eval()
    expected.load_state_dict(load_file(folder / "model.safetensors"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = expected(images)
        classifier, _ = load_classifier(f"local-dir:{folder}", Store(tmp_path))
        torch.testing.assert_close(classifier.network(images), logits)
        torch.testing.assert_close(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images), logits)
        torch.testing.assert_close(AutoModelForImageClassification.from_pretrained(folder).eval()(images).logits, logits)


def test_the_sealed_teacher_labels_with_those_logits(trained):
    version, labeled = trained
    store = Store(version.folder.parents[2])
    corpus = label(store, "digits-pool", version.ref, open_source(str(labeled)), LabelSettings(batch_size=6), run=LabelRunSettings())
    classifier, _ = load_classifier(version.ref, store)
    source = open_source(str(labeled))
    prepared = torch.stack([classifier.preprocessing.prepare(decode_pixels(source.read(row))) for row in range(len(source))])
    expected = create_network(TrainSettings(preset="svhn"), 3).eval()
    expected.load_state_dict(load_file(version.folder / "model.safetensors"))
    with torch.no_grad():
        probs = expected(classifier.preprocessing.finish(prepared)).softmax(dim=1)
    found = pl.read_parquet(corpus.folder / "pseudo_labels" / "*.parquet").sort("id")["confidence"].to_numpy()
    np.testing.assert_allclose(found, probs.amax(dim=1).numpy(), rtol=1e-4)


@pytest.mark.slow
def test_the_folder_says_what_to_import_and_timm_alone_refuses_it(trained):
    folder = trained[0].folder
    assert json.loads((folder / "config.json").read_text())["requires_import"] == "nst_train.small_efficientnet"
    assert "import nst_train.small_efficientnet  #" in (folder / "README.md").read_text()
    load = f"timm.create_model('local-dir:{folder}', pretrained=True)"
    alone = f"import timm\ntry:\n    {load}\nexcept RuntimeError as error:\n    print(error)\nimport nst_train.small_efficientnet\n{load}"
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=True)
    assert done.stdout == "Unknown model (tf_efficientnet_b0_32)\n"


def test_other_teachers_need_no_import(tiny_store):
    folder = tiny_store[0].open("tiny-teacher", "teacher").folder
    assert "requires_import" not in json.loads((folder / "config.json").read_text())
    assert "import nst_train" not in (folder / "README.md").read_text()

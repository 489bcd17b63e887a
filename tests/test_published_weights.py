"""Trainings that start from published weights: repository, commit, license and checksum are part of what they are known by."""

import json
import subprocess
import sys
from pathlib import Path

import hub
import pytest
import timm
import torch
from conftest import TINY, write_class_folders
from labels import write_teacher
from safetensors.torch import save

from nst_data.hub.licenses import read_front_matter
from nst_data.sources import open_source
from nst_data.store.files import hash_file
from nst_data.store.inputs import Input
from nst_data.store.manifest import TeacherRequest
from nst_data.store.store import Staging, Store
from nst_train.settings import TrainSettings
from nst_train.training.request import find_or_stage

SETTINGS = TINY | {"pretrained": True, "learning_rate": 1e-30, "epochs": 0.1, "ema_decay": 0.0}
CARD = b"---\nlicense: apache-2.0\nlibrary_name: timm\n---\n# weights\n"
SCRIPT = """
import json, sys
from nst_data import Store, open_source
from nst_train import RunSettings, TrainSettings, train

store, labeled, settings = Store(sys.argv[1]), open_source(sys.argv[2], labeled=True), json.loads(sys.argv[5])
def trained(model):
    version = train(store, "warm", labeled, TrainSettings(**settings | {"model": model}), run=RunSettings(workers=0))
    print(json.dumps(version.ref))
for model in ("test_resnet", "hf-hub:owner/net", "test_resnet", "hf-hub:owner/net@v1"):
    trained(model)
with open(sys.argv[3], "r+") as ref:  # the branch gets another commit
    ref.write(sys.argv[4])
trained("hf-hub:owner/net")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What each of five trainings gave: (references, the store, commits by name, bytes of timm's weights)."""
    top = tmp_path_factory.mktemp("published")
    place, kind = top / "hub", "models"
    torch.manual_seed(3)
    weights = save(timm.create_model("test_resnet").state_dict())
    folders = [Path(write_teacher(top / str(seed), ["x", "y"], seed).removeprefix("local-dir:")) for seed in (0, 1)]
    old, new = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    commits = {
        "timm": hub.commit(place, "timm/test_resnet.r160_in1k", {"model.safetensors": weights, "README.md": CARD}, kind),
        "old": hub.commit(place, "owner/net", old, kind),
        "new": hub.commit(place, "owner/net", new, kind),
    }
    hub.set_ref(place, "owner/net", "v1", commits["new"], kind)
    write_class_folders(top / "labeled", ["ant", "bee", "cat"], 4)
    with hub.serving(place) as (url, _):
        moving = place / "models/owner/net/.git/refs/heads/main"
        environment = hub.environment(url, top / "home") | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-c", SCRIPT, top / "store", top / "labeled", moving, commits["old"], json.dumps(SETTINGS)]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], Store(top / "store"), commits, weights


def initial_weights(store, ref):
    return store.open(ref).manifest.request.inputs.initial_weights


@pytest.mark.slow
def test_another_commit_is_another_training_and_the_same_one_is_found(trained):
    refs, store, commits, _ = trained
    assert refs == ["warm@gen-0", "warm@gen-1", "warm@gen-0", "warm@gen-2", "warm@gen-3"]
    entries = [initial_weights(store, ref) for ref in ("warm@gen-1", "warm@gen-2", "warm@gen-3")]
    assert [(entry.ref, entry.revision) for entry in entries] == [("owner/net", commits[name]) for name in ("new", "new", "old")]
    assert entries[0].digest == entries[1].digest != entries[2].digest  # the same weights by another name are another `model`


@pytest.mark.slow
def test_weights_of_timm_have_their_repository_checksum_and_license_in_lineage_and_card(trained, tmp_path):
    _, store, commits, weights = trained
    entry = initial_weights(store, "warm@gen-0")
    (tmp_path / "weights").write_bytes(weights)
    assert entry.digest == entry.weights_sha256 == hash_file(tmp_path / "weights").sha256
    assert (entry.ref, entry.revision, entry.license) == ("timm/test_resnet.r160_in1k", commits["timm"], "apache-2.0")
    metadata = read_front_matter((store.open("warm@gen-0").folder / "README.md").read_text())
    assert (metadata["license"], metadata["base_model"], metadata["base_model_relation"]) == ("apache-2.0", [entry.ref], "finetune")
    assert "license" not in read_front_matter((store.open("warm@gen-1").folder / "README.md").read_text())


def teacher_request(tmp_path, **weights):
    settings = TrainSettings(**TINY | {"model": "test_resnet", "pretrained": True}).for_request()
    write_class_folders(tmp_path / "labeled", ["ant", "bee"], 2)
    return TeacherRequest(settings=settings, inputs={"labeled": open_source(tmp_path / "labeled", labeled=True).lineage, **weights})


def test_a_training_begun_before_published_weights_were_recorded_goes_on(tmp_path):
    store, before = Store(tmp_path / "store"), teacher_request(tmp_path)
    begun = store.find_or_stage(before, "warm", first_generation=0)
    assert isinstance(begun, Staging)
    weights = Input(ref="timm/test_resnet.r160_in1k", digest="0" * 64, revision="1" * 40)
    assert find_or_stage(store, teacher_request(tmp_path, initial_weights=weights), "warm", None).folder == begun.folder
    of_folder = Input(ref="local-dir:net", digest="0" * 64)  # those always were
    assert find_or_stage(store, teacher_request(tmp_path, initial_weights=of_folder), "warm", None).ref == "warm@gen-1"

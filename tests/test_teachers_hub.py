"""Teachers of the Hub, from a server on this machine; in a process of its own, as the Hub's clients read their address once."""

import json
import subprocess
import sys
from pathlib import Path

import hub
import pytest
import timm
import torch
from conftest import write_pool
from labels import write_teacher
from safetensors.torch import save_file
from test_teachers import NAMES, write_transformer
from wording import mentions

from nst_data.store.store import Store
from nst_train.classifiers.teachers import load_classifier

pytestmark = pytest.mark.slow
SCRIPT = """
import json, sys
from labels import RUN, SETTINGS, table_rows
from nst_data.errors import NstError
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.labeling.label import extend, label

store, pool, names, moving = Store(sys.argv[1]), open_source(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
for number, name in enumerate(names):
    try:
        version = label(store, f"bugs-{number}", name, pool, SETTINGS, run=RUN)
        entry = version.manifest.request.inputs.teacher.model_dump()
        probs = [row["probs"][:3] for row in table_rows(version)]
        print(json.dumps({"entry": entry, "probs": probs, "classes": len(version.manifest.class_names)}))
    except NstError as error:
        print(json.dumps({"error": str(error)}))
version = store.open("bugs-0")
with open(moving, "r+") as ref:  # the branch gets another commit
    ref.write(json.loads(sys.argv[5]))
grown = extend(store, version, open_source(sys.argv[6]), run=RUN)
print(json.dumps({"entry": grown.manifest.request.inputs.teacher.model_dump(), "rows": len(table_rows(grown))}))
"""


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What labeling with each name gave, and what is on the Hub: (answers by name, commits by name, folders by name)."""
    top = tmp_path_factory.mktemp("teachers-hub")
    folders = {name: Path(write_teacher(top / name, NAMES, seed).removeprefix("local-dir:")) for seed, name in enumerate(("old", "new"))}
    folders["vit"] = Path(write_transformer(top / "vit").removeprefix("local-dir:"))
    torch.manual_seed(3)
    save_file(timm.create_model("test_resnet").state_dict(), top / "published.safetensors")
    place, kind = top / "hub", "models"
    commits = {
        "old": hub.commit(place, "owner/net", files_of(folders["old"]), kind),
        "new": hub.commit(place, "owner/net", files_of(folders["new"]), kind),
        "vit": hub.commit(place, "owner/vit", files_of(folders["vit"]), kind),
        "later": hub.commit(place, "owner/vit", files_of(folders["old"]), kind),
        "timm": hub.commit(place, "timm/test_resnet.r160_in1k", {"model.safetensors": (top / "published.safetensors").read_bytes()}, kind),
    }
    hub.set_ref(place, "owner/net", "v1", commits["old"], kind)
    hub.set_ref(place, "owner/vit", "release/1", commits["vit"], kind)
    hub.commit(place, "owner/pickles", {"config.json": b"{}", "pytorch_model.bin": b"pickle"}, kind)
    hub.commit(place, "owner/gated", files_of(folders["old"]), kind)
    (place / "models/owner/gated/gated").touch()
    hub.commit(place, "owner/private", files_of(folders["old"]), kind)
    (place / "models/owner/private/private").touch()
    names = [
        *("hf-hub:owner/net", "hf-hub:owner/net@v1", f"hf-hub:owner/net@{commits['old']}", "owner/vit@release/1", "owner/vit"),
        *("test_resnet", "owner/pickles", "hf-hub:owner/gated", "owner/private", "owner/nothing", "owner/net@v9"),
    ]
    pool, grown = write_pool(top / "pool", 2, 2), write_pool(top / "grown", 3, 2)
    with hub.serving(place) as (url, _):
        moving = place / "models/owner/net/.git/refs/heads/main"
        arguments = [top / "store", pool, json.dumps(names), moving, json.dumps(commits["old"]), grown]
        environment = hub.environment(url, top / "home") | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip([*names, "extended"], found, strict=True)), commits, folders


@pytest.mark.parametrize(
    ("name", "commit"),
    [
        ("hf-hub:owner/net", "new"),
        ("hf-hub:owner/net@v1", "old"),
        ("owner/vit@release/1", "vit"),
        ("owner/vit", "later"),
        ("test_resnet", "timm"),
    ],
)
def test_the_lineage_pins_the_commit_that_a_name_meant(answers, name, commit):
    found, commits, _ = answers
    assert found[name]["entry"]["ref"] == name
    assert found[name]["entry"]["revision"] == commits[commit]


@pytest.mark.parametrize(("name", "folder"), [("hf-hub:owner/net", "new"), ("hf-hub:owner/net@v1", "old"), ("owner/vit@release/1", "vit")])
def test_a_teacher_of_the_hub_is_the_teacher_of_its_folder(answers, tmp_path, name, folder):
    found, _, folders = answers
    _, entry = load_classifier(f"local-dir:{folders[folder]}", Store(tmp_path))
    assert found[name]["entry"]["digest"] == entry.digest


def test_a_commit_may_stand_for_a_revision(answers):
    found, commits, _ = answers
    by_commit, by_tag, newest = (found[f"hf-hub:owner/net{at}"]["probs"] for at in (f"@{commits['old']}", "@v1", ""))
    assert by_commit == by_tag != newest


def test_a_timm_name_has_the_weights_that_timm_publishes(answers):
    found, _, _ = answers
    assert found["test_resnet"]["classes"] == 1000


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("owner/pickles", "config.json and … safetensors …, found config.json; pickle files …"),
        ("hf-hub:owner/gated", "`hf auth login`"),
        ("owner/private", "`hf auth login`"),
        ("owner/nothing", "no such model on the Hub"),
        ("owner/net@v9", "has no such revision"),
    ],
)
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(answers, name, says):
    error = answers[0][name]["error"]
    assert error.startswith(f"{name}: ")
    assert mentions(error, says)
    assert "\n" not in error


def test_a_grown_pool_is_labeled_by_the_commit_that_labeled_it_before(answers):
    found, commits, _ = answers
    assert found["extended"]["entry"] == found["hf-hub:owner/net"]["entry"]
    assert found["extended"]["entry"]["revision"] == commits["new"]
    assert found["extended"]["rows"] == 6

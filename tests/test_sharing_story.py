"""Two users and one Hub: what the one publishes, the other trains on, labels with and publishes anew."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml
from hub import ALICE, BOB, environment, read_files, resolve_commit, serving
from hub_commands import nst
from wording import mentions

from nst_data.digits import write_digits
from nst_data.store.manifest import parse_manifest
from nst_data.store.store import Store

DATA, TEACHER = "alice/digits-pseudo", "alice/digits-teacher"
LOOK = """
import json, sys
import timm, torch
from datasets import load_dataset
from transformers import AutoModelForImageClassification

rows = load_dataset(sys.argv[1], "balanced", split="train", revision="gen-1.1")
model = timm.create_model(f"hf-hub:{sys.argv[2]}@gen-1", pretrained=True).eval()
other = AutoModelForImageClassification.from_pretrained(sys.argv[2], revision="gen-1").eval()
image = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
with torch.no_grad():
    same = torch.allclose(model(image), other(pixel_values=image).logits, atol=1e-5)
rows.to_parquet("rows.parquet")
print(json.dumps({"features": rows.features["label"].names, "same_logits": same}))
"""


@pytest.mark.slow
def test_one_publishes_and_another_trains_on_it_labels_with_it_and_publishes_the_result(tmp_path):
    top, alice, bob = (tmp_path / name for name in ("hub", "alice", "bob"))
    for home in (alice, bob):
        home.mkdir()
    write_digits(alice / "digits", seed=0)
    recipe = yaml.safe_load((Path(__file__).parent.parent / "examples" / "digits.yaml").read_text())
    short = {"control": False, "generations": [one | {"epochs": 20} for one in recipe["generations"]]}  # it is about the flow
    recipe |= short | {"push_to": {"corpus": DATA, "teacher": TEACHER, "public": True}}
    (alice / "digits.yaml").write_text(yaml.safe_dump(recipe))
    with serving(top) as (url, answers):
        (ran,) = nst(url, alice, ["run", alice / "digits.yaml"], token=ALICE)
        assert ran.status == 0, ran.err
        published = {ref: Store(alice / "store").open(ref).manifest for ref in ("digits@gen-1", "digits@gen-1.1", "digits@gen-2.1")}
        assert all(resolve_commit(top, DATA, manifest.version) for manifest in published.values())
        assert all(resolve_commit(top, TEACHER, f"gen-{number}", "models") for number in range(3))
        before = len(answers)
        (again,) = nst(url, alice, ["run", alice / "digits.yaml"], token=ALICE)
        assert again.status == 0, again.err
        assert answers[before:] == [], "what this store knows to be there is not asked for again"

        copy = shutil.copytree(alice / "digits" / "pool", bob / "images" / "somewhere" / "else")
        for number, image in enumerate(sorted(copy.iterdir())):
            image.rename(image.with_name(f"{number:05d}.png"))
        shutil.copytree(alice / "digits" / "labeled", bob / "labeled")
        tiny = ["--model", "test_resnet", "--image-size", 32, "--batch-size", 20, "--epochs", 4, "--ratio", 9, "--optimizer", "adamw"]
        pulled, trained, labeled, balanced, pushed, pushed_edition, tree, remote = nst(
            url,
            bob,
            ["pull", f"{DATA}@gen-1.1", "--json"],
            ["train", "--labeled", "labeled", "--pseudo", f"{DATA}@gen-1.1", "--pool", "images", "--name", "mine", *tiny, "--json"],
            ["label", "images", "--teacher", f"hf-hub:{TEACHER}@gen-1", "--corpus", "own", "--json"],
            ["balance", "own@gen-1", "--per-class", 100, "--json"],
            ["push", "own@gen-1", "bob/own-pseudo", "--json"],
            ["push", "own@gen-1.1", "bob/own-pseudo", "--json"],
            ["lineage", "bob/own-pseudo@gen-1.1", "--json"],
            ["list", "--remote", DATA, "--json"],
            token=BOB,
        )
        everything = (pulled, trained, labeled, balanced, pushed, pushed_edition, tree, remote)
        assert [one.status for one in everything] == [0] * 8, [one.err[-300:] for one in everything if one.status]
        seen = subprocess.run(
            [sys.executable, "-c", LOOK, DATA, TEACHER], env=environment(url, bob / "hf"), cwd=bob, capture_output=True, text=True
        )
        assert seen.returncode == 0, seen.stderr[-2000:]
    assert json.loads(seen.stdout.splitlines()[-1]) == {"features": [str(digit) for digit in range(10)], "same_logits": True}
    own = pl.read_parquet(alice / "store" / "corpora" / "digits" / "gen-1.1" / "balanced" / "*.parquet")
    assert pl.read_parquet(bob / "rows.parquet").equals(own)
    there = parse_manifest(read_files(top, DATA, "gen-1.1")["nst.json"].decode(), "there")
    here = Store(bob / "store").open("digits@gen-1.1").manifest
    assert here.files == there.files == published["digits@gen-1.1"].files
    assert here.digest == there.digest == published["digits@gen-1.1"].digest == pulled.value["digest"]
    assert mentions(trained.err, "different keys than digits@gen-1.1; its 1,197 images …")

    student = Store(bob / "store").open("mine").manifest.request.inputs.edition
    assert (student.repo, student.revision) == (f"{DATA}@gen-1.1", resolve_commit(top, DATA, "gen-1.1"))
    teacher = tree.value["inputs"][0]["inputs"][-1]
    assert (tree.value["place"], tree.value["inputs"][0]["place"]) == ("bob/own-pseudo@gen-1.1", "bob/own-pseudo@gen-1")
    assert (teacher["ref"], teacher["place"]) == ("digits-teacher@gen-1", f"{TEACHER}@{resolve_commit(top, TEACHER, 'gen-1', 'models')}")
    found = [*walk(tree.value)]
    assert {f"{DATA}@gen-1.1", f"{DATA}@gen-1", f"{TEACHER}@gen-0"} <= {node.get("place") for node in found}
    assert not [node for node in found if "note" in node]
    assert {"gen-1", "gen-1.1", "gen-2", "gen-2.1"} == {one["tag"] for one in remote.value["versions"]}


def walk(node):
    yield node
    for one in node.get("inputs", []):
        yield from walk(one)

"""The command that a card shows makes the version again: run in its store, it finds that all is there already."""

import re
import shlex
import shutil

import pytest
import yaml
from conftest import TINY
from nst_cli.main import app
from sealed_labels import COUNTS
from typer.testing import CliRunner

from nst_data.cards.cards import Published, dataset_card
from nst_data.cards.described import Described
from nst_data.cards.own_text import BEGIN
from nst_data.cards.reproduction import MOMENTUM, WITHOUT_MOMENTUM, reproduction_command
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sharing.public_form import published_manifest
from nst_data.sources import open_source
from nst_data.store.counts import GenerationCounts, TeacherCounts
from nst_data.store.inputs import Input
from nst_data.store.manifest import GenerationRequest, TeacherRequest, create_manifest
from nst_data.store.store import Store
from nst_train.labeling.label import extend, label, label_like
from nst_train.networks.models import takes_momentum
from nst_train.settings import LabelRunSettings, LabelSettings, RunSettings, TrainSettings
from nst_train.training.train import train

RUN, READ = RunSettings(workers=0, decode_threads=1), LabelRunSettings(decode_threads=1)


@pytest.fixture(scope="module")
def store(tiny_store, tmp_path_factory):
    """The tiny store's versions, and one of each other way to make one."""
    tiny, labeled, pool = tiny_store
    folder = tmp_path_factory.mktemp("more")
    store = Store(shutil.copytree(tiny.root, folder / "store"))
    held_out, images = open_source(str(labeled), labeled=True), open_source(str(pool))
    generation, edition = store.open("tiny@gen-1"), store.open("tiny@gen-1.1")
    thresholds = {"ant": 0.01, "bee": 0.02}
    balance(
        store, generation, BalanceSettings(class_min_confidence=thresholds, exclude_class=["bee", "cat"]), exclude=[held_out], pool=images
    )
    balance(store, generation, BalanceSettings(confidence_range=(0.0, 1.0), per_class="auto", max_copies=3, embed_images=True, shard_mb=1))
    balance(store, generation, BalanceSettings.from_request(BalanceSettings().for_request() | {"method": "official"}))  # of an earlier nst
    student = TINY | {
        "ratio": 2,
        "loss": "sum",
        "pseudo_temperature": 0.5,
        "pseudo_noise": {"operations": 0},
        "channels_last": False,
        **{"freeze": 0.3, "freeze_by": "layers", "weight_decay_on": "weights"},  # which an earlier nst did without a word for it
        "start": "tiny-teacher@gen-0",
    }
    train(store, "student", held_out, TrainSettings(**student), pseudo=edition, pool=images, run=RUN, validation=held_out)
    teachers = ["tiny-teacher@gen-0", "student@gen-0"]
    label(store, "both", teachers, images, LabelSettings(batch_size=4, limit=9, top_k=2), run=READ)
    label(store, "calibrated", teachers[1], images, LabelSettings(batch_size=4), run=READ, calibration=_others(labeled, folder))
    label(
        store, "noised", teachers[0], images, LabelSettings(batch_size=4, noise=True, noise_transform="evaluation", seed=3), run=READ
    )  # as before
    label_like(store, edition, teachers[1], images, LabelSettings(batch_size=4, temperature=2), run=READ)
    probe = TrainSettings(model="test_resnet", image_size=16, start="tiny-teacher@gen-0", probe=True)
    train(store, "probed", open_source(str(labeled), labeled=True), probe, run=RUN)
    grown = shutil.copytree(pool, folder / "a grown pool")
    shutil.copy(next(labeled.glob("*/*.png")), grown / "new's.png")
    extend(store, generation, open_source(str(grown)), run=READ)
    return store


def shell_words(text):
    """The words that a shell makes of a command over several lines."""
    return shlex.split(text.replace("\\\n", ""))


def _others(labeled, folder):
    """Labeled images that no teacher was trained on."""
    copy = shutil.copytree(labeled, folder / "calibration")
    next(copy.glob("*/*.png")).unlink()
    return open_source(str(copy), labeled=True)


REFS = ["tiny-teacher@gen-0", "student@gen-0", "probed@gen-0", "tiny@gen-1", "both@gen-1", "calibrated@gen-1", "noised@gen-1", "tiny@gen-3"]
REFS += ["tiny@gen-1.1", "tiny@gen-1.2", "tiny@gen-1.3", "tiny@gen-1.4", "tiny@gen-2.1"]


def test_every_version_is_tried(store):
    assert {version.ref for version in store.versions()} == set(REFS)


@pytest.mark.parametrize("ref", REFS)
def test_the_command_of_a_card_makes_this_very_version(store, ref, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = (store.open(ref).folder / "README.md").read_text()
    if thresholds := re.search(r"with this `thresholds\.yaml`:\n\n```yaml\n(.*?)```", card, re.DOTALL):
        (tmp_path / "thresholds.yaml").write_text(thresholds[1])
    shown = card.partition("## Made from")[2].partition("```\n")[2].partition("```")[0]
    before = [version.ref for version in store.versions()]
    name, *words = shell_words(shown)
    result = CliRunner().invoke(app, [*words, "--store", str(store.root)], catch_exceptions=False)
    assert (name, result.exit_code) == ("nst", 0), result.output
    assert f"{ref}: " in result.stdout
    assert ([version.ref for version in store.versions()], store.unfinished()) == (before, [])


@pytest.mark.parametrize(("optimizer", "is_there"), [("adamw", False), ("sgd", True)])
def test_momentum_is_in_a_command_where_the_optimizer_takes_it(tmp_path, optimizer, is_there):
    settings = TrainSettings(model="test_resnet", optimizer=optimizer).for_request()
    request = TeacherRequest(settings=settings, inputs={"labeled": Input(ref="labeled", digest="l")})
    counts = TeacherCounts(parameters=11, steps=7, labeled=30, entries=60)
    manifest = create_manifest("net", "gen-0", request, {}, ["ant", "bee"], counts, 1.0, {})
    assert ("--momentum 0.9" in reproduction_command(Described(tmp_path, tmp_path / "net" / "gen-0", manifest))) == is_there


def test_optimizers_that_a_command_gives_no_momentum_take_none():
    assert TrainSettings(model="x").momentum == MOMENTUM
    assert [name for name in sorted(WITHOUT_MOMENTUM) if takes_momentum(name)] == []


def published(store, ref, **links):
    return reproduction_command(Described.from_version(store.open(ref)), Published("alice/x", "gen-1", links))


def test_in_public_no_path_of_this_machine_is_shown(store):
    for ref in REFS:
        shown = published(store, ref)
        assert "/" not in shown.replace("local-dir:", "")
    assert published(store, "tiny-teacher@gen-0").startswith("nst train --labeled LABELED --name tiny-teacher ")
    assert " --start-from tiny-teacher@gen-0" in published(store, "student@gen-0")
    assert published(store, "both@gen-1").startswith("nst label POOL --teacher tiny-teacher@gen-0 --teacher student@gen-0 --corpus both ")
    assert "--exclude EXCLUDE_1 --min-confidence" in published(store, "tiny@gen-1.2").replace(" \\\n    ", " ")


def test_the_card_that_is_pushed_has_the_words_in_capitals_though_its_manifest_has_no_paths_any_more(store):
    for ref in REFS:
        version = store.open(ref)
        described = Described(version.folder, version.folder, published_manifest(version, store))
        assert reproduction_command(described, Published("alice/x", "gen-1")) == published(store, ref)


def test_what_is_on_the_hub_is_pulled_or_named_there(store):
    assert published(store, "tiny@gen-1.1", generation="alice/tiny-pseudo@gen-1").splitlines()[:2] == [
        "nst pull alice/tiny-pseudo@gen-1 --as tiny",
        published(store, "tiny@gen-1.1").splitlines()[0],
    ]
    shown = published(store, "both@gen-1", teacher_1="alice/t@gen-0", pool="alice/photos@abc")
    assert shown.startswith("nst label alice/photos@abc --teacher hf-hub:alice/t@gen-0 --teacher student@gen-0 ")


HOSTILE = ["two\nlines", "a\n```\n<script>", "\x1b[31m", "$(reboot)", "`reboot`", "'; reboot", "--option", BEGIN, f"\n{BEGIN}\n"]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leaves_its_place_in_a_command(tmp_path, name):
    inputs = {"pool": Input(ref=f"/data/{name}", digest="d"), "teacher": Input(ref=name, digest="t")}
    request = GenerationRequest(settings={"x": name, "y": [name]}, inputs=inputs)
    folder = tmp_path / "corpora" / "flowers" / "gen-1"
    manifest = create_manifest("flowers", "gen-1", request, {}, ["a"], GenerationCounts(**COUNTS["generation"]), 0, {})
    shown = reproduction_command(Described(folder, folder, manifest))
    words = shell_words(shown)
    plain = name if name.isprintable() and name != BEGIN else "NAME"
    assert words[:3] == ["nst", "label", "NAME" if plain == "NAME" else f"/data/{name}"]
    assert words[3:] == ["--teacher", plain, "--corpus", "flowers", "--x", plain, "--y", plain]
    assert all(not line.lstrip(" ").startswith("```") for line in shown.splitlines())


@pytest.mark.parametrize("name", [*HOSTILE, "```", "a: b", "no"])
def test_thresholds_of_hostile_classes_are_yaml_in_their_block(store, name):
    version = store.open("tiny@gen-1.2")
    version.manifest.request.settings["class_min_confidence"] = {name: 0.5}
    block = dataset_card(version).partition("```yaml\n")[2].partition("\n```")[0]
    assert yaml.safe_load(block) == {name: 0.5}

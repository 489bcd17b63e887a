"""What a manifest of the Hub names is shown, and opened only where the user names it too: paths, addresses, repositories, teachers."""

import json
import shutil
import sys

import pytest
from conftest import TINY, write_class_folders, write_pool
from nst_cli.main import app
from typer.testing import CliRunner
from wording import mentions

from nst_data.errors import NstError
from nst_data.hub.repository import Repository
from nst_data.sharing.lineage import lineage
from nst_data.sharing.public_form import published_manifest
from nst_data.sharing.remote_manifest import check_remote_manifest
from nst_data.store.inputs import Input
from nst_data.store.manifest import parse_manifest, read_manifest
from nst_data.store.places import Place, may_be_pulled, read_places, record_place
from nst_data.store.store import Store

NETWORK = [word for name, value in TINY.items() if name != "noise" for word in (f"--{name.replace('_', '-')}", str(value))]
PLACE = Place("eve/bugs", "gen-1", "0" * 40, "1" * 64)


@pytest.fixture
def store(tiny_store, tmp_path):
    """A store of the test's own, whose versions name the folders that they were made from."""
    return Store(shutil.copytree(tiny_store[0].root, tmp_path / "store"))


def pulled(store, ref, **changed):
    """Make of a version what a pull would have brought: `changed` replaces what its inputs are called."""
    version = store.open(ref)
    request = version.manifest.request
    inputs = request.inputs.map_entries(lambda role, entry: entry.model_copy(update={"ref": changed.get(role, entry.ref)}))
    strange = version.manifest.model_copy(update={"request": request.model_copy(update={"inputs": inputs})}).marked_as_pulled()
    (version.folder / "nst.json").write_text(strange.model_dump_json())
    return store.open(ref)


def test_lineage_of_a_version_in_the_store_asks_no_repository_that_a_downloaded_manifest_names(store, monkeypatch):
    asked = []

    def manifest_at(repository, revision):
        asked.append((repository.id, revision))
        return store.open("tiny@gen-1").manifest.model_copy(update={"digest": "x"})

    monkeypatch.setattr("nst_data.sharing.lineage.manifest_at", manifest_at)
    named = {"repo": "eve/bugs@gen-0", "revision": "0" * 40, "digest": "2" * 64}

    def link(ref, **changed):
        version = store.open(ref)
        request = version.manifest.request
        inputs = request.inputs.map_entries(lambda role, entry: entry.model_copy(update=named if role == changed["role"] else {}))
        strange = version.manifest.model_copy(update={"request": request.model_copy(update={"inputs": inputs})})
        strange = strange.marked_as_pulled() if changed["is_pulled"] else strange
        (version.folder / "nst.json").write_text(strange.model_dump_json())

    link("tiny@gen-1", role="teacher", is_pulled=True)
    (teacher,) = [one for one in lineage(store, "tiny@gen-1").inputs if one.role == "teacher"]
    assert (asked, teacher.note) == ([], "named by a downloaded manifest, not followed: `lineage(store, 'eve/bugs@gen-0')`")
    link("tiny@gen-1.1", role="generation", is_pulled=False)  # what the user made names it: followed, but no further
    (generation,) = [one for one in lineage(store, "tiny@gen-1.1").inputs if one.role == "generation"]
    assert asked == [("eve/bugs", "0" * 40)]
    assert "not followed" in next(one.note for one in generation.inputs if one.role == "teacher")


def test_an_anonymous_edition_links_to_no_labels_but_anonymous_ones(store):
    generation, edition = store.open("tiny@gen-1"), store.open("tiny@gen-1.1")

    def place(**wanted):
        entry = published_manifest(edition, store, **wanted).request.inputs.generation
        return entry.repo, entry.revision

    record_place(generation.folder, Place("me/named", "gen-1", "1" * 40, "d", pulled=False))
    assert (place(), place(anonymous_repo="me/hidden")) == (("me/named@gen-1", "1" * 40), (None, None))
    for name in ("hidden", "other"):
        record_place(generation.folder, Place(f"me/{name}", "gen-1", "2" * 40, "e", anonymous=True, pulled=False))
    assert place(anonymous_repo="me/hidden") == ("me/hidden@gen-1", "2" * 40)
    assert place() == ("me/named@gen-1", "1" * 40)


def run(store, *arguments):
    return CliRunner().invoke(app, [*map(str, arguments), "--store", str(store.root)], catch_exceptions=False)


def commands(labeled):
    """Each command that looks for the images of a version by itself."""
    train = ["train", "--labeled", labeled, "--name", "student", *NETWORK, "--workers", 0, "--pseudo"]
    return {
        "train": [*train, "tiny@gen-1.1"],
        "balance for near-duplicates": ["balance", "tiny@gen-1", "--exclude", labeled, "--min-confidence", 0],
        "balance with images": ["balance", "tiny@gen-1", "--embed-images", "--min-confidence", 0],
        "label like": ["label", "--like", "tiny@gen-1.1", "--teacher", "tiny-teacher"],
        "label more": ["label", "--extend", "tiny@gen-1"],
    }


@pytest.mark.parametrize("kind", commands(""))
def test_a_pool_that_a_pulled_version_names_is_not_opened(store, tiny_store, tmp_path, kind):
    _, _, pool = tiny_store
    for ref in ("tiny@gen-1", "tiny@gen-1.1"):
        pulled(store, ref, pool=str(pool))
    labeled = write_class_folders(tmp_path / "copies", ["ant", "bee", "cat"], 3, first=100)  # of images of the pool
    for number, image in enumerate(sorted(labeled.rglob("*.png"))):
        image.write_bytes(image.read_bytes() + b"\0" * (number % 2))  # near-duplicates, not the same bytes
    done = run(store, *commands(labeled)[kind])
    assert done.exit_code == 2, done.output
    assert mentions(done.stderr, f"its pool '{pool}' … downloaded manifest, … not open")
    assert "SOURCE" in done.stderr if kind.startswith("label") else "current location with --pool" in done.stderr
    assert store.unfinished() == []


@pytest.mark.parametrize(
    "strange",
    [
        "../../photos",
        "~/photos",
        "//server/share",
        r"\\server\share",
        "file:///etc",
        "hf://datasets/eve/pool",
        "hf://datasets/eve/pool/data",
        "s3://eve/pool",
        "http://eve/pool.tar",
        "/etc/*.txt",
        "list.txt",
        "eve/pool@main:default/train",
    ],
)
def test_no_form_of_address_is_tried(store, tiny_store, strange):
    pulled(store, "tiny@gen-1", pool=strange)
    done = run(store, "balance", "tiny@gen-1", "--embed-images")
    assert done.exit_code == 2
    assert mentions(done.stderr, f"its pool {strange!r} … downloaded manifest, … not open")


@pytest.mark.slow
def test_what_is_drawn_from_a_pulled_version_does_not_open_its_pool_either_until_the_user_names_it(store, tiny_store):
    _, labeled, pool = tiny_store
    pulled(store, "tiny@gen-1", pool=str(pool))
    train = commands(labeled)["train"][:-1]
    assert run(store, "balance", "tiny@gen-1", "--min-confidence", 0, "--per-class", 7).exit_code == 0
    assert "comes from a downloaded manifest" in run(store, *train, "tiny@gen-1.2").stderr
    named = run(store, "balance", "tiny@gen-1", "--exclude", labeled, "--pool", pool, "--min-confidence", 0, "--per-class", 7)
    assert named.exit_code == 0, named.stderr
    own = store.open("tiny@gen-1.3").manifest.request.inputs
    assert (own.pool.ref, own.pool.pulled, own.generation.pulled) == (str(pool), False, False)
    assert run(store, *train, "tiny@gen-1.3").exit_code == 0


@pytest.mark.slow
def test_a_training_on_a_pulled_edition_knows_the_pool_that_the_user_named_and_no_other(store, tiny_store, tmp_path):
    _, labeled, pool = tiny_store
    pulled(store, "tiny@gen-1.1", pool="/strange")
    done = run(store, *commands(labeled)["train"], "--pool", pool)
    assert done.exit_code == 0, done.stderr
    assert store.open("student").manifest.request.inputs.pool.ref == str(pool)
    other = write_pool(tmp_path / "more", 3, 6)  # the images of the pool and others: not the pool that was labeled
    done = run(store, *commands(labeled)["train"], "--epochs", 3, "--pool", other)
    assert done.exit_code == 0, done.stderr
    entry = store.open("student@gen-1").manifest.request.inputs.pool
    assert (entry.ref, entry.pulled) == ("/strange", True)


@pytest.mark.parametrize("teacher", ["local-dir:{store}/teachers/tiny-teacher/gen-0", "hf-hub:eve/model", "eve/model", "resnet50"])
def test_a_teacher_that_a_pulled_generation_names_is_not_opened(store, tiny_store, teacher):
    teacher = teacher.format(store=store.root)
    pulled(store, "tiny@gen-1", teacher=teacher)
    done = run(store, "label", tiny_store[2], "--extend", "tiny@gen-1")
    assert done.exit_code == 2
    assert mentions(done.stderr, f"its teacher {teacher!r} … downloaded manifest … `nst pull` it")


def test_a_pulled_generation_is_extended_by_its_teacher_in_the_store(store, tiny_store, tmp_path):
    pulled(store, "tiny@gen-1")
    grown = write_pool(shutil.copytree(tiny_store[2], tmp_path / "grown"), 3, 2, first=200)
    done = run(store, "label", grown, "--extend", "tiny@gen-1")
    assert done.exit_code == 0, done.stderr
    assert store.open("tiny@gen-2").manifest.request.inputs.pool.ref == str(grown)


def test_a_pushed_version_keeps_its_pool_and_one_of_which_nobody_knows_whether_it_was_pulled_does_not(store, tiny_store):
    labeled = tiny_store[1]
    folder = store.open("tiny@gen-1.1").folder
    record_place(folder, Place(**{**vars(PLACE), "pulled": False}))
    assert run(store, *commands(labeled)["train"]).exit_code == 0
    (folder / "hub.json").write_text(json.dumps([{name: value for name, value in vars(PLACE).items() if name != "pulled"}]))
    assert "comes from a downloaded manifest" in run(store, *commands(labeled)["train"], "--epochs", 3).stderr
    (folder / "hub.json").write_text("[")
    assert may_be_pulled(folder)


def test_a_place_that_was_known_stays_as_it_was_whether_the_version_came_from_there(tmp_path):
    for first, later in ((True, False), (None, False), (False, True)):
        folder = tmp_path / str(first)
        folder.mkdir()
        record_place(folder, Place(**{**vars(PLACE), "pulled": first}))
        record_place(folder, Place(**{**vars(PLACE), "pulled": later}))
        assert [one.pulled for one in read_places(folder)] == [first]


def test_the_mark_changes_no_digest_and_is_not_published(store):
    before = store.open("tiny@gen-1").manifest
    version = pulled(store, "tiny@gen-1")
    assert (version.verify(), version.manifest.digest, version.manifest.request.digest) == ([], before.digest, before.request.digest)
    assert "pulled" in (version.folder / "nst.json").read_text()
    assert "pulled" not in published_manifest(version, store).model_dump_json()
    assert "pulled" not in Input(ref="x", digest="y").model_dump_json(), "manifests that an earlier nst wrote stay as they are"
    assert read_manifest(store.open("tiny@gen-1.1").folder).request.inputs.generation.pulled is False


@pytest.mark.parametrize("strange", ["../../../tmp@gen-1", "**@gen-1", "[a-z]*@gen-1", "@gen-1"])
def test_a_name_that_none_can_have_is_looked_for_nowhere(store, strange):
    version = pulled(store, "tiny@gen-1.1", generation=strange)
    assert store.versions(strange.partition("@")[0]) == []
    assert run(store, "show", version.ref).exit_code == 0
    assert lineage(store, version.ref).inputs


@pytest.mark.parametrize("file", ["adapter_config.json", "tokenizer.json", "modeling.txt", "data/model.safetensors", "pytorch_model.bin"])
def test_a_teacher_of_the_hub_brings_its_network_and_nothing_that_names_another(store, file):
    manifest = store.open("tiny-teacher").manifest
    repository = Repository("eve/model", "model")
    check_remote_manifest(manifest, repository)
    with pytest.raises(NstError, match=rf"eve/model:.*file name '{file}'.*nothing was kept"):
        check_remote_manifest(manifest.model_copy(update={"files": manifest.files | {file: manifest.files["config.json"]}}), repository)


def rewritten(store, ref, settings=None, counts=None, without=()):
    """A version whose manifest says something else of itself."""
    version = store.open(ref)
    content = json.loads((version.folder / "nst.json").read_text())
    content["request"]["settings"] |= settings or {}
    content["counts"] |= counts or {}
    for part, name in without:
        (content["request"]["settings"] if part == "settings" else content["counts"]).pop(name)
    (version.folder / "nst.json").write_text(json.dumps(content))


@pytest.mark.parametrize("settings", [{"later": 1}, {"batch_size": "many"}])
def test_settings_of_a_manifest_that_nst_does_not_know_are_one_line(store, tiny_store, settings):
    rewritten(store, "tiny@gen-1", settings)
    done = run(store, "label", tiny_store[2], "--extend", "tiny@gen-1")
    assert done.exit_code == 2
    (name,) = settings
    assert mentions(done.stderr, f"--extend tiny@gen-1: … settings … not support ({name}: ")
    assert "label the whole pool, without --extend" in done.stderr


def test_counts_and_noise_that_a_manifest_lacks_are_one_line(store, tiny_store):
    rewritten(store, "tiny@gen-1", without=[("counts", "teacher_parameters")])
    done = run(store, "balance", "tiny@gen-1", "--min-confidence", 0, "--per-class", 7)
    assert (done.exit_code, done.stderr.count("gen-1/nst.json: counts.teacher_parameters: Field required; ")) == (1, 1)
    assert store.unfinished() == []
    rewritten(store, "tiny-teacher@gen-0", without=[("settings", "noise")])
    done = run(store, "label", tiny_store[2], "--teacher", "tiny-teacher", "--corpus", "noised", "--noise")
    assert done.exit_code == 1
    assert mentions(done.stderr, "tiny-teacher@gen-0: … noise of its training; remove --noise")


@pytest.mark.parametrize(
    "counts",
    [
        {"dropped": 3},
        {"per_class": {"ant": "many"}},
        {"per_class": {"ant": {"unique": "x"}}},
        {"unique": -1},
        {"unique": True},
        {"unique": None},
        {"copies": 2**63},
        {"copies": 1.0},
        {"near_duplicates": []},
        {"classes_without_images": [5]},
        {"shards": {"images": "many", "entries": []}},
    ],
)
def test_counts_that_are_none_are_refused_in_a_line_where_the_manifest_is_read(store, counts):
    content = json.loads((store.open("tiny@gen-1.1").folder / "nst.json").read_text())
    (name,) = counts
    with pytest.raises(NstError, match=rf"^x: counts\.{name}.*; the manifest.*damaged$"):
        parse_manifest(json.dumps(content | {"counts": content["counts"] | counts}), "x")


def test_a_manifest_is_written_as_it_was_read_with_what_a_later_nst_added(store):
    for version in store.versions():
        content = json.loads((version.folder / "nst.json").read_text())
        content["counts"] = {"later": {"a": [1, None]}, **content["counts"], "model_dump": "x"}
        content["request"]["inputs"] = {"by_role": Input(ref="a", digest="b").model_dump(), **content["request"]["inputs"]}
        text = json.dumps(content)
        manifest = parse_manifest(text, "x")
        assert json.dumps(json.loads(manifest.model_dump_json())) == text
        assert manifest.request.inputs.by_role.keys() == content["request"]["inputs"].keys()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema_version": 1, "x": ' + "[" * 100_000])
def test_a_manifest_that_is_nested_too_deeply_is_one_line(text):
    with pytest.raises(NstError, match=r"^x: expected a manifest, found unreadable JSON"):
        parse_manifest(text, "x")


@pytest.mark.parametrize(("words", "missing"), [(["tiny@gen-1"], "OWNER/NAME"), (["me/tiny"], "REF"), ([], "OWNER/NAME")])
def test_a_push_says_which_of_its_words_is_missing(store, words, missing):
    done = run(store, "push", *words)
    assert (done.exit_code, f"nst push REF... OWNER/NAME: {missing} is missing" in done.stderr) == (2, True), done.stderr


def test_an_edition_where_a_generation_is_meant_names_it(store):
    done = run(store, "balance", "tiny@gen-1.1")
    assert (done.exit_code, "tiny@gen-1.1 is an edition; name tiny@gen-1" in done.stderr) == (2, True), done.stderr


def test_a_downloaded_edition_without_its_pool_is_refused_before_a_network_library_is_imported(store, monkeypatch):
    pulled(store, "tiny@gen-1.1")
    monkeypatch.setitem(sys.modules, "nst_train.networks.models", None)
    monkeypatch.setitem(sys.modules, "nst_train.holdout", None)
    words = ["--pseudo", "tiny@gen-1.1", "--model", "test_resnet", "--name", "student"]
    done = CliRunner().invoke(app, ["train", *words, "--store", str(store.root)])
    assert done.exit_code == 2
    assert mentions(done.stderr, "tiny@gen-1.1 … downloaded manifest … --pool")

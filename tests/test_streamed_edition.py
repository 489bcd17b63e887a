"""Training on an edition that stays on the Hub: the batches of the pulled one, with a few shards at a time on disk."""

import json
import sys
from collections import Counter

import numpy as np
import pytest
from hub import resolve_commit, serving
from hub_git import Repository
from streamed import REF, REPO, SHARDS, nst, process, publish, script, seal

from nst_data.images import image_hash
from nst_data.store.store import Store
from nst_train.batches.entries import open_edition

pytestmark = pytest.mark.slow  # a server and processes of their own

CLASSES = ["cat", "ant", "bee"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(folder of the Hub, the edition, labeled images, sizes of its shards)."""
    top = tmp_path_factory.mktemp("published")
    edition, labeled = seal(top)
    publish(top / "hub", edition)
    sizes = [sealed.bytes for sealed in edition.manifest.files.values()]
    return top / "hub", edition, labeled, sizes


def downloads(answers, sizes):
    """Sizes of the shards that were downloaded whole; ranges of them are smaller."""
    return sorted(answer.size for answer in answers if answer.call == "lfs get" and answer.size in sizes)


EPOCH = """
edition = StreamedEdition.open(given["ref"])
pseudo = open_edition(edition, None, given["classes"], Path(given["work"]))
found, there, most = [], set(), 0
with pseudo.prefetch_shards(range(len(pseudo) // 8), 8) as reached:
    for step in range(len(pseudo) // 8):
        indices = pseudo.images_at(np.arange(8 * step, 8 * step + 8))
        probs = pseudo.targets_of(indices)["probs"].numpy()
        found += [(image_hash(pseudo.read(int(index))), soft.tobytes().hex()) for index, soft in zip(indices, probs)]
        most = max(most, len(shards(given["work"])))
        there |= set(shards(given["work"]))
        reached(step + 1)
print(json.dumps({"entries": len(pseudo), "images": len(pseudo.rows), "found": found, "most": most, "there": len(there)}))
"""


def test_an_epoch_has_the_entries_of_the_pulled_edition_in_its_order_and_downloads_each_shard_once(published, tmp_path):
    top, edition, _, sizes = published
    with serving(top) as (url, answers):
        found = script(url, tmp_path / "home", EPOCH, classes=CLASSES, work=tmp_path / "work")
    pulled = open_edition(edition, None, CLASSES, tmp_path / "pulled")
    indices = pulled.images_at(np.arange(len(pulled)))
    expected = [
        (image_hash(pulled.read(int(index))), soft.numpy().tobytes().hex())
        for index, soft in zip(indices, pulled.targets_of(indices)["probs"], strict=True)
    ]
    assert (found["entries"], found["images"]) == (len(pulled), len(pulled.rows)) == (120, 60)
    streamed = [tuple(one) for one in found["found"]]
    assert streamed == expected
    assert max(Counter(streamed).values()) == 3
    assert found["there"] == SHARDS
    assert found["most"] <= 8
    assert downloads(answers, sizes) == sorted(sizes)


GOING_ON = """
edition, images = StreamedEdition.open(given["ref"]), open_source(given["labeled"], labeled=True)
class Counted(Progress):
    # watches the folder of shards, and ends the training like a kill at a step
    def __init__(self, stop):
        self.stop, self.done, self.most = stop, 0, 0
    @contextmanager
    def task(self, name, total, unit, done=0):
        self.is_training = name.startswith("train")
        yield self
    def advance(self, amount, note=""):
        if self.is_training:
            there = list(Path(given["top"]).glob("store-*/runs/*/*/*/work/stream-*/[0-9]*"))
            self.done, self.most = self.done + 1, max(self.most, len(there))
            if self.done == self.stop:
                raise KeyboardInterrupt

def batches(steps, workers):
    pseudo = open_edition(edition, None, images.class_names, Path(given["top"], "work"))
    made = training_batches(settings, readable_images(images, {}), pseudo, training_transforms(settings, CONFIG), steps, workers)
    return [digest(batch.images, batch.labels, batch.pseudo["probs"]) for batch in made]

found = {"alone": batches(range(20), 0), "workers": batches(range(20), 2), "rest": batches(range(7, 20), 1), "weights": [], "most": 0}
pulled = Store(given["made"]).open("bugs@gen-1.1")
for stops in ([], [1], [5, 8, 3]):
    store = Store(Path(given["top"], f"store-{len(stops)}"))
    run = RunSettings(workers=len(stops) % 2, decode_threads=1, checkpoint_minutes=0, tracker=["none"])
    for turn, stop in enumerate([*stops, 0]):
        counted = Counted(stop)
        try:
            version = train(store, "student", images, settings, pseudo=[edition, pulled][turn % 2], run=run, progress=counted)
        except KeyboardInterrupt:
            pass
        found["most"] = max(found["most"], counted.most)
    found["weights"].append(hash_file(version.folder / "model.safetensors").sha256)
    found["left"] = [str(path) for path in store.root.rglob("*.parquet")]
pseudo = open_edition(edition, None, images.class_names, Path(given["top"], "work"))
window = pseudo.shards
with pseudo.prefetch_shards(range(9), 8):
    try:
        with window.keep_available(0, lambda position: []):
            pass
    except NstError as error:
        found["second"] = str(error)
print(json.dumps(found))
"""


def test_batches_and_weights_are_the_same_with_workers_from_any_step_and_interrupted_streamed_or_pulled(published, tmp_path):
    top, edition, labeled, _ = published
    code, made = "from contextlib import contextmanager\n" + GOING_ON, edition.folder.parents[2]
    with serving(top) as (url, _):
        found = script(url, tmp_path / "home", code, labeled=labeled, top=tmp_path, made=made)
    assert len(set(found["alone"])) == 20
    assert found["workers"] == found["alone"]
    assert found["rest"] == found["alone"][7:]
    assert len(found["weights"]) == 3
    assert len(set(found["weights"])) == 1
    assert 4 < found["most"] <= 8
    assert found["left"] == []
    assert found["second"].endswith(": another training is streaming there; wait for it or stop it")


def student(labeled, *arguments, ref=REF):
    chosen = ["--epochs", 8, "--batch-size", 4, "--ratio", 2, "--image-size", 16, "--workers", 1, "--checkpoint-minutes", 0]
    return ["train", "--labeled", labeled, "--pseudo", ref, "--model", "test_resnet", "--name", "student", *chosen, *arguments]


def test_streamed_or_pulled_an_edition_trains_the_same_weights_and_each_finds_the_other(published, tmp_path):
    top, _, labeled, sizes = published
    with serving(top) as (url, answers):
        done = nst(url, tmp_path / "home", *student(labeled, "--stream", "--store", tmp_path / "streamed"))
        assert done.returncode == 0, done.stderr
        assert len(sizes) <= len(downloads(answers, sizes)) <= 2 * len(sizes)  # 192 of the 120 entries of an epoch
        assert nst(url, tmp_path / "home", *student(labeled, "--store", tmp_path / "pulled")).returncode == 0
        pulled = Store(tmp_path / "pulled")
        again = nst(url, tmp_path / "home", *student(labeled, "--stream", "--store", pulled.root))
        assert again.returncode == 0, again.stderr
    assert [version.ref for version in pulled.versions()] == ["bugs@gen-1.1", "student@gen-0"]
    streamed, pulled = (Store(tmp_path / form).open("student@gen-0").manifest for form in ("streamed", "pulled"))
    assert [version.ref for version in Store(tmp_path / "streamed").versions()] == ["student@gen-0"]
    assert not list(tmp_path.glob("streamed/**/*.parquet"))
    assert streamed.digest == pulled.digest
    assert streamed.request == pulled.request
    assert streamed.request.settings["order"] == "shards"
    assert streamed.request.inputs.edition.repo == REF
    assert streamed.request.inputs.edition.revision == resolve_commit(top, REPO, "gen-1.1")
    assert streamed.counts == pulled.counts
    assert (streamed.counts.pseudo_labeled, streamed.counts.entries) == (60, 120)


def test_a_shard_that_changed_on_the_hub_is_refused_and_whole_again_the_same_command_goes_on(published, tmp_path):
    _, edition, labeled, _ = published
    publish(tmp_path / "hub", edition)
    shard = edition.manifest.files["balanced/train-00003-of-00010.parquet"]
    stored = Repository(tmp_path / "hub/datasets" / REPO).large(shard.sha256)
    content = stored.read_bytes()
    middle = len(content) // 2
    stored.chmod(0o644)
    stored.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    words = student(labeled, "--stream", "--store", tmp_path / "store")
    with serving(tmp_path / "hub") as (url, _):
        done = nst(url, tmp_path / "home", *words)
        assert done.returncode == 1
        expected = f"{REF}: balanced/train-00003-of-00010.parquet does not match its manifest: damaged on the server or in transit; "
        assert done.stderr.splitlines()[-1].endswith(expected + "it was not used; run the same command again")
        assert not list((tmp_path / "store").glob("runs/**/00003"))
        stored.write_bytes(content)
        done = nst(url, tmp_path / "home", *words)
        assert done.returncode == 0, done.stderr
    assert Store(tmp_path / "store").open("student@gen-0").verify() == []


EACH = """
import contextlib, io
from nst_cli.main import run
said = []
for words in given["commands"]:
    sys.argv, out = ["nst", *words], io.StringIO()
    with contextlib.redirect_stderr(out):
        try:
            run()
        except SystemExit as end:
            said.append([end.code, out.getvalue().splitlines()])
print(json.dumps(said))
"""


def test_what_cannot_be_streamed_is_refused_with_one_line(published, tmp_path):
    _, edition, labeled, _ = published
    by_reference, _ = seal(tmp_path / "other", shards=1, with_images=False)
    publish(tmp_path / "hub", by_reference, "alice/small")
    publish(tmp_path / "hub", edition)
    cases = {
        ("--stream",): (
            2,
            "--stream: expected an edition on the Hub or at an address, --pseudo OWNER/NAME@gen-N.K; pass one, or remove --stream",
        ),
        ("--stream", "--pseudo", "bugs@gen-1.1"): (2, "--pseudo OWNER/NAME@gen-N.K, found bugs@gen-1.1, which is in the store; pass one"),
        ("--stream", "--pseudo", "alice/small"): (2, "--stream alice/small@gen-1.1: this edition holds no images"),
        ("--stream", "--pseudo", "alice/nothing"): (1, "alice/nothing: no such dataset on the Hub"),
        ("--stream", "--pseudo", REF, "--pool", str(labeled)): (2, "bugs@gen-1.1 already contains its images; remove --pool"),
    }
    words = ["train", "--labeled", str(labeled), "--model", "test_resnet", "--name", "student", "--store", str(tmp_path / "store")]
    with serving(tmp_path / "hub") as (url, _):
        found = script(url, tmp_path / "home", EACH, commands=[[*words, *case] for case in cases])
    for (status, lines), (expected_status, text) in zip(found, cases.values(), strict=True):
        assert text in lines[-1]
        assert status == expected_status
    assert not list((tmp_path / "store").glob("runs/*/*"))


def test_offline_a_stream_ends_at_once_with_one_line(published, tmp_path):
    _, _, labeled, _ = published
    done = nst("http://127.0.0.1:9", tmp_path / "home", *student(labeled, "--stream", "--store", tmp_path / "s"), HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"nst: {REPO}: HF_HUB_OFFLINE is set, so the Hub is not asked; unset it"]


SIZES = """
import json, sys
from nst_data.errors import NstError
from nst_data.self_contained.remote import StreamedEdition
found = []
for ref in sys.argv[1:]:
    try:
        found.append(StreamedEdition.open(ref).shard_sizes().tolist())
    except NstError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_what_each_shard_holds_is_in_the_manifest_or_read_from_one_column_and_must_add_up(tmp_path):
    expected = [[6, 12]] * 3
    known = {"images": [6] * 3, "entries": [12] * 3}
    kinds = {
        "told": ({"shards": known}, expected),
        "read": ({}, expected),
        "fewer": ({"shards": known | {"entries": [12, 12, 11]}}, "fewer"),
        "others": ({"unique": 17}, "others"),
    }
    for kind, (counts, _) in kinds.items():
        publish(tmp_path / "hub", seal(tmp_path / kind, shards=3, counts=counts)[0], f"alice/{kind}")
    with serving(tmp_path / "hub") as (url, answers):
        done = process(url, tmp_path / "home", sys.executable, "-c", SIZES, *(f"alice/{kind}" for kind in kinds))
        ranges = Counter(answer.path.split("/alice/")[1].split("/")[0] for answer in answers if answer.call == "lfs get")
    found = dict(zip(kinds, json.loads(done.stdout), strict=True))
    for kind, (_, sizes) in kinds.items():
        wrong = f"alice/{kind}@gen-1.1: its shards do not hold as many images and entries as its manifest says; it is damaged"
        assert found[kind] == (wrong if isinstance(sizes, str) else sizes)
    assert ranges["told"] < 3 <= ranges["read"]  # the footer of the first one says whether it holds images

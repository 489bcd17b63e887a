"""A store of an earlier nst is listed, verified, found again by the same requests, and gone on from where it is half done."""

import earlier_store
import pytest
from earlier_store import LABELS, OTHER_LABELS, READING, RUN, SELECTION, STUDENT, TEACHER, unpack
from nst_cli.main import app
from typer.testing import CliRunner
from watched import RecordingProgress
from wording import mentions

from nst_data.errors import NstError
from nst_data.selection.editions import balance
from nst_data.store.files import hash_file
from nst_data.store.store import Staging
from nst_train.labeling.label import label
from nst_train.training.train import train


@pytest.fixture
def opened(tmp_path):
    return unpack(tmp_path)


def digests(store):
    return {version.ref: version.manifest.digest for version in store.versions()}


def test_it_is_listed_shown_and_verified(opened):
    store, _, _ = opened
    assert list(digests(store)) == ["bugs@gen-1", "bugs@gen-1.1", "bugs-teacher@gen-0"]
    assert store.unfinished() == ["bugs-teacher@gen-1", "bugs@gen-2"]
    for command in (["list"], ["show", "bugs@gen-1.1"], ["show", "bugs-teacher@gen-0"], ["verify", "bugs@gen-1"]):
        done = CliRunner().invoke(app, [*command, "--store", str(store.root)], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
    for version in store.versions():
        assert version.verify() == []


def test_a_list_says_how_far_unfinished_versions_are(opened):
    store, _, _ = opened
    listed = CliRunner().invoke(app, ["list", "--store", str(store.root)], catch_exceptions=False).stdout
    assert [line.split("   ")[-1] for line in listed.splitlines() if "unfinished" in line] == [
        "step 6; rerun its command, or nst remove bugs-teacher@gen-1",
        "1 shard; rerun its command, or nst remove bugs@gen-2",
    ]


def test_changed_settings_beside_unfinished_work_say_what_differs(opened):
    store, labeled, pool = opened
    told = RecordingProgress()
    changed = STUDENT.model_copy(update={"warmup_epochs": STUDENT.epochs})
    assert (
        train(store, "bugs-teacher", labeled, changed, pseudo="bugs@gen-1.1", pool=pool, run=RUN, progress=told).ref == "bugs-teacher@gen-2"
    )
    label(store, "bugs", "bugs-teacher@gen-0", pool, OTHER_LABELS.model_copy(update={"temperature": 3.0}), run=READING, progress=told)
    lines = [line for line in told.lines if "other settings" in line]
    assert len(lines) == 2
    assert mentions(lines[0], "bugs-teacher@gen-1 is unfinished … (warmup_epochs: ")
    assert mentions(lines[0], "so this is bugs-teacher@gen-2; `store.remove('bugs-teacher@gen-1')`")
    assert mentions(lines[1], "bugs@gen-2 is unfinished … (temperature: 2.0 instead of 3.0)")
    assert "so this is bugs@gen-3" in lines[1]
    assert [line for line in told.lines if "never reaches `learning_rate`; set fewer `warmup_epochs`" in line]


def test_the_same_requests_find_it_and_make_nothing_anew(opened):
    store, labeled, pool = opened
    before, told = digests(store), RecordingProgress()
    assert train(store, "bugs-teacher", labeled, TEACHER, run=RUN, progress=told).ref == "bugs-teacher@gen-0"
    corpus = label(store, "bugs", "bugs-teacher@gen-0", pool, LABELS, run=READING, progress=told)
    assert balance(store, corpus, SELECTION, exclude=[labeled], progress=told).ref == "bugs@gen-1.1"
    assert digests(store) == before
    assert sum("already exists" in line for line in told.lines) == 3, told.lines


def test_todays_default_is_another_training_and_says_what_the_one_of_before_did(opened):
    store, labeled, _ = opened
    today = TEACHER.model_copy(update={"weight_decay_on": "all"})
    changed = r"weight_decay_on: 'weights' instead of 'all'"
    said = rf"exists with other settings \({changed}\), and bugs@gen-1, bugs@gen-2 were made from it; choose another name"
    with pytest.raises(NstError, match=said):
        train(store, "bugs-teacher", labeled, today, generation=0, run=RUN)


def test_a_labeling_that_is_half_done_goes_on_with_the_shard_that_is_there(opened):
    store, _, pool = opened
    staging = next(one for one in store.stagings("bugs") if isinstance(one, Staging))
    shard = "pseudo_labels/train-00000-of-00003.parquet"
    kept = hash_file(staging.build / shard)
    version = label(store, "bugs", "bugs-teacher@gen-0", pool, OTHER_LABELS, run=READING)
    assert (version.ref, version.manifest.counts.labeled, version.verify()) == ("bugs@gen-2", 15, [])
    assert version.manifest.files[shard] == kept


def test_a_training_that_is_half_done_goes_on_from_its_checkpoint(opened):
    store, labeled, pool = opened
    edition = store.open("bugs@gen-1.1")
    version = train(store, "bugs-teacher", labeled, STUDENT, pseudo=edition, pool=pool, generation=1, run=RUN)
    assert (version.ref, version.manifest.counts.steps, version.verify()) == ("bugs-teacher@gen-1", 12, [])
    (row,) = (version.folder / "metrics.jsonl").read_text().splitlines()
    assert '"step": 12' in row


def test_it_is_small_enough_to_be_kept():
    assert earlier_store.ZIP.stat().st_size < 100_000

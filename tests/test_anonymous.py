"""What `nst push --anonymous` leaves out: nothing that is left tells which images a version was made from."""

import shutil

import polars as pl
import pytest
from conftest import write_pool
from nst_cli.look.opening import open_contents

from nst_data.errors import NstError, UsageError
from nst_data.inspection.churn import diff
from nst_data.inspection.quality import quality
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sharing.anonymous import anonymous_copy
from nst_data.sources import open_source
from nst_data.store.manifest import MANIFEST_NAME, content_digest, is_anonymous
from nst_data.store.store import Store
from nst_data.store.version import Version
from nst_train.batches.entries import open_edition
from nst_train.labeling.label import label
from nst_train.settings import LabelRunSettings, LabelSettings


@pytest.fixture(scope="module")
def versions(tiny_store, tmp_path_factory):
    """A generation with an image that could not be read, and an edition of it that holds its images."""
    store, _, pool = tiny_store
    top = tmp_path_factory.mktemp("anonymous")
    shutil.copytree(store.root / "teachers", top / "store" / "teachers")
    shutil.copytree(pool, top / "pool")
    (top / "pool" / "damaged-secret.png").write_bytes(b"no image")
    copy, images = Store(top / "store"), open_source(str(top / "pool"))
    generation = label(copy, "tiny", "tiny-teacher@gen-0", images, LabelSettings(batch_size=4, rows_per_shard=6), run=LabelRunSettings())
    edition = balance(copy, generation, BalanceSettings(min_confidence=0, per_class=20, embed_images=True), pool=images)
    return {"generation": generation, "edition": edition}


@pytest.mark.parametrize("kind", ["generation", "edition"])
def test_keys_hashes_and_reasons_are_gone_and_all_else_stays(versions, kind, tmp_path):
    version = versions[kind]
    folder = tmp_path / "tiny" / version.folder.name
    folder.mkdir(parents=True)
    manifest = anonymous_copy(version, version.manifest, folder)
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json())
    assert Version(folder).verify() == []
    assert manifest.digest == content_digest(manifest.request, manifest.files, manifest.class_names) != version.manifest.digest
    assert is_anonymous(manifest)
    tables = {"generation": ["pseudo_labels", "errors"], "edition": ["balanced"]}[kind]
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for table in tables:
        there, here = (pl.read_parquet(top / table / "*.parquet") for top in (version.folder, folder))
        assert len(here) == len(there) > 0
        assert here.schema == there.schema
        for name in ("label", "confidence", "probs", "duplicates", "copies"):
            assert name not in there or here[name].equals(there[name])
        columns = [name for name in ("key", "image_hash") if name in there.columns]
        traces = [trace for name in columns for trace in there[name]]
        assert not any(trace.encode() in everything for trace in traces)
        if "phash" in here:
            assert set(here["phash"]) == {0}
        if "image" in here:
            assert here["image"].struct.field("bytes").equals(there["image"].struct.field("bytes"))
            assert here["image"].struct.field("path").null_count() == len(here)
    assert b"secret" not in everything
    if kind == "edition":  # its images are all that training needs
        pseudo = open_edition(Version(folder), None, version.manifest.class_names, tmp_path / "work")
        original = open_edition(version, None, version.manifest.class_names, tmp_path / "original")
        assert [pseudo.read(index) for index in range(len(pseudo.rows))] == [original.read(index) for index in range(len(original.rows))]
    sources = [entry for role, entry in manifest.request.inputs.by_role.items() if role == "pool"]
    assert [(entry.ref, entry.digest) for entry in sources] == [("not said", "")]


def test_a_damaged_version_is_not_made_anonymous(versions, tmp_path):
    copy = Version(shutil.copytree(versions["generation"].folder, tmp_path / "tiny" / "gen-1"))
    (copy.folder / "pseudo_labels" / "train-00009-of-00009.parquet").write_bytes(b"never sealed")
    (tmp_path / "out").mkdir()
    with pytest.raises(NstError, match=r"^tiny@gen-1 is damaged:.*when.*was sealed; nothing.*$"):
        anonymous_copy(copy, copy.manifest, tmp_path / "out")


@pytest.fixture(scope="module")
def published(versions, tmp_path_factory):
    """A store with both as they are published: `tiny@gen-1` and, holding its images, `tiny@gen-1.1`."""
    store = Store(tmp_path_factory.mktemp("published") / "store")
    for version in versions.values():
        folder = store.root / "corpora" / "tiny" / version.folder.name
        folder.mkdir(parents=True)
        (folder / MANIFEST_NAME).write_text(anonymous_copy(version, version.manifest, folder).model_dump_json())
    return store


def test_what_needs_to_know_images_is_refused_where_row_numbers_stand_for_hashes(published, tmp_path):
    line = r"^tiny@gen-1.* is anonymous and does not name its images; {} the version it was made from$"
    with pytest.raises(UsageError, match=line.format("compare")):
        diff(published, "tiny@gen-1", "tiny@gen-1.1")
    with pytest.raises(UsageError, match=line.format("compare")):
        quality(published, "tiny@gen-1", tmp_path)
    with pytest.raises(UsageError, match=line.format("compare")):
        open_contents(published, "tiny@gen-1.1", "tiny@gen-1")
    with pytest.raises(UsageError, match=line.format("look at")):
        open_contents(published, "tiny@gen-1.1", corpus="tiny")
    with pytest.raises(UsageError, match=line.format("balance")):
        balance(published, "tiny@gen-1", exclude=[open_source(write_pool(tmp_path / "test", 1, 2))])


def test_the_page_shows_the_images_of_an_anonymous_edition_and_takes_no_answers(published, versions):
    contents, named = (
        open_contents(published, "tiny@gen-1.1"),
        open_contents(Store(versions["edition"].local_folder.parents[2]), "tiny@gen-1.1"),
    )
    for row in (0, 1):
        (name, shown), (_, expected) = contents.jpeg(row, 64), named.jpeg(row, 64)
        assert shown == expected
        assert name == f"{published.open('tiny@gen-1.1').manifest.digest[:32]}-{row:032x}-64"  # row 0 of others has the same hash
    assert contents.overview()["can"]["review"] is False
    labels = open_contents(published, "tiny@gen-1")
    assert labels.detail(0)["near_duplicates"] == []
    assert [said["version"] for said in labels.detail(0)["history"]] == ["tiny@gen-1"]
    assert contents.detail(0)["history"] == []

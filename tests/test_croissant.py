"""`croissant.json` of a pushed version: its tables, and where its labels come from."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from conftest import write_class_folders
from sealed_labels import label_row, seal_edition, seal_generation

from nst_data import adopt
from nst_data.cards.described import Described
from nst_data.cards.published import Published
from nst_data.progress import Progress
from nst_data.sharing.croissant import CROISSANT, croissant
from nst_data.store.inputs import Input
from nst_data.store.store import Store

REVISION = "0123abcd"


def written(version, **more):
    return json.loads(croissant(Described.from_version(version), Published("alice/bugs", str(version.number), **more)))


def test_who_labeled_what_and_from_what_is_said(tiny_store):
    store, _, pool = tiny_store
    labels, edition = store.open("tiny@gen-1"), store.open("tiny@gen-1.1")
    about = written(labels, links={"teacher": f"alice/net@{REVISION}"}, license="cc-by-4.0")
    assert (about["name"], about["version"], about["license"]) == ("tiny@gen-1", "1.0.0", "cc-by-4.0")
    nst, teacher = about["rai:machineAnnotationTools"]
    assert (nst.split()[0], teacher) == ("nst", "tiny-teacher@gen-0")
    assert about["rai:dataAnnotationProtocol"].endswith("Classes: ant, bee, cat")
    assert any("machine-made" in limit for limit in about["rai:dataLimitations"])
    sources = {one["prov:hadRole"]: one for one in about["prov:wasDerivedFrom"]}
    assert sources["teacher"]["@id"] == f"https://huggingface.co/alice/net/tree/{REVISION}"
    assert sources["pool"]["name"] == pool.name
    assert about["prov:wasGeneratedBy"]["description"].startswith("nst label POOL")
    assert str(pool.parent) not in json.dumps(about)
    of_edition = written(edition)
    assert next(one["prov:hadRole"] for one in of_edition["prov:wasDerivedFrom"]) == "generation"
    assert of_edition["rai:machineAnnotationTools"][1:] == [teacher]
    assert "license" not in of_edition


def test_each_column_of_each_table_is_a_field(tiny_store):
    version = tiny_store[0].open("tiny@gen-1.1")
    about = written(version)
    for table in about["recordSet"]:
        columns = pq.read_schema(next((version.folder / table["@id"]).glob("*.parquet"))).names
        assert [field["name"] for field in table["field"]] == columns
    fields = {field["@id"]: field for table in about["recordSet"] for field in table["field"]}
    assert (fields["balanced/probs"]["dataType"], fields["balanced/probs"]["repeated"]) == ("sc:Float", True)
    assert (fields["balanced/label"]["dataType"], fields["balanced/key"]["dataType"]) == ("sc:Integer", "sc:Text")


def test_an_anonymous_version_names_versions_alone(tmp_path):
    store = Store(tmp_path / "store")
    version = seal_generation(
        store, [label_row(row, row, row % 2, 0.9) for row in range(4)], teacher=Input(ref="local-dir:/home/me/secret-net", digest="0")
    )
    edition = seal_edition(store, version, [label_row(1, 1, 1, 0.9)])
    for one in (version, edition):
        for anonymous in (False, True):
            about = json.dumps(written(one, anonymous=anonymous))
            assert ("secret-net" in about) is not anonymous, one.ref
            assert "/home/me" not in about


def test_of_labels_that_were_made_elsewhere_only_a_named_model_is_a_tool(tmp_path):
    store, folders = Store(tmp_path / "store"), write_class_folders(tmp_path / "sorted", ["ant", "bee"], 1)
    nobody, model = (adopt(store, "bugs", folders, teacher=teacher, progress=Progress()) for teacher in (None, "hf-hub:owner/net"))
    assert "rai:machineAnnotationTools" not in written(nobody)
    assert written(model)["rai:machineAnnotationTools"] == ["hf-hub:owner/net"]
    assert all(written(one)["rai:dataAnnotationProtocol"].startswith("Labels that were made elsewhere") for one in (nobody, model))


def test_of_many_classes_some_are_named(tiny_store, monkeypatch):
    monkeypatch.setattr("nst_data.sharing.croissant._MAX_CLASSES", 2)
    assert written(tiny_store[0].open("tiny@gen-1"))["rai:dataAnnotationProtocol"].endswith("Classes: ant, bee and 1 more")


@pytest.mark.slow
def test_the_reference_library_takes_it(tiny_store, tmp_path):
    for ref in ("tiny@gen-1", "tiny@gen-1.1"):
        version = tiny_store[0].open(ref)
        (tmp_path / CROISSANT).write_text(croissant(Described.from_version(version), Published("alice/bugs", str(version.number))))
        words = [sys.executable, "-m", "mlcroissant.scripts.validate", "--jsonld", str(tmp_path / CROISSANT)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, "Done." in done.stderr) == (0, True), done.stderr

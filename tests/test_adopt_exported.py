"""What `nst export` writes for other tools is adopted again as it was."""

import numpy as np
import pytest
from labels import table_rows

from nst_data.adoption import adopt
from nst_data.formats.export import export
from nst_data.progress import Progress
from nst_data.sources import open_source
from nst_data.store.store import Store


def soft(version):
    """{hash: (label, confidence, probabilities)}."""
    names = version.manifest.class_names
    found = {}
    for row in table_rows(version):
        probs = row.get("probs")
        if probs is None:
            rest = (1 - sum(row["top_probs"])) / max(1, len(names) - len(row["top_labels"]))
            probs = np.full(len(names), rest)
            probs[row["top_labels"]] = row["top_probs"]
        found[row["image_hash"]] = (names[row["label"]], row["confidence"], np.asarray(probs))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "file", "probs"),
    [
        ("csv", "labels.csv", True),
        ("csv", "labels.csv", False),
        ("jsonl", "labels.jsonl", True),
        ("jsonl", "labels.jsonl", False),
        ("imagefolder", "metadata.jsonl", True),
        ("webdataset", "", True),
        ("fiftyone", "labels.json", False),
        ("label-studio", "tasks.json", False),
    ],
)
def test_what_was_exported_is_adopted_as_it_was(tiny_store, tmp_path, to, file, probs):
    store, _, pool = tiny_store
    export(store, "tiny@gen-1", tmp_path / "out", to=to, probs=probs, progress=Progress())
    images = open_source(tmp_path / "out" / "data" if to == "fiftyone" else pool)
    options = {"pool": images} if to != "webdataset" else {}
    options |= {"key": "key"} if to == "imagefolder" else {}
    names = str(tmp_path / "out" / "classes.txt")
    version = adopt(Store(tmp_path / "store"), "again", str(tmp_path / "out" / file), class_names=names, progress=Progress(), **options)
    expected, found = soft(store.open("tiny@gen-1")), soft(version)
    assert found.keys() == expected.keys()
    for hashed, (label, confidence, values) in expected.items():
        assert found[hashed][0] == label
        assert found[hashed][1] == pytest.approx(confidence, abs=1e-3)
        assert (
            found[hashed][2] == pytest.approx(values, abs=2e-3) if probs else found[hashed][2].max() == pytest.approx(confidence, abs=1e-3)
        )

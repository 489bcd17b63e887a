"""Labels in the forms that people have them, as tables that name the images of a pool."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from labels import rows, write_teacher
from nst_cli.main import app
from pictures import png
from typer.testing import CliRunner

from nst_data.adoption import adopt
from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.labeling.label import label
from nst_train.settings import LabelRunSettings, LabelSettings

NAMES = ["ant", "bee", "cat", "dog"]
FILES = ["a/0.png", "a/1.png", "b/2.png", "b/3.png", "4.png"]
PROBS = np.array([[0.7, 0.2, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4], [0.05, 0.9, 0.05, 0.0], [0.4, 0.3, 0.2, 0.1], [0.0, 0.0, 0.25, 0.75]])
LABELS = PROBS.argmax(axis=1)


@pytest.fixture
def pool(tmp_path):
    for number, name in enumerate(FILES):
        path = tmp_path / "pool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number % 4, number))
    return open_source(tmp_path / "pool")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def names(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    return str(tmp_path / "names.txt")


def largest(k, order=None):
    """(classes, probabilities) of each image, the k most probable first."""
    order = np.argsort(-PROBS, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(PROBS, order, axis=1)


def labels_of(version):
    """{key: {class: probability}} as far as classes are named, and the label with its confidence."""
    names = version.manifest.class_names
    found = {}
    for row in rows(version):
        classes = row["top_labels"] if "top_labels" in row else range(len(names))
        probs = row["top_probs"] if "top_probs" in row else row["probs"]
        assert names[row["label"]] == names[int(classes[int(np.argmax(probs))])]
        assert row["confidence"] == pytest.approx(max(probs), abs=1e-3)
        found[row["key"]] = {names[one]: pytest.approx(prob, abs=1e-3) for one, prob in zip(classes, probs, strict=True)}
    return found


def expected(k=4):
    classes, probs = largest(k)
    return {
        key: dict(zip([NAMES[one] for one in row], values.tolist(), strict=True)) for key, row, values in zip(FILES, classes, probs, strict=True)
    }


def timm_frame(classes, values, names=None, ids=False, column="prob", separate=False, fullname=True):
    """The table of timm's inference.py, with its --topk, --include-index, --label-type, --output-col, --results-separate-col."""
    frame = {"filename": FILES if fullname else [name.rpartition("/")[2] for name in FILES]}
    parts = [("index", classes)] if ids else []
    parts += [("label", np.array(names, object)[classes])] if names is not None else []
    for name, array in [*parts, (column, values.astype(np.float32))]:
        if separate and array.shape[1] > 1:
            frame |= {f"{name}_{place}": array[:, place] for place in range(array.shape[1])}
        else:
            frame[name] = list(array.squeeze(-1) if array.shape[1] == 1 else array)
    return pd.DataFrame(frame)


def write_timm(frame, path, form):
    """As its --results-format."""
    if form == "parquet":
        frame.set_index("filename").to_parquet(path)
    elif form == "json":
        frame.set_index("filename").to_json(path, indent=4, orient="index")
    elif form == "json-split":
        frame.to_json(path, indent=4, orient="split", index=False)
    elif form == "json-records":
        frame.to_json(path, lines=True, orient="records")
    else:
        frame.to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    return str(path)


FORMS = {"csv": "csv", "tsv": "tsv", "json": "json", "json-split": "json", "json-records": "json", "parquet": "parquet"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_timms_output_is_taken_in_each_of_its_forms(tmp_path, store, pool, names, form, separate, k):
    classes, values = largest(k)
    for number, options in enumerate(({"names": NAMES}, {"ids": True}, {"names": NAMES, "ids": True})):
        file = write_timm(timm_frame(classes, values, separate=separate, **options), tmp_path / f"{number}.{FORMS[form]}", form)
        version = adopt(store, "bugs", file, pool=pool, class_names=names, progress=Progress())
        assert labels_of(version) == expected(k)
        assert version.ref == "bugs@gen-1"  # the same labels, however they are written
    assert version.manifest.counts.top_k == (k if k < 4 else None)


def test_long_lists_and_odd_names_in_a_cell_of_csv_are_read_as_numpy_writes_them(tmp_path, store, pool):
    odd = [f"it's \"{number}\", a\\b" if number % 2 else f"thing, of kind {number}" for number in range(40)]
    probs = np.random.default_rng(0).dirichlet(np.ones(40), len(FILES))
    classes = np.argsort(-probs, axis=1)
    (tmp_path / "names.txt").write_text("\n".join(odd))
    file = write_timm(timm_frame(classes, np.take_along_axis(probs, classes, axis=1), names=odd), tmp_path / "t.csv", "csv")
    assert "\n " in (tmp_path / "t.csv").read_text()
    found = rows(adopt(store, "bugs", file, pool=pool, class_names=str(tmp_path / "names.txt"), progress=Progress()))
    by_key = {row["key"]: row["probs"] for row in found}
    np.testing.assert_allclose([by_key[key] for key in FILES], probs, atol=1e-3)

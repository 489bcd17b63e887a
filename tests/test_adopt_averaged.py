"""The mean of several tables of labels, as of an ensemble."""

import json

import numpy as np
import pandas as pd
import pytest
from labels import table_rows, write_named_pool
from nst_cli.main import app
from test_adopt_tables import FILES, NAMES, PROBS, largest, timm_frame, write_json, write_timm
from typer.testing import CliRunner

from nst_data.adoption import adopt
from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.store.store import Store
from nst_data.tables.averaged_labels import AveragedLabels

OTHERS = PROBS[::-1]


@pytest.fixture
def pool(tmp_path):
    return write_named_pool(tmp_path / "pool", FILES)


@pytest.fixture
def names(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return str(tmp_path / "names.txt")


def by_name(path, probs, classes=NAMES, files=FILES):
    """Probabilities of all classes by their names, in an order of its own."""
    order = sorted(range(len(files)), reverse=True)
    return write_json(path, {files[row]: {name: probs[row, NAMES.index(name)] for name in classes} for row in order})


def top(path, probs, k, files=FILES):
    classes, values = largest(k, probs)
    frame = timm_frame(classes, values, names=NAMES)
    frame["filename"] = files
    return write_timm(frame, path, "csv")


def even(probs, k):
    """What a table of the k most probable classes says of all of them."""
    classes, values = largest(k, probs)
    dense = np.repeat((1 - values.sum(axis=1, keepdims=True)) / (4 - k), 4, axis=1)
    np.put_along_axis(dense, classes, values, axis=1)
    return dense


def test_the_mean_matches_classes_by_name_and_images_by_key(tmp_path, pool):
    tables = [str(by_name(tmp_path / "a.json", PROBS)), str(by_name(tmp_path / "b.json", OTHERS, classes=NAMES[::-1]))]
    version = adopt(Store(tmp_path / "store"), "mean", tables, pool=pool, progress=Progress())
    found = {row["key"]: row for row in table_rows(version)}
    expected = (PROBS + OTHERS) / 2
    columns = [version.manifest.class_names.index(name) for name in NAMES]
    np.testing.assert_allclose(np.array([found[key]["probs"] for key in FILES])[:, columns], expected, atol=1e-3)
    for key, probs in zip(FILES, expected, strict=True):
        assert found[key]["confidence"] == pytest.approx(probs.max(), abs=1e-6)
    assert list(version.manifest.request.inputs.adopted_tables) == ["adopted", "adopted_2"]
    assert "the mean of 2 tables of labels" in (version.folder / "README.md").read_text()
    assert f"nst adopt {tables[0]} {tables[1]} --corpus mean --pool {pool.location}" in " ".join(
        (version.folder / "README.md").read_text().replace("\\\n", " ").split()
    )
    assert adopt(Store(tmp_path / "store"), "mean", tables, pool=pool, progress=Progress()) == version
    alone = adopt(Store(tmp_path / "store"), "mean", tables[:1], pool=pool, progress=Progress())
    assert alone.ref == "mean@gen-2"


class Interrupted(Progress):
    """Calls something before the labels are averaged."""

    def __init__(self, meanwhile):
        self.meanwhile = meanwhile

    def task(self, name, *numbers, **more):
        if name == "average the labels":
            self.meanwhile()
        return super().task(name, *numbers, **more)


def test_two_processes_that_average_at_once_do_not_take_each_others_files(tmp_path, pool, monkeypatch):
    keep, beside = AveragedLabels.save, []

    def keep_twice(self, file, top_k, progress):
        keep(self, file, top_k, Interrupted(lambda: keep(self, file, top_k, progress)))
        beside.extend(path.name for path in file.parent.iterdir() if path != file and "soft_labels" in path.name)

    monkeypatch.setattr(AveragedLabels, "save", keep_twice)
    tables = [str(by_name(tmp_path / "a.json", PROBS)), str(by_name(tmp_path / "b.json", OTHERS))]
    version = adopt(Store(tmp_path / "store"), "mean", tables, pool=pool, progress=Progress())
    found = {row["key"]: row["confidence"] for row in table_rows(version)}
    assert [found[key] for key in FILES] == pytest.approx(((PROBS + OTHERS) / 2).max(axis=1), abs=1e-6)
    assert beside == []


def test_the_mean_of_the_most_probable_keeps_all_that_any_table_names(tmp_path, pool, names):
    tables = [top(tmp_path / "a.csv", PROBS, 1), top(tmp_path / "b.csv", OTHERS, 2)]
    version = adopt(Store(tmp_path / "store"), "mean", tables, pool=pool, class_names=names, progress=Progress())
    assert version.manifest.counts.top_k == 3
    expected = dict(zip(FILES, (even(PROBS, 1) + even(OTHERS, 2)) / 2, strict=True))
    for row in table_rows(version):
        assert row["top_probs"] == pytest.approx(expected[row["key"]][row["top_labels"]], abs=1e-3)
        assert row["top_labels"][0] == row["label"]
        rest = np.setdiff1d(range(4), row["top_labels"])
        assert 1 - sum(row["top_probs"]) == pytest.approx(expected[row["key"]][rest].sum(), abs=2e-3)


def test_the_command_averages_tables_of_different_forms(tmp_path, pool, names):
    pd.DataFrame({"path": FILES, "probs": list(OTHERS)}).to_parquet(tmp_path / "b.parquet")
    words = ["adopt", top(tmp_path / "a.csv", PROBS, 3), str(tmp_path / "b.parquet"), "--class-names", names, "--json"]
    done = CliRunner().invoke(app, [*words, "--corpus", "mean", "--pool", pool.location, "--store", str(tmp_path / "store")])
    assert json.loads(done.stdout)["counts"]["top_k"] is None
    found = {row["key"]: row["probs"] for row in table_rows(Store(tmp_path / "store").open("mean"))}
    np.testing.assert_allclose([found[key] for key in FILES], (even(PROBS, 3) + OTHERS) / 2, atol=1e-3)


def test_tables_of_other_images_or_classes_are_not_averaged(tmp_path, pool, names):
    store, whole = Store(tmp_path / "store"), str(by_name(tmp_path / "a.json", PROBS))
    fewer = str(by_name(tmp_path / "b.json", PROBS, files=FILES[:4]))
    for tables in ([whole, fewer], [fewer, whole]):
        with pytest.raises(NstError, match=r"b\.json:.*'4\.png'.*a\.json.*the same images"):
            adopt(store, "mean", tables, pool=pool, progress=Progress())
    other = str(write_json(tmp_path / "c.json", {name: {"ant": 0.5, "fly": 0.5} for name in FILES}))
    with pytest.raises(NstError, match=r"c\.json:.*4 classes \(ant, bee, cat, dog\).*2 \(ant, fly\).*`class_names` FILE"):
        adopt(store, "mean", [whole, other], pool=pool, progress=Progress())
    with pytest.raises(UsageError, match=r"several tables.*`pool` SOURCE"):
        adopt(store, "mean", [whole, whole], progress=Progress())
    with pytest.raises(UsageError, match=r"`table\[0\]`: expected a source, .*, found 3"):
        adopt(store, "mean", [3], pool=pool, progress=Progress())
    assert not store.root.exists()

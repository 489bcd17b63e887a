"""Features: what a network makes of images before its classifier, kept in the store."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from conftest import write_pool
from datasets import load_dataset
from labels import write_named_pool, write_teacher
from nst_cli.main import app
from sealed_labels import label_row, seal_generation
from test_teachers import write_transformer
from typer.testing import CliRunner
from watched import InterruptAfter, RecordingProgress

from nst_data.errors import NstError, UsageError
from nst_data.features.kept import list_features, remove_features
from nst_data.images import image_hash
from nst_data.inspection.similar import open_similarity_search
from nst_data.inspection.view import View
from nst_data.progress import Progress
from nst_data.sources import open_source
from nst_data.store.files import PID_NAMESPACE, hash_file
from nst_data.store.store import Store
from nst_data.tables import shards
from nst_train.classifiers.teachers import load_classifier
from nst_train.features import on_ray
from nst_train.features.embed import embed
from nst_train.settings import EmbedSettings, ReadSettings
from nst_train.transforms.preprocessing import decode_pixels

CLASSES = ["ant", "bee", "cat"]
SETTINGS, RUN = EmbedSettings(batch_size=4, rows_per_shard=6), ReadSettings(decode_threads=2)


@pytest.fixture
def teacher(tmp_path):
    return write_teacher(tmp_path / "teacher", CLASSES)


def features_by_hand(name, source, path):
    """From the network's own functions, image by image in batches of one."""
    classifier, _ = load_classifier(name, Store(path / "other"))
    found = []
    for row in source.rows(range(len(source))):
        prepared = classifier.preprocessing.prepare(decode_pixels(row.read(), None, False))
        batch = classifier.preprocessing.finish(prepared[None])
        with torch.inference_mode():
            network = classifier.network
            found.append(network.forward_head(network.forward_features(batch), pre_logits=True)[0].numpy())
    return np.stack(found)


def test_features_are_what_the_network_gives_before_its_classifier(teacher, tmp_path):
    pool = open_source(write_pool(tmp_path / "pool", 3, 5))
    features = embed(Store(tmp_path / "store"), teacher, pool, SETTINGS, run=RUN)
    assert features.matrix().shape == (15, timm.create_model("test_resnet").num_features)
    np.testing.assert_allclose(features.matrix(), features_by_hand(teacher, pool, tmp_path), rtol=1e-4, atol=1e-5)
    rows = features.rows()
    assert rows["id"].to_pylist() == list(range(15))
    assert rows["key"].to_pylist() == [pool.key(row) for row in range(15)]
    assert rows["image_hash"].to_pylist() == [image_hash(row.read()) for row in pool.rows(range(15))]
    assert (features.about.images, features.about.errors) == (15, 0)


def test_logits_follow_from_features_by_the_last_layer_for_transformers_too(tmp_path):
    name = write_transformer(tmp_path / "vit")
    pool = open_source(write_pool(tmp_path / "pool", 3, 2))
    features = embed(Store(tmp_path / "store"), name, pool, SETTINGS, run=RUN)
    classifier, _ = load_classifier(name, Store(tmp_path / "store"))
    last = classifier.network.network.classifier
    with torch.inference_mode():
        images = [classifier.preprocessing.prepare(decode_pixels(row.read(), None, False)) for row in pool.rows(range(6))]
        logits = classifier.network(classifier.preprocessing.finish(torch.stack(images)))
        from_features = last(torch.from_numpy(features.matrix()))
    assert features.about.dimensions == last.in_features
    torch.testing.assert_close(from_features, logits, rtol=0.02, atol=0.02)  # the processor's resize is Pillow's, to within rounding


def test_interrupted_they_go_on_and_are_the_same_bytes(teacher, tmp_path):
    pool = open_source(write_pool(tmp_path / "pool", 3, 5))
    whole = embed(Store(tmp_path / "whole"), teacher, pool, SETTINGS, run=RUN)
    store = Store(tmp_path / "parts")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            embed(store, teacher, pool, SETTINGS, run=RUN, progress=InterruptAfter(8))
    assert len(list(store.root.glob("features/*/.work/shards/*"))) == 2
    parts = embed(store, teacher, pool, SETTINGS, run=RUN)
    assert parts.about.files == whole.about.files
    assert {name: hash_file(parts.folder / name) for name in parts.about.files} == whole.about.files
    assert not (parts.folder / ".work").exists()


class Meanwhile(Progress):
    """Has something done once, when the first images are."""

    def __init__(self, work):
        self._work = [work]

    @contextmanager
    def task(self, name, total, unit, done=0):
        yield self

    def advance(self, amount, note=""):
        if self._work:
            self._work.pop()()


def test_where_another_process_ends_first_its_features_are_the_result(teacher, tmp_path):
    store, pool = Store(tmp_path / "store"), open_source(write_pool(tmp_path / "pool", 3, 5))
    others = []
    ours = embed(store, teacher, pool, SETTINGS, run=RUN, progress=Meanwhile(lambda: others.append(embed(store, teacher, pool, SETTINGS))))
    assert others == [ours]
    assert {name: hash_file(ours.folder / name) for name in ours.about.files} == ours.about.files


def test_what_was_computed_is_found_and_other_sizes_and_rewritten_images_are_not(teacher, tmp_path):
    store, folder, said = Store(tmp_path / "store"), write_pool(tmp_path / "pool", 3, 2), RecordingProgress()
    first = embed(store, teacher, open_source(folder), SETTINGS, run=RUN)
    assert embed(store, teacher, open_source(folder), SETTINGS, run=RUN, progress=said) == first
    assert said.lines[-1].endswith(f"features of 6 images are there already: {first.folder}")
    assert embed(store, teacher, open_source(folder), SETTINGS.model_copy(update={"image_size": 24}), run=RUN) != first
    image = min(folder.iterdir())
    same_size = bytearray(image.read_bytes())
    image.write_bytes(same_size[:-20] + bytes([same_size[-20] ^ 1]) + same_size[-19:])
    with pytest.raises(NstError, match=rf"pool: 1 image.*were computed.*`remove_features\(store, 'features@{first.folder.name[:12]}'\)`"):
        embed(store, teacher, open_source(folder), SETTINGS, run=RUN)


def test_unreadable_images_are_listed_and_too_many_stop_it_until_they_are_back(teacher, tmp_path):
    store, folder = Store(tmp_path / "store"), write_pool(tmp_path / "pool", 3, 2)
    broken = sorted(folder.iterdir())[:4]
    good = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(NstError, match=r"4 of its 6 images.*\(limit 50%\).*'0-100\.png'.*restore"):
        embed(store, teacher, open_source(folder), SETTINGS, run=RUN)
    for path, content in zip(broken[1:], good[1:], strict=True):
        path.write_bytes(content)
    features = embed(store, teacher, open_source(folder), SETTINGS, run=RUN)
    assert (features.about.images, features.about.errors, len(features.matrix())) == (5, 1, 5)
    assert [error["key"] for error in features.errors()] == [broken[0].name]


def test_the_files_are_a_dataset_and_their_columns_are_said(teacher, tmp_path):
    pool = open_source(write_pool(tmp_path / "pool", 3, 2))
    features = embed(Store(tmp_path / "store"), teacher, pool, SETTINGS, run=RUN)
    read = load_dataset("parquet", data_files=str(features.folder / "features/*.parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    assert read.column_names == ["id", "key", "image_hash", "features"]
    np.testing.assert_array_equal(np.array(read["features"][:], np.float32), features.matrix())
    assert pq.read_schema(next(features.folder.glob("features/*"))).field("features").type.list_size == features.about.dimensions


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("no_such_network", "no_such_network: no network.*no teacher"),
        ("local-dir:nowhere", r"local-dir:nowhere:.*config\.json and model\.safetensors"),
        ("deit_tiny_distilled_patch16_224", "deit_tiny_distilled_patch16_224.*HF_HUB_OFFLINE.*unset it"),
    ],
)
def test_what_is_no_model_is_one_line(tmp_path, model, line):
    pool = open_source(write_pool(tmp_path / "pool", 1, 1))
    with pytest.raises((NstError, UsageError), match=line):
        embed(Store(tmp_path / "store"), model, pool)


def test_the_command_says_how_many_and_where(tiny_store):
    store, _, pool = tiny_store
    words = ["embed", str(pool), "--model", "tiny-teacher@gen-0", "--store", str(store.root)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("15 images of 96 features each\n"), done.stdout
    (file,) = store.root.glob("features/*/features/*.parquet")
    assert str(file.parent) in done.stdout


def test_features_are_listed_and_removed_and_computed_again(teacher, tmp_path):
    store, pool = Store(tmp_path / "store"), open_source(write_pool(tmp_path / "pool", 3, 5))
    features = embed(store, teacher, pool, SETTINGS, run=RUN)
    ref = f"features@{features.folder.name[:12]}"
    runner = CliRunner()
    listed = runner.invoke(app, ["list", "--store", str(store.root)], env={"COLUMNS": "300"}).output
    assert re.search(rf"{ref} +features .*15 images of .*pool.* by .*teacher.* MB", listed)
    (row,) = json.loads(runner.invoke(app, ["list", "--json", "--store", str(store.root)]).output)["features"]
    assert (row["ref"], row["images"], row["source"]) == (ref, 15, pool.lineage.ref)
    assert row["bytes"] > sum((features.folder / name).stat().st_size for name in features.about.files)
    remedy = f"`nst remove {ref}`"
    for words, said in ((("show", ref), remedy), (("verify", ref), remedy), (("remove", "features@0A"), "at least 4")):
        refused = runner.invoke(app, [*words, "--store", str(store.root)])
        assert (refused.exit_code, said in refused.output) == (2, True), refused.output
    wrong = runner.invoke(app, ["remove", "features@0000", "--store", str(store.root)])
    assert wrong.exit_code == 2
    assert ref in wrong.output
    gone = runner.invoke(app, ["remove", ref, "--store", str(store.root)])
    assert (gone.exit_code, features.folder.exists()) == (0, False)
    assert embed(store, teacher, pool, SETTINGS, run=RUN).about.files == features.about.files


def test_interrupted_features_are_listed_as_unfinished_and_removed(teacher, tmp_path):
    store, pool = Store(tmp_path / "store"), open_source(write_pool(tmp_path / "pool", 3, 5))
    with pytest.raises(KeyboardInterrupt):
        embed(store, teacher, pool, SETTINGS, run=RUN, progress=InterruptAfter(8))
    (kept,) = list_features(store)
    runner, where = CliRunner(), ["--store", str(store.root)]
    assert json.loads(runner.invoke(app, ["list", "--unfinished", "--json", *where]).output)["unfinished"] == [kept.ref]
    assert f"nst remove {kept.ref}" in runner.invoke(app, ["list", "--unfinished", *where]).output
    assert runner.invoke(app, ["remove", kept.ref, *where]).exit_code == 0
    assert list_features(store) == []


def test_features_that_another_machine_computes_are_not_removed(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    claims = store.root / "features" / ("0123" * 8) / ".work" / "claims"
    claims.mkdir(parents=True)
    claim = claims / "00000.elsewhere.1"
    claim.write_text("0")

    class Elsewhere(Progress):
        def say(self, line):
            claim.write_text("1")  # the other machine is alive

    with pytest.raises(NstError, match=r"features@0123.*computing.*stop it"):
        remove_features(store, "features@0123", progress=Elsewhere())
    monkeypatch.setattr(shards, "STALLED_SECONDS", 0.0)
    assert remove_features(store, "features@0123") == claims.parent.parent
    assert not claims.parent.parent.exists()


def test_similar_images_name_each_row_once_also_of_equal_images(teacher, tmp_path):
    store, pool = Store(tmp_path / "store"), write_named_pool(tmp_path / "pool", ["0.png", "1.png", "2.png"])
    (tmp_path / "pool" / "1-copy.png").write_bytes(pool.read(1))
    pool = open_source(tmp_path / "pool")
    embed(store, teacher, pool, SETTINGS, run=RUN)
    version = seal_generation(store, [label_row(row, pool.read(row), 0, 0.5, key=pool.key(row)) for row in range(4)], pool=pool.lineage)
    similar = open_similarity_search(store, View(store, version, CLASSES))
    assert [pool.key(row) for row in range(4)] == ["0.png", "1-copy.png", "1.png", "2.png"]
    assert sorted(row for row, _ in similar.find(0)) == [1, 2, 3]
    assert similar.find(1)[0] == (2, 1.0)
    assert similar.find(2)[0] == (1, 1.0)


def test_the_sign_by_which_workers_know_a_store_goes_also_when_its_process_was_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    left = tmp_path / f".seen-by-workers.abcd.{PID_NAMESPACE}.{dead.pid}.tmp"
    left.mkdir()
    os.utime(left, (0, 0))
    with on_ray._place_marker(Store(tmp_path)) as sign, on_ray._place_marker(Store(tmp_path)) as other:
        assert sorted(map(str, tmp_path.iterdir())) == sorted([sign, other])
    assert not list(tmp_path.iterdir())

"""What each option of `nst balance` does, from the command line to the edition."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TINY, write_class_folders, write_pool
from datasets import load_dataset
from labels import table_rows, write_teacher
from nst_cli.main import app
from test_editions import write_generation
from typer.testing import CliRunner
from wording import is_line

from nst_data.errors import UsageError
from nst_data.images import decode
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import parse_recipe

NAMES = ["ant", "bee", "cat"]
LABELS = [(0, 0.875), (0, 0.75), (0, 0.625), (0, 0.375), (1, 0.75), (1, 0.5)]  # four ants, two bees, no cat


def probs(labels, classes=3):
    """Soft labels with these labels and confidences."""
    table = np.zeros((len(labels), classes), np.float32)
    for row, (label, confidence) in enumerate(labels):
        table[row] = (1 - confidence) / (classes - 1)
        table[row, label] = confidence
    return table


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def pool(tmp_path):
    return open_source(str(write_pool(tmp_path / "pool", 3, 2)))


@pytest.fixture
def generation(store, pool):
    return write_generation(store, pool, probs(LABELS))


def nst(store, *arguments):
    result = CliRunner().invoke(app, [*map(str, arguments), "--store", str(store.root)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def run_balance(generation, *arguments):
    """The edition that the command makes, and what it prints."""
    store = Store(generation.folder.parents[2])
    text = nst(store, "balance", generation.ref, *arguments).stdout
    return store.open(text.partition(":")[0]), text


def test_where_one_image_has_very_many_copies_another_selection_comes_next(generation):
    _, text = run_balance(generation, "--min-confidence", 0)
    assert "copies of one image; --per-class auto" in text
    assert text.splitlines()[-1].startswith("  next: the same command with --per-class auto, or nst train ")
    assert (
        "next: nst train --labeled LABELED --pseudo flowers@gen-1.2 "
        in run_balance(generation, "--min-confidence", 0, "--per-class", "auto")[1].splitlines()[-1]
    )


def copies(edition):
    """How often each row of the pool stands in the training set."""
    return {row["id"]: row["copies"] for row in table_rows(edition, "balanced")}


def dropped(edition):
    return {reason: count for reason, count in edition.manifest.counts.dropped.items() if count}


def write_thresholds(tmp_path, text):
    (tmp_path / "thresholds.yaml").write_text(text)
    return "--class-min-confidence", tmp_path / "thresholds.yaml"


def test_classes_have_thresholds_of_their_own_from_a_file(generation, tmp_path):
    edition, text = run_balance(generation, *write_thresholds(tmp_path, "ant: 0.7\nbee: 0.5\n"), "--per-class", 2)
    assert copies(edition) == {0: 1, 1: 1, 4: 2}
    assert dropped(edition) == {"low_confidence": 3}
    assert "  dropped: 3 low confidence\n" in text


def test_a_class_with_two_thresholds_is_refused(generation, tmp_path):
    option, file = write_thresholds(tmp_path, "ant: 0.1\nbee: 0.5\nant: 0.9\n")
    words = ["balance", generation.ref, option, str(file), "--store", str(generation.folder.parents[2])]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert (done.exit_code, done.stderr.strip()) == (2, f"nst: {option} {file}: 'ant' is listed twice; remove one of the lines")


def test_a_class_without_a_threshold_of_its_own_has_that_of_all(generation, tmp_path):
    edition, _ = run_balance(generation, *write_thresholds(tmp_path, "ant: 0"), "--min-confidence", 0.5, "--per-class", "none")
    assert list(copies(edition)) == [0, 1, 2, 3, 4]


def test_names_of_classes_that_yaml_takes_for_something_else_are_names(store, pool, tmp_path):
    version = write_generation(store, pool, probs(LABELS), names=["no", "1.0", "7"])
    edition, _ = run_balance(version, *write_thresholds(tmp_path, "no: 0.7\n1.0: 0.6\n7: 1e-1\n"), "--per-class", "none")
    assert list(copies(edition)) == [0, 1, 4]


def test_the_order_of_thresholds_and_of_classes_to_leave_out_does_not_matter(generation, tmp_path):
    first, _ = run_balance(
        generation, *write_thresholds(tmp_path, "ant: 0.7\nbee: 0.5\n"), "--exclude-class", "cat", "--exclude-class", "bee"
    )
    again = write_thresholds(tmp_path, "bee: 0.50\nant: 0.7\n")
    assert run_balance(generation, *again, *("--exclude-class", "bee") * 2, "--exclude-class", "cat")[0] == first


def test_a_range_has_its_upper_end_and_not_its_lower_one(generation):
    edition, text = run_balance(generation, "--confidence-range", 0.5, 0.75, "--per-class", "none")
    assert list(copies(edition)) == [1, 2, 4]
    assert dropped(edition) == {"outside_range": 3}
    assert "  dropped: 3 outside range\n" in text


def test_a_class_that_is_left_out_is_not_missed(generation):
    edition, text = run_balance(generation, "--exclude-class", "bee", "--per-class", 4)
    assert copies(edition) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert dropped(edition) == {"excluded_class": 2}
    assert edition.manifest.counts.classes_without_images == ["cat"]
    assert "4 entries per class, an image up to 1 time; fewer in 1 of 2 classes\n" in text
    assert "1 class without any image: cat\n" in text
    shown = nst(Store(generation.folder.parents[2]), "show", edition.ref).stdout
    assert "1 class without any image: cat\n" in shown
    assert "exclude_class            bee\n" in shown


def test_a_fraction_is_a_part_of_every_larger_one_and_depends_on_the_seed(generation):
    sampled = {}
    for fraction, seed in ((0.4, 0), (0.8, 0), (0.4, 1)):
        edition, _ = run_balance(generation, "--fraction", fraction, "--seed", seed, "--per-class", "none")
        sampled[fraction, seed] = set(copies(edition))
        assert dropped(edition).get("not_sampled", 0) == 6 - len(sampled[fraction, seed])
    assert 0 < len(sampled[0.4, 0]) < len(sampled[0.8, 0])
    assert sampled[0.4, 0] < sampled[0.8, 0]
    assert sampled[0.4, 1] != sampled[0.4, 0]


@pytest.mark.parametrize(("quantile", "quota"), [((), 2), (("--auto-quantile", 0.5), 2), (("--auto-quantile", 1), 4)])
def test_auto_takes_a_quantile_of_the_classes_that_have_images(generation, quantile, quota):
    edition, text = run_balance(generation, "--per-class", "auto", *quantile)
    assert edition.manifest.counts.quota == quota
    assert [edition.manifest.counts.per_class[name].copies for name in NAMES] == [quota, quota, 0]
    assert f"  {quota} entries per class" in text


def test_none_turns_balancing_off(generation):
    edition, text = run_balance(generation, "--per-class", "none")
    assert copies(edition) == dict.fromkeys(range(6), 1)
    assert edition.manifest.counts.quota is None
    assert "entries per class" not in text


def test_no_image_is_repeated_more_often_than_asked_for(generation):
    edition, text = run_balance(generation, "--per-class", 6, "--max-copies", 2)
    found = copies(edition)
    assert sorted(found[row] for row in range(4)) == [1, 1, 2, 2]
    assert (found[4], found[5]) == (2, 2)
    assert "6 entries per class, an image up to 2 times; fewer in 2 of 3 classes\n" in text


def test_the_number_of_copies_that_is_shown_is_that_of_the_image_with_the_most(generation):
    edition, text = run_balance(generation, "--per-class", 5)
    assert max(copies(edition).values()) == 3
    assert "5 entries per class, an image up to 3 times; fewer in 1 of 3 classes\n" in text


def test_the_official_method_takes_whole_bins_and_rounds_at_random(generation):
    seen = set()
    for seed in range(4):
        edition, text = run_balance(generation, "--method", "official", "--per-class", 3, "--seed", seed)
        found = copies(edition)
        assert {row: found.pop(row) for row in (0, 1, 2)} == {0: 1, 1: 1, 2: 1}
        assert set(found) == {4, 5}
        seen |= set(found.values())
        assert "about 3 entries per class, an image up to " in text
    assert seen == {1, 2}


def test_a_class_without_an_image_is_named_on_the_screen_and_in_the_manifest(generation):
    edition, text = run_balance(generation, "--min-confidence", 0.8)
    assert edition.manifest.counts.classes_without_images == ["bee", "cat"]
    assert "  2 classes without any image: bee, cat\n" in text
    result = json.loads(nst(Store(generation.folder.parents[2]), "balance", generation.ref, "--min-confidence", 0.8, "--json").stdout)
    assert result["ref"] == edition.ref
    assert result["counts"]["classes_without_images"] == ["bee", "cat"]


def test_the_same_command_again_says_that_the_edition_is_there(generation, store):
    words = ["balance", generation.ref, "--per-class", 3, "--embed-images"]
    first, second = nst(store, *words), nst(store, *words)
    assert second.stdout == first.stdout
    assert second.stderr == "flowers@gen-1.1 already exists: same generation, images and settings\n"


def test_the_command_is_the_function(generation, store, tmp_path):
    words = ["--exclude-class", "cat", "--fraction", 0.9, "--per-class", 3, "--max-copies", 2, "--seed", 5]
    edition, _ = run_balance(generation, *write_thresholds(tmp_path, "bee: 0.4"), *words)
    settings = BalanceSettings(
        class_min_confidence={"bee": 0.4}, exclude_class=("cat",), fraction=0.9, per_class=3, max_copies=2, seed=5, confidence_range=None
    )
    assert balance(store, generation, settings) == edition


def test_the_images_stand_in_the_edition_beside_their_labels(generation, pool, store, tmp_path):
    edition, _ = run_balance(generation, "--embed-images", "--per-class", 3)
    plain, _ = run_balance(generation, "--per-class", 3)
    assert (edition.ref, plain.ref) == ("flowers@gen-1.1", "flowers@gen-1.2")
    loaded = load_dataset(str(edition.folder), "balanced", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features["label"].names == NAMES
    for row in loaded:
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(decode(pool.read(row["id"]))))
    found = {row["id"]: row for row in table_rows(edition, "balanced")}
    for row in table_rows(plain, "balanced"):
        assert found[row["id"]] == row | {"image": {"bytes": pool.read(row["id"]), "path": row["key"]}}
    assert [row["id"] for row in table_rows(edition, "balanced")] != sorted(found)
    counts = plain.manifest.counts
    assert edition.manifest.counts.model_dump() == counts.model_dump() | {"shards": {"images": [counts.unique], "entries": [counts.copies]}}
    assert "1 file verified" in nst(store, "verify", edition.ref).stdout


def test_an_edition_with_images_is_shown_and_compared_like_any_other(generation, store):
    edition, plain = run_balance(generation, "--embed-images", "--per-class", 3)[0], run_balance(generation, "--per-class", 3)[0]
    shown = nst(store, "show", edition.ref).stdout
    assert "embed_images             True\n" in shown
    assert "  ant          4         3        3\n" in shown
    churn = json.loads(nst(store, "diff", edition.ref, plain.ref, "--json").stdout)
    assert {name: churn[name] for name in ("both", "only_before", "only_after", "changed", "copies_changed")} == {
        "both": 5,
        "only_before": 0,
        "only_after": 0,
        "changed": 0,
        "copies_changed": 0,
    }


@pytest.mark.parametrize("limit", [(), pytest.param(("--limit", 3), marks=pytest.mark.slow)])
def test_an_edition_with_images_is_labeled_again(generation, store, pool, tmp_path, limit):
    edition, _ = run_balance(generation, "--embed-images", "--per-class", 4)
    before = table_rows(edition, "balanced")[: 3 if limit else None]
    teacher = write_teacher(tmp_path / "teacher", NAMES)
    words = ["--teacher", teacher, "--batch-size", 4, "--rows-per-shard", 4]
    nst(store, "label", "--like", edition.ref, *words, *limit)
    nst(store, "label", pool.location, "--corpus", "whole", *words)
    by_key = {row["key"]: row for row in table_rows(store.open("whole@gen-1"))}
    after = table_rows(store.open("flowers@gen-2.1"), "balanced")
    assert len(after) == len(before)
    assert {row["id"]: row["copies"] for row in after} == {row["id"]: row["copies"] for row in before}
    for row in after:
        assert (row["image_hash"], row["label"]) == (by_key[row["key"]]["image_hash"], by_key[row["key"]]["label"])
        assert row["probs"] == pytest.approx(by_key[row["key"]]["probs"], abs=1e-3)


def test_a_student_trains_on_an_edition_with_images_without_the_pool(generation, store, pool, tmp_path):
    edition, _ = run_balance(generation, "--embed-images", "--per-class", 4)
    shutil.rmtree(pool.location)
    labeled = write_class_folders(tmp_path / "labeled", NAMES, 2)
    network = ["--model", "test_resnet", "--image-size", 16, "--epochs", 1, "--batch-size", 4, "--ratio", 2, "--workers", 0]
    words = ["train", "--labeled", labeled, "--pseudo", edition.ref, "--name", "student", *network]
    refused = CliRunner().invoke(app, [*map(str, words), "--pool", str(tmp_path), "--store", str(store.root)])
    assert (refused.exit_code, refused.stderr) == (2, f"nst: --pool {tmp_path}: {edition.ref} already contains its images; remove --pool\n")
    nst(store, *words)
    counts = store.open("student@gen-0").manifest.counts
    assert (counts.pseudo_labeled, counts.entries) == (6, 8)


def test_a_pool_that_moved_and_has_another_order_gives_the_same_edition_with_images(generation, store, pool, tmp_path):
    edition, _ = run_balance(generation, "--embed-images", "--per-class", 4)
    moved = write_pool(tmp_path / "moved", 3, 2)
    (moved / "list.txt").write_text("".join(f"{pool.key(row)}\n" for row in reversed(range(6))))
    elsewhere = Store(tmp_path / "elsewhere")
    again, _ = run_balance(
        write_generation(elsewhere, pool, probs(LABELS)), "--embed-images", "--per-class", 4, "--pool", moved / "list.txt"
    )
    assert again.manifest.digest == edition.manifest.digest
    assert pq.read_table(again.folder / "balanced").equals(pq.read_table(edition.folder / "balanced"))


RECIPE = """\
name: bugs
labeled: {source: labeled}
pool: {source: pool}
generations: [{model: test_resnet}, {model: test_resnet}]
select:
"""


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("class_min_confidence: {ant: 0.5, 7: 0.25}", {"class_min_confidence": {"ant": 0.5, "7": 0.25}}),
        ("exclude_class: [bee, 7]", {"exclude_class": ("7", "bee")}),
        ("confidence_range: [0.2, 0.5]", {"confidence_range": (0.2, 0.5)}),
        ("per_class: auto", {"per_class": "auto"}),
        ("per_class: none", {"per_class": "none"}),
        ("{per_class: auto, auto_quantile: 0.9}", {"per_class": "auto", "auto_quantile": 0.9}),
        ("{fraction: 0.1, method: official, max_copies: 9}", {"fraction": 0.1, "method": "official", "max_copies": 9}),
        ("{embed_images: true, shard_mb: 100}", {"embed_images": True, "shard_mb": 100}),
    ],
)
def test_a_recipe_takes_each_setting(tmp_path, line, settings):
    select = parse_recipe(f"{RECIPE}  {line}\n", tmp_path / "bugs.yaml").select.model_dump()
    assert {name: select[name] for name in settings} == settings


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["per_class: many"], "line 6: select.per_class: … from 1, 'auto' or 'none', found 'many'"),
        (["fraction: 0.5", "per_class: 2.5"], "line 7: select.per_class: … from 1, 'auto' or 'none', found 2.5"),
        (["per_class: yes"], "line 6: select.per_class: … from 1, 'auto' or 'none', found yes"),
        (
            ["class_min_confidence:", "  ant: 0.5", "  bee: 1.5"],
            "line 8: select.class_min_confidence.bee: … at most 1, found 1.5",
        ),
        (["class_min_confidence: {ant: yes}"], "line 6: select.class_min_confidence.ant: … 0 to 1, found yes"),
        (["class_min_confidence: {no: 0.5}"], "line 6: select.class_min_confidence: … one is false: …"),
        (["class_min_confidence: [0.5]"], "line 6: select.class_min_confidence: … class names … confidence each"),
        (["exclude_class: bee"], "line 6: select.exclude_class: … list of class names, found 'bee'"),
        (["confidence_range: 0.5"], "line 6: select.confidence_range: … 0 to 1, … found 0.5"),
        (["confidence_range: [0.5, 0.2]"], "line 6: select.confidence_range: … 0 to 1, the smaller … first"),
        (
            ["min_confidence: 0.4", "confidence_range: [0.2, 0.5]"],
            "line 5: select: `confidence_range` replaces `min_confidence` and `class_min_confidence`; remove …",
        ),
        (["exclude_classes: [bee]"], "line 6: select.exclude_classes: … did you mean exclude_class?"),
    ],
)
def test_a_wrong_setting_in_a_recipe_is_one_line_with_its_number(tmp_path, lines, says):
    text = RECIPE + "".join(f"  {line}\n" for line in lines)
    with pytest.raises(UsageError, match=r"bugs\.yaml, line ") as error:
        parse_recipe(text, tmp_path / "bugs.yaml")
    assert is_line(str(error.value), f"{tmp_path}/bugs.yaml, {says}…")


def test_a_recipe_with_a_class_that_nobody_knows_stops_before_its_first_network(store, tmp_path):
    write_class_folders(tmp_path / "labeled", NAMES, 2)
    write_pool(tmp_path / "pool", 1, 1)
    recipe = parse_recipe(f"{RECIPE}  exclude_class: [ent]\n", tmp_path / "bugs.yaml")
    with pytest.raises(UsageError, match=r"`exclude_class`:.*'ent'.*'ant'"):
        self_training(store, recipe)
    assert store.unfinished() == []


def test_a_recipe_selects_as_its_settings_say(tiny_store, tmp_path):
    _, labeled, pool = tiny_store
    select = {"per_class": "none", "min_confidence": 0, "exclude_class": ["cat"], "embed_images": True}
    parts = {
        "labeled": {"source": str(labeled)},
        "pool": {"source": str(pool)},
        "select": select,
        "generations": [TINY | {"epochs": 1}] * 2,
    }
    recipe = parse_recipe(json.dumps({"name": "bugs", **parts}), tmp_path / "bugs.yaml")
    edition = self_training(Store(tmp_path / "store"), recipe)[1].edition
    assert edition.manifest.counts.per_class["cat"].unique == 0
    assert edition.manifest.counts.copies == edition.manifest.counts.unique > 0
    assert table_rows(edition, "balanced")[0]["image"]["bytes"]

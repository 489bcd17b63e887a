"""The whole selection against plain Python and DuckDB, whatever the order of rows, the shards and the threads."""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selections import HASHES, NAMES, f32, held_out_hashes, label_frame, many_labels, place_in_order, select_rows

from nst_data.errors import NstError, UsageError
from nst_data.selection import cutoffs, selection
from nst_data.settings import BalanceSettings
from nst_data.tables import engines, hash_numbers, row_files
from nst_data.tables.engines import scan
from nst_data.tables.schema import SELECTION_COLUMNS, check_labels


def plain_reasons(rows, chosen, held_out, near):
    """Section 3.1, before any quota."""
    seen, found = set(), []
    for image, label, confidence in rows:
        low, high = chosen.confidence_range or (chosen.class_min_confidence.get(NAMES[label], chosen.min_confidence), 1)
        is_in_range = Fraction(low) < Fraction(confidence) <= Fraction(high) or bool(chosen.confidence_range and low == confidence == 0)
        holds = {
            "held_out": image in held_out,
            "near_held_out": image in near,
            "duplicate": image in seen,
            "excluded_class": NAMES[label] in chosen.exclude_class,
            "not_sampled": place_in_order(HASHES[image], chosen.seed, "fraction") >= Fraction(chosen.fraction),
            "outside_range" if chosen.confidence_range else "low_confidence": not is_in_range,
        }
        found.append(next((reason for reason, does in holds.items() if does), None))
        seen.add(image)
    return found


def plain_quota(chosen, counts):
    if chosen.per_class == "auto":
        share = Fraction(str(chosen.auto_quantile))
        return min((n for n in counts if sum(other <= n for other in counts) >= share * len(counts)), default=1)
    return None if chosen.per_class == "none" else chosen.per_class


def plain_selection(rows, chosen, held_out, near):
    """{id: copies} of what is in, and the reason of every row: the surest up to the quota, then copies dealt out in turns."""
    found = plain_reasons(rows, chosen, held_out, near)
    by_class = {}
    for index in sorted(range(len(rows)), key=lambda index: (-rows[index][2], HASHES[rows[index][0]], index)):
        if found[index] is None:
            by_class.setdefault(rows[index][1], []).append(index)
    quota, dealt = plain_quota(chosen, [len(of_class) for of_class in by_class.values()]), Counter()
    for of_class in by_class.values():
        found = ["over_quota" if index in of_class[quota or len(rows) :] else reason for index, reason in enumerate(found)]
        best = [(HASHES[rows[index][0]], index) for index in of_class[:quota]]
        turns = [index for _, index in sorted(best, key=lambda one: (place_in_order(one[0], chosen.seed, "copies"), one))]
        target = min(quota or len(best), len(best) * (chosen.max_copies or 100))
        dealt.update(turns[turn % len(turns)] for turn in range(target))
    return dict(dealt), found


CONFIDENCES = [0.0, 2.0**-29, 0.2, f32(0.3, -1), f32(0.3), 0.5, f32(0.5, 1), f32(0.9), f32(1, -1), 1.0]
some_images = st.sets(st.integers(0, 7), max_size=2)
some_rows = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3), st.sampled_from(CONFIDENCES)), min_size=6, max_size=16)
narrowing = st.sampled_from([0, 1, 2, cutoffs._MAX_SORTED_ROWS])


@st.composite
def some_settings(draw):
    chosen = {
        "per_class": draw(st.sampled_from([1, 2, 3, 9, "auto", "auto", "none"])),
        "exclude_class": draw(st.sampled_from([(), (), ("bee",), ("dog", "ant")])),
        "fraction": draw(st.sampled_from([1.0, 1.0, 0.6])),
        "seed": draw(st.integers(0, 2**31 - 1)),
    }
    if chosen["per_class"] == "auto":
        chosen["auto_quantile"] = draw(st.sampled_from([0.01, 0.25, 0.5, 0.55, 1.0]))
    if chosen["per_class"] != "none":
        chosen["max_copies"] = draw(st.sampled_from([None, 1, 2]))
    if draw(st.booleans()):
        chosen["confidence_range"] = draw(st.sampled_from([(0.0, 0.5), (0.3, 0.5), (0.0, 1.0), (f32(0.3), f32(0.9))]))
    else:
        chosen["min_confidence"] = draw(st.sampled_from([0.0, 0.3, f32(0.3), 0.5]))
        chosen["class_min_confidence"] = draw(st.sampled_from([{}, {"ant": 0.5}, {"cat": 0.0, "dog": 1.0, "bee": 0.3}]))
    return BalanceSettings(**chosen)


@st.composite
def some_order(draw):
    """What puts rows into another order, as some tables that were made elsewhere have it, or leaves some `id`s out, as `nst label` does."""
    shuffle = draw(st.none() | st.randoms())
    if shuffle is None:
        gaps = draw(st.lists(st.sampled_from([0, 0, 1, 5]), min_size=16, max_size=16))
        return lambda rows: (rows, [index + sum(gaps[: index + 1]) for index in range(len(rows))])
    return lambda rows: (rows[shuffle.sample(range(len(rows)), len(rows))], range(len(rows)))


@settings(max_examples=60, deadline=None)
@given(some_rows, some_settings(), some_images, some_images, narrowing, some_order(), st.sampled_from([2, 2**20]))
def test_the_selection_equals_that_of_plain_python_in_any_order_of_rows(rows, chosen, held_out, near, ranked_rows, order, batch_rows):
    ordered, ids = order(label_frame(rows).collect())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutoffs, "_MAX_SORTED_ROWS", ranked_rows)
        for module in (engines, hash_numbers, row_files):
            patch.setattr(module, "BATCH_ROWS", batch_rows)
        numbered = ordered.with_columns(pl.col("id").replace_strict(range(len(rows)), ids, return_dtype=pl.Int64))
        table, dropped, per_class = select_rows(numbered.lazy(), chosen, held_out, near)
    table = table.with_columns(pl.col("id").replace_strict(ids, range(len(rows)), return_dtype=pl.Int64))
    dealt, found = plain_selection(rows, chosen, held_out, near)
    assert table["id"].to_list() == sorted(dealt)
    assert table["copies"].to_list() == [dealt[index] for index in sorted(dealt)]
    assert table["label"].to_list() == [rows[index][1] for index in sorted(dealt)]
    assert table["duplicates"].to_list() == [sum(other[0] == rows[index][0] for other in rows) for index in sorted(dealt)]
    assert dropped == Counter((row[1], reason) for row, reason in zip(rows, found, strict=True) if reason)
    of_class = {label: [index for index in dealt if rows[index][1] == label] for label in {rows[index][1] for index in dealt}}
    assert per_class == {label: [len(indices), sum(dealt[index] for index in indices)] for label, indices in of_class.items()}


@settings(max_examples=40, deadline=None)
@given(some_rows, some_settings(), some_images, some_images)
def test_every_row_has_the_first_reason_that_holds_for_it(rows, chosen, held_out, near):
    with tempfile.TemporaryDirectory() as work:
        native = selection.with_reasons(label_frame(rows), chosen, NAMES, held_out_hashes(held_out, near), Path(work)).to_native()
        table = native.sort("id").collect()
    assert table["reason"].to_list() == plain_reasons(rows, chosen, held_out, near)
    assert table["duplicates"].to_list() == [sum(other[0] == row[0] for other in rows) for row in rows]


@pytest.mark.parametrize(("label", "confidence"), [(0, None), (0, 1.5), (0, -0.1), (4, 0.5), (-1, 0.5), (None, 0.5)], ids=str)
def test_labels_that_no_teacher_gives_are_an_error_that_shows_one(label, confidence):
    shown = None if confidence is None else f32(confidence)
    expected = (
        f"^bugs@gen-0: expected labels from 0 to 3 and confidences from 0 to 1, found 1 row .* row 1: label {label}, confidence {shown};"
    )
    with pytest.raises(NstError, match=expected):
        select_rows(label_frame([(0, 0, 0.9), (1, label, confidence), (2, 0, 0.9)]), BalanceSettings(), held_out={1})


def test_a_quota_of_zero_is_an_error_of_one_line():
    with pytest.raises(UsageError, match=r"`per_class`:.*from 1, 'auto' or 'none', found 0"):
        BalanceSettings(per_class=0)


def test_no_labels_give_an_empty_selection():
    for chosen in (BalanceSettings(), BalanceSettings(method="official"), BalanceSettings(per_class="auto")):
        table, dropped, per_class = select_rows(label_frame([]), chosen)
        assert (table.height, dropped, per_class) == (0, {}, {})


@pytest.mark.parametrize("ranked_rows", [cutoffs._MAX_SORTED_ROWS, 100])
def test_duckdb_selects_the_same_rows_of_a_larger_table(ranked_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(cutoffs, "_MAX_SORTED_ROWS", ranked_rows)
    many_labels(20_000, classes=50).write_parquet(tmp_path / "labels.parquet")
    expected = duckdb.sql(f"""
        with images as (
            select *, count(*) over (partition by image_hash) duplicates, row_number() over (partition by image_hash order by id) place
            from read_parquet('{tmp_path / "labels.parquet"}'))
        select id, label, duplicates from images where place = 1 and confidence::double > 0.3
        qualify row_number() over (partition by label order by confidence desc, image_hash, id) <= 200 order by id
        """).fetchall()
    labels = scan([tmp_path / "labels.parquet"], SELECTION_COLUMNS)
    table, dropped, per_class = select_rows(labels, BalanceSettings(per_class=200), names=[str(label) for label in range(50)])
    assert table.select("id", "label", "duplicates").rows() == expected
    assert sum(dropped.values()) + len(expected) == 20_000
    assert {copies for _, copies in per_class.values()} == {200}


FILTERED = {"per_class": 60, "fraction": 0.9, "exclude_class": ("2",), "class_min_confidence": {"3": 0.6}, "seed": 5}


@pytest.mark.parametrize("method", ["exact", "official"])
def test_shards_their_order_and_that_of_rows_change_nothing(method, tmp_path):
    labels, chosen = many_labels(3000, classes=12), BalanceSettings(method=method, **FILTERED)
    names = [str(label) for label in range(12)]
    labels.write_parquet(tmp_path / "whole.parquet")
    shuffled = labels.sample(fraction=1, shuffle=True, seed=1)
    for shard in range(7):
        shuffled[shard::7].write_parquet(tmp_path / f"shard-{shard}.parquet", row_group_size=50)
    whole = select_rows(scan([tmp_path / "whole.parquet"], SELECTION_COLUMNS), chosen, names=names)
    shards = select_rows(scan(sorted(tmp_path.glob("shard-*.parquet"), reverse=True), SELECTION_COLUMNS), chosen, names=names)
    assert whole[0].equals(shards[0])
    assert whole[1:] == shards[1:]
    assert {reason for _, reason in whole[1]} == {"duplicate", "excluded_class", "not_sampled", "low_confidence", "over_quota"}


def test_a_folder_may_have_a_name_that_looks_like_a_pattern(tmp_path):
    (folder := tmp_path / "labels [1]").mkdir()
    many_labels(50, classes=3).write_parquet(folder / "labels.parquet")
    found = selection.select(
        scan([folder / "labels.parquet"], SELECTION_COLUMNS), BalanceSettings(per_class=3), NAMES, {}, folder / "work", "bugs@gen-0"
    )
    assert sum(len(pl.read_parquet(file, glob=False)) for file in found.files) == 9


THREADS = """
import sys
from pathlib import Path
import polars as pl
from nst_data.selection.selection import select
from nst_data.settings import BalanceSettings
folder = Path(sys.argv[1])
names = [str(label) for label in range(12)]
for chosen in sys.argv[2:]:
    settings = BalanceSettings.model_validate_json(chosen)
    work = folder / str(pl.thread_pool_size()) / settings.method
    found = select(pl.scan_parquet(folder / "labels.parquet"), settings, names, {}, work, "bugs@gen-0")
    print(found.quota, pl.read_parquet(found.files).rows(), sorted(found.selected_counts.rows()), sorted(found.dropped_counts.rows()))
"""


@pytest.mark.slow
def test_the_number_of_threads_changes_nothing(tmp_path):
    many_labels(20_000, classes=12).write_parquet(tmp_path / "labels.parquet")
    asked = [BalanceSettings(method=method, **FILTERED).model_dump_json() for method in ("exact", "official")]
    command = [sys.executable, "-c", THREADS, str(tmp_path), *asked]
    one, four = (
        subprocess.run(command, env=os.environ | {"POLARS_MAX_THREADS": threads}, capture_output=True, text=True, check=True).stdout
        for threads in ("1", "4")
    )
    assert one == four
    assert len(one) > 20_000
    assert {folder.name for folder in tmp_path.iterdir() if folder.is_dir()} == {"1", "4"}


def test_a_missing_column_is_an_error_that_names_it():
    with pytest.raises(NstError, match=r"pseudo_labels: column `confidence` is missing.*Float32; found id, image_hash, label"):
        check_labels(label_frame([(0, 0, 0.5)]).drop("confidence"))


@pytest.mark.parametrize(("column", "wrong", "expected"), [("confidence", pl.String, "Float32"), ("label", pl.Int32, "Int64")])
def test_a_column_of_another_type_is_an_error_that_names_both(column, wrong, expected):
    with pytest.raises(NstError, match=rf"mine: column `{column}` is {wrong}, expected {expected}"):
        check_labels(label_frame([(0, 0, 0.5)]).cast({column: wrong}), "mine")


def test_a_table_with_more_columns_passes():
    table = label_frame([(0, 0, 0.5)]).with_columns(extra=1)
    assert check_labels(table) is table


def test_chosen_rows_are_not_read_again(tmp_path, monkeypatch):
    """Once for the hashes, once to count, once for the few rows where classes end, once for what decides ties among these."""
    many_labels(20_000, 4).write_parquet(tmp_path / "labels.parquet")
    read = []

    def counted(rows):
        read.append(len(rows))
        return rows

    labels = pl.scan_parquet(tmp_path / "labels.parquet").map_batches(counted, streamable=True, schema=SELECTION_COLUMNS)
    select_rows(labels, BalanceSettings(per_class=1_000, max_copies=2), names=NAMES)
    assert sum(read) == 4 * 20_000

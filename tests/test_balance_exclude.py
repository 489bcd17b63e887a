"""What `nst balance --exclude` drops, counts and says."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nst_cli.main import app
from test_editions import write_generation
from test_overlap import COPIES, encoded, photographs, resized
from typer.testing import CliRunner
from wording import is_line, mentions

from nst_data.errors import NstError
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.store import Store

PHOTOGRAPHS = photographs()[:6]
PROBS = np.tile(np.array([[0.9, 0.1, 0.0]], np.float32), (12, 1))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def write(folder, **images):
    folder.mkdir(exist_ok=True)
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    return open_source(str(folder))


@pytest.fixture
def pool(tmp_path):
    """Rows 0 and 3 hold photograph 0 in half the size, row 1 photograph 1, row 2 photograph 2, row 4 photograph 3 as a JPEG."""
    first, second, third, fourth = PHOTOGRAPHS[:4]
    small = encoded(resized(first, 0.5))
    return write(
        tmp_path / "pool", a=small, b=encoded(second), c=encoded(third), d=small, e=COPIES["JPEG 50"](fourth), f=encoded(PHOTOGRAPHS[4])
    )


@pytest.fixture
def test_set(tmp_path):
    """Photographs 0, 1, 3 and 5."""
    return write(tmp_path / "test", **{name: encoded(PHOTOGRAPHS[number]) for name, number in zip("wxyz", (0, 1, 3, 5), strict=True)})


def _as_text(table):
    return table.set_column(table.schema.get_field_index("phash"), "phash", table["phash"].cast(pa.string()))


def kept(edition):
    return pl.read_parquet(edition.folder / "balanced" / "*.parquet")["id"].to_list()


def test_copies_of_held_out_images_are_dropped_and_counted_apart_from_equal_bytes(store, pool, test_set):
    edition = balance(store, write_generation(store, pool, PROBS), BalanceSettings(per_class=9), exclude=[test_set])
    counts = edition.manifest.counts
    assert kept(edition) == [2, 5]
    assert {reason: rows for reason, rows in counts.dropped.items() if rows} == {"held_out": 1, "near_held_out": 3}
    assert counts.near_duplicates.model_dump() == {"compared": 2, "unreadable": 0}
    assert counts.labeled == sum(counts.dropped.values()) + counts.unique
    assert "near\\-duplicate of excluded: 3" in (edition.folder / "README.md").read_text()


def test_equal_bytes_alone_are_dropped_where_that_is_asked_for(store, pool, test_set):
    version = write_generation(store, pool, PROBS)
    shutil.rmtree(pool.location)  # nothing is compared
    edition = balance(store, version, BalanceSettings(per_class=9, exact_overlap_only=True), exclude=[test_set])
    assert edition.manifest.counts.dropped["near_held_out"] == 0
    assert kept(edition) == [0, 2, 4, 5]


def test_how_labels_and_held_out_images_are_ordered_and_divided_changes_nothing(tmp_path, pool, test_set):
    parts = [write(tmp_path / name, **{name: test_set.read(row)}) for row, name in enumerate("wxyz")]
    found = []
    for rows_per_shard, exclude in ((1, parts), (2, parts[::-1]), (6, [test_set])):
        store = Store(tmp_path / str(rows_per_shard))
        version = write_generation(store, pool, PROBS, rows_per_shard=rows_per_shard)
        edition = balance(store, version, BalanceSettings(per_class=9), exclude=exclude)
        found.append((pl.read_parquet(edition.folder / "balanced" / "*.parquet").rows(), edition.manifest.counts))
    assert found[0] == found[1] == found[2]


def test_balancing_again_finds_the_edition_there_even_where_the_pool_is_gone(store, pool, test_set):
    version = write_generation(store, pool, PROBS)
    first = balance(store, version, BalanceSettings(), exclude=[test_set])
    shutil.rmtree(pool.location)
    assert balance(store, version, BalanceSettings(), exclude=[test_set]) == first


def test_held_out_images_that_cannot_be_read_or_decoded_are_passed_over(store, pool, test_set, tmp_path):
    write(tmp_path / "test", u=b"no image", v=encoded(PHOTOGRAPHS[0])[:300], zz=encoded(PHOTOGRAPHS[5]))
    test_set = open_source(test_set.location)
    (tmp_path / "test" / "zz.png").unlink()
    edition = balance(store, write_generation(store, pool, PROBS), BalanceSettings(per_class=9), exclude=[test_set])
    assert kept(edition) == [2, 5]


def test_a_pool_that_is_gone_is_an_error_that_says_what_to_do(store, pool, test_set):
    version = write_generation(store, pool, PROBS)
    shutil.rmtree(pool.location)
    what = r"flowers@gen-1 was made from it, and 2 images that may be near-duplicates of excluded ones must be compared"
    message = rf"no such file or folder.*{what} \(`exact_overlap_only` keeps them\); pass its current location with `pool`$"
    with pytest.raises(NstError, match=message):
        balance(store, version, BalanceSettings(), exclude=[test_set])
    assert store.unfinished() == []


def test_a_pool_that_is_gone_is_not_missed_where_nothing_resembles_a_held_out_image(store, pool, tmp_path):
    version = write_generation(store, pool, PROBS)
    shutil.rmtree(pool.location)
    edition = balance(store, version, BalanceSettings(per_class=9), exclude=[write(tmp_path / "other", z=encoded(PHOTOGRAPHS[5]))])
    assert edition.manifest.counts.unique == 5


def test_a_pool_in_another_place_and_order_is_searched_by_key(store, pool, test_set, tmp_path):
    version = write_generation(store, pool, PROBS)
    moved = Path(pool.location).rename(tmp_path / "moved")
    (moved / "list.txt").write_text("".join(f"{name}.png\n" for name in "fedcba"))
    elsewhere = open_source(str(moved / "list.txt"))
    assert elsewhere.key(0) == "f.png"
    assert kept(balance(store, version, BalanceSettings(per_class=9), exclude=[test_set], pool=elsewhere)) == [2, 5]


def test_a_pool_of_parquet_files_is_searched(store, pool, test_set, tmp_path):
    pq.write_table(pa.table({"image": [pool.read(row) for row in range(6)]}), tmp_path / "pool.parquet", row_group_size=2)
    parquet = open_source(str(tmp_path / "pool.parquet"))
    assert kept(balance(store, write_generation(store, parquet, PROBS), BalanceSettings(per_class=9), exclude=[test_set])) == [2, 5]


@pytest.mark.parametrize(
    "change", [Path.unlink, lambda path: path.write_bytes(encoded(PHOTOGRAPHS[4])), lambda path: path.write_bytes(b"")]
)
def test_a_pool_image_that_vanished_or_changed_is_kept_and_counted(store, pool, test_set, change):
    version = write_generation(store, pool, PROBS)
    change(Path(pool.location, "e.png"))
    if Path(pool.location, "e.png").exists():
        pool = open_source(pool.location)  # else the size in the listing tells
    edition = balance(store, version, BalanceSettings(per_class=9), exclude=[test_set], pool=pool)
    assert edition.manifest.counts.near_duplicates.model_dump() == {"compared": 2, "unreadable": 1}
    assert kept(edition) == [2, 4, 5]


def test_the_command_takes_the_pool_from_where_it_is_now_and_warns_of_what_it_could_not_read(store, pool, test_set, tmp_path):
    write_generation(store, pool, PROBS)
    elsewhere = Path(pool.location).rename(tmp_path / "elsewhere")
    words = ["balance", "flowers@gen-1", "--exclude", test_set.location, "--store", str(store.root)]
    gone = CliRunner().invoke(app, words)
    assert (gone.exit_code, gone.stderr.count("pass its current location with --pool")) == (1, 1)
    (elsewhere / "e.png").write_bytes(b"")
    done = CliRunner().invoke(app, [*words, "--pool", str(elsewhere)])
    assert done.exit_code == 0, done.output
    assert "dropped: 1 excluded, 2 near-duplicate of excluded\n" in done.stdout
    assert mentions(done.stdout, "warning: 1 candidate near-duplicates … not be read")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--pool=here", "--pool … --exclude SOURCE and --embed-images; add one …, or remove --pool"),
        ("--image-column=here", "--image-column … --exclude SOURCE; add it, or remove --image-column"),
        ("--exact-overlap-only", "--exact-overlap-only requires --exclude SOURCE"),
    ],
)
def test_options_of_the_overlap_want_a_source_to_exclude(store, pool, option, says):
    write_generation(store, pool, PROBS)
    result = CliRunner().invoke(app, ["balance", "flowers@gen-1", option, "--store", str(store.root)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert is_line(result.stderr.removesuffix("\n"), f"nst: {says}")


@pytest.mark.parametrize(("change", "found"), [(lambda table: table.drop(["phash"]), "missing"), (_as_text, "string")])
def test_labels_without_perceptual_hashes_are_an_error_that_names_the_column(store, pool, test_set, change, found):
    version = write_generation(store, pool, PROBS, rows_per_shard=6)
    (file,) = (version.folder / "pseudo_labels").iterdir()
    pq.write_table(change(pq.read_table(file)), file)
    with pytest.raises(NstError, match=f"pseudo_labels/train-00000-of-00001.parquet: column `phash` is {found}, expected int64"):
        balance(store, version, BalanceSettings(), exclude=[test_set])

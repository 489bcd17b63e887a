"""Near-duplicates: the lookup of hashes against brute force, what is found among real images, and what `balance` makes of it."""

import io
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nst_cli.main import app
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from test_editions import write_generation
from typer.testing import CliRunner

from nst_data import hash_index
from nst_data.digits import write_digits
from nst_data.editions import balance
from nst_data.errors import NstError
from nst_data.hash_index import MAX_DISTANCE, HashIndex
from nst_data.images import decode, phash, phash_thumbnail
from nst_data.overlap import DECODED_SIDE_PX, HeldOut, Looks
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store import Store

# --- hashes


def distances(queries, hashes):
    """Of all pairs, by brute force; shape (queries, hashes)."""
    return np.bitwise_count(queries.view(np.uint64)[:, None] ^ hashes.view(np.uint64))


def spread(seed, count, favourites, bits):
    """Hashes a few bits away from a few favourites, which share most of their bands with one another."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 2**64, max(1, favourites), dtype=np.uint64)[rng.integers(0, max(1, favourites), count)]
    for _ in range(bits):
        found = found ^ (np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64))
    return found.view(np.int64)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.integers(0, 80), st.integers(0, 60), st.integers(1, 5), st.integers(0, 10), st.sampled_from([2, 2**20]))
@example(0, 40, 40, 1, 0, 1)  # one hash, many times
def test_the_lookup_finds_exactly_the_pairs_within_the_distance(seed, held, asked, favourites, bits, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hash_index, "_AT_ONCE", at_once)
        hashes, queries = (spread(seed, held, favourites, bits), spread(seed, asked, favourites, bits // 2))
        index, near = HashIndex(hashes), distances(queries, hashes) <= MAX_DISTANCE
        assert len(index) == held
        assert index.any_near(queries).tolist() == near.any(axis=1).tolist()
        assert [index.near(int(query)).tolist() for query in queries] == [np.flatnonzero(row).tolist() for row in near]


@pytest.mark.parametrize("flipped", [(0, 16, 32, 48), (0, 1, 2, 3, 4, 5, 6), (0, 1, 16, 17, 32, 33, 48), (63, 62, 47, 46, 31, 30, 15)])
def test_bits_that_differ_in_every_band_hide_no_near_hash(flipped):
    near = np.array([np.bitwise_xor.reduce(np.uint64(1) << np.array(flipped, np.uint64))]).view(np.int64)
    assert HashIndex(near).any_near(np.zeros(1, np.int64)).tolist() == [True]


def test_a_hash_that_is_popular_on_both_sides_is_not_compared_pair_by_pair():
    popular, other = np.full(200_000, 12345), np.arange(1, 2_000) << 20
    index = HashIndex(np.concatenate([popular, other]))
    assert index.any_near(popular).all()  # 40 billion pairs
    assert index.near(12345)[:200_000].tolist() == list(range(200_000))


# --- real images, and images like photographs


def digits(side_px):
    scans = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    return [Image.fromarray(scan).convert("RGB").resize((side_px, side_px), Image.Resampling.BICUBIC) for scan in scans]


def photographs(side_px=96):
    """Pieces of scikit-learn's two photographs that are no plain sky."""
    pieces = [
        photograph[top : top + side_px, left : left + side_px]
        for photograph in load_sample_images().images
        for top in range(0, photograph.shape[0] - side_px, side_px)
        for left in range(0, photograph.shape[1] - side_px, side_px)
    ]
    return [Image.fromarray(piece) for piece in pieces if piece.std(axis=(0, 1)).min() > 12]


def generated(count, side_px=96):
    """Colored noise whose amplitude falls with frequency, as that of photographs does."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side_px)[:, None], np.fft.fftfreq(side_px)[None]) + 1 / side_px
    waves = np.fft.fft2(rng.normal(size=(count, 3, side_px, side_px))) / frequency**1.3
    pixels = np.fft.ifft2(waves).real
    pixels = 128 + 45 * (pixels - pixels.mean(axis=(2, 3), keepdims=True)) / pixels.std(axis=(2, 3), keepdims=True)
    return [Image.fromarray(one) for one in pixels.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)]


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def resized(image, factor, resampling=Image.Resampling.BICUBIC):
    return image.resize((round(image.width * factor), round(image.height * factor)), resampling)


def brighter(image, factor):
    return Image.fromarray((np.asarray(image, np.float32) * factor).clip(0, 255).round().astype(np.uint8))


COPIES = {
    "half the size": lambda image: encoded(resized(image, 0.5, Image.Resampling.BILINEAR)),
    "three quarters of the size": lambda image: encoded(resized(image, 0.75, Image.Resampling.LANCZOS)),
    "one and a half of the size": lambda image: encoded(resized(image, 1.5)),
    "JPEG 50": lambda image: encoded(image, "JPEG", quality=50),
    "JPEG 95": lambda image: encoded(image, "JPEG", quality=95),
    "5% brighter": lambda image: encoded(brighter(image, 1.05)),
    "5% darker": lambda image: encoded(brighter(image, 0.95)),
}
IMAGES = {"digits": digits(32)[::30], "photographs": photographs(), "generated": generated(40)}


def looked_at(images):
    thumbnails = np.stack([phash_thumbnail(decode(image, DECODED_SIDE_PX)) for image in images])
    return phash(thumbnails), Looks.of(thumbnails)


def held_out(images):
    """These images as HeldOut.read gives them."""
    phashes, looks = looked_at(images)
    return HeldOut(frozenset(), looks, HashIndex(phashes))


def found(images, held):
    """Whether each image shows what one of the held-out ones shows."""
    phashes, looks = looked_at(images)
    return np.array([held.show(looks.taken(slice(row, row + 1)), int(phashes[row])) for row in range(len(images))])


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("kind", IMAGES)
def test_of_changed_copies_95_percent_or_more_are_found(kind, copy):
    held = held_out([encoded(image) for image in IMAGES[kind]])
    assert len(held.index) >= 30
    assert found([COPIES[copy](image) for image in IMAGES[kind]], held).mean() >= 0.95


def test_of_distinct_digits_fewer_than_1_in_1000_are_called_duplicates_of_other_digits():
    """All scans of the demo, each against all others: the same ten shapes in the same place, 8 pixels wide."""
    phashes, looks = looked_at([encoded(image) for image in digits(8)])
    index = HashIndex(phashes)
    candidates, called = 0, 0
    for row in range(len(phashes)):
        others = index.near(int(phashes[row]))
        others = others[others != row]
        candidates += len(others) > 0
        called += bool(looks.taken(others).resemble(looks.taken(slice(row, row + 1))).any())
    assert candidates > 100, "hashes alone do not tell digits apart"
    assert called < len(phashes) / 1000


@pytest.mark.parametrize("kind", ["photographs", "generated"])
def test_distinct_photographs_are_not_called_duplicates(kind):
    images = [encoded(image) for image in IMAGES[kind]]
    assert not found(images[::2], held_out(images[1::2])).any()


def test_the_demos_digits_are_kept(tmp_path):
    write_digits(tmp_path / "digits", 0)
    held = HeldOut.read([open_source(str(tmp_path / "digits" / part)) for part in ("test", "labeled")], near=True)
    pool = open_source(str(tmp_path / "digits" / "pool"))
    assert (len(held.index), len(pool)) == (600, 1197)
    assert found([pool.read(row) for row in range(len(pool))], held).sum() <= 1


def test_the_same_shape_in_another_color_is_another_image():
    shape = np.asarray(generated(1)[0]).mean(axis=2, keepdims=True)
    red, green = (encoded(Image.fromarray((shape * tint).astype(np.uint8))) for tint in ([1, 0.4, 0.4], [0.4, 0.65, 0.4]))
    assert found([red, green], held_out([red])).tolist() == [True, False]


def test_plain_images_are_no_near_duplicates_of_one_another(tmp_path):
    for level in (60, 61, 200):
        Image.new("RGB", (32, 32), (level, level, level)).save(tmp_path / f"{level}.png")
    held = HeldOut.read([open_source(str(tmp_path))], near=True)
    assert (len(held.image_hashes), len(held.index)) == (3, 0)


def test_how_an_image_is_compared_does_not_depend_on_its_company():
    images = [encoded(image) for image in IMAGES["photographs"]]
    phashes, looks = looked_at(images)
    for row, image in enumerate(images):
        alone = looked_at([image])
        assert alone[0][0] == phashes[row]
        assert all(np.array_equal(one[0], many[row]) for one, many in zip(alone[1], looks, strict=True))


def test_any_number_of_threads_reads_the_same(tmp_path):
    pq.write_table(pa.table({"image": [encoded(image) for image in digits(8)[:150]]}), tmp_path / "digits.parquet")
    source = open_source(str(tmp_path / "digits.parquet"))
    one, three = (HeldOut.read([source], True, threads=threads) for threads in (1, 3))
    assert one.image_hashes == three.image_hashes
    assert all(np.array_equal(a, b) for a, b in zip(one.looks, three.looks, strict=True))


# --- balance


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
    edition = balance(store, write_generation(store, pool, PROBS), BalanceSettings(per_class=9), [test_set])
    counts = edition.manifest.counts
    assert kept(edition) == [2, 5]
    assert counts["dropped"] == {"held_out": 1, "near_held_out": 3, "duplicate": 0, "low_confidence": 0, "over_quota": 0}
    assert counts["near_duplicates"] == {"compared": 2, "unreadable": 0}
    assert counts["labeled"] == sum(counts["dropped"].values()) + counts["unique"]
    assert "near\\_held\\_out: 3" in (edition.folder / "README.md").read_text()


def test_equal_bytes_alone_are_dropped_where_that_is_asked_for(store, pool, test_set):
    version = write_generation(store, pool, PROBS)
    shutil.rmtree(pool.location)  # nothing is compared
    edition = balance(store, version, BalanceSettings(per_class=9, exact_overlap_only=True), [test_set])
    assert edition.manifest.counts["dropped"]["near_held_out"] == 0
    assert kept(edition) == [0, 2, 4, 5]


def test_how_labels_and_held_out_images_are_ordered_and_divided_changes_nothing(tmp_path, pool, test_set):
    parts = [write(tmp_path / name, **{name: test_set.read(row)}) for row, name in enumerate("wxyz")]
    found = []
    for rows_per_shard, exclude in ((1, parts), (2, parts[::-1]), (6, [test_set])):
        store = Store(tmp_path / str(rows_per_shard))
        version = write_generation(store, pool, PROBS, rows_per_shard=rows_per_shard)
        edition = balance(store, version, BalanceSettings(per_class=9), exclude)
        found.append((pl.read_parquet(edition.folder / "balanced" / "*.parquet").rows(), edition.manifest.counts))
    assert found[0] == found[1] == found[2]


def test_balancing_again_finds_the_edition_there_even_where_the_pool_is_gone(store, pool, test_set):
    version = write_generation(store, pool, PROBS)
    first = balance(store, version, BalanceSettings(), [test_set])
    shutil.rmtree(pool.location)
    assert balance(store, version, BalanceSettings(), [test_set]) == first


def test_held_out_images_that_cannot_be_read_or_decoded_are_passed_over(store, pool, test_set, tmp_path):
    write(tmp_path / "test", u=b"no image", v=encoded(PHOTOGRAPHS[0])[:300], zz=encoded(PHOTOGRAPHS[5]))
    test_set = open_source(test_set.location)
    (tmp_path / "test" / "zz.png").unlink()
    edition = balance(store, write_generation(store, pool, PROBS), BalanceSettings(per_class=9), [test_set])
    assert kept(edition) == [2, 5]


def test_a_pool_that_is_gone_is_an_error_that_says_what_to_do(store, pool, test_set):
    version = write_generation(store, pool, PROBS)
    shutil.rmtree(pool.location)
    message = (
        r"no such file or folder.*2 images of flowers@gen-1 may be near-duplicates.*--pool says where.*--exact-overlap-only keeps them"
    )
    with pytest.raises(NstError, match=message):
        balance(store, version, BalanceSettings(), [test_set])
    assert store.unfinished() == []


def test_a_pool_that_is_gone_is_not_missed_where_nothing_resembles_a_held_out_image(store, pool, tmp_path):
    version = write_generation(store, pool, PROBS)
    shutil.rmtree(pool.location)
    edition = balance(store, version, BalanceSettings(per_class=9), [write(tmp_path / "other", z=encoded(PHOTOGRAPHS[5]))])
    assert edition.manifest.counts["unique"] == 5


def test_a_pool_in_another_place_and_order_is_searched_by_key(store, pool, test_set, tmp_path):
    version = write_generation(store, pool, PROBS)
    moved = Path(pool.location).rename(tmp_path / "moved")
    (moved / "list.txt").write_text("".join(f"{name}.png\n" for name in "fedcba"))
    elsewhere = open_source(str(moved / "list.txt"))
    assert elsewhere.key(0) == "f.png"
    assert kept(balance(store, version, BalanceSettings(per_class=9), [test_set], pool=elsewhere)) == [2, 5]


def test_a_pool_of_parquet_files_is_searched(store, pool, test_set, tmp_path):
    pq.write_table(pa.table({"image": [pool.read(row) for row in range(6)]}), tmp_path / "pool.parquet", row_group_size=2)
    parquet = open_source(str(tmp_path / "pool.parquet"))
    assert kept(balance(store, write_generation(store, parquet, PROBS), BalanceSettings(per_class=9), [test_set])) == [2, 5]


@pytest.mark.parametrize(
    "change", [Path.unlink, lambda path: path.write_bytes(encoded(PHOTOGRAPHS[4])), lambda path: path.write_bytes(b"")]
)
def test_a_pool_image_that_vanished_or_changed_is_kept_and_counted(store, pool, test_set, change):
    version = write_generation(store, pool, PROBS)
    change(Path(pool.location, "e.png"))
    if Path(pool.location, "e.png").exists():
        pool = open_source(pool.location)  # else the size in the listing tells
    edition = balance(store, version, BalanceSettings(per_class=9), [test_set], pool=pool)
    assert edition.manifest.counts["near_duplicates"] == {"compared": 2, "unreadable": 1}
    assert kept(edition) == [2, 4, 5]


def test_the_command_takes_the_pool_from_where_it_is_now_and_warns_of_what_it_could_not_read(store, pool, test_set, tmp_path):
    write_generation(store, pool, PROBS)
    elsewhere = Path(pool.location).rename(tmp_path / "elsewhere")
    words = ["balance", "flowers@gen-1", "--exclude", test_set.location, "--store", str(store.root)]
    gone = CliRunner().invoke(app, words)
    assert (gone.exit_code, gone.stderr.count("--pool says where they are now")) == (1, 1)
    (elsewhere / "e.png").write_bytes(b"")
    done = CliRunner().invoke(app, [*words, "--pool", str(elsewhere)])
    assert done.exit_code == 0, done.output
    assert "dropped: 1 held out, 2 near held out, 0 duplicate" in done.stdout
    assert "warning: 1 that may be near-duplicates could not be read" in done.stdout


@pytest.mark.parametrize("option", ["--pool=here", "--exact-overlap-only"])
def test_options_of_the_overlap_want_a_source_to_exclude(store, pool, option):
    write_generation(store, pool, PROBS)
    result = CliRunner().invoke(app, ["balance", "flowers@gen-1", option, "--store", str(store.root)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "name a source of them with --exclude SOURCE" in result.stderr


@pytest.mark.parametrize(("change", "found"), [(lambda table: table.drop(["phash"]), "missing"), (_as_text, "string")])
def test_labels_without_perceptual_hashes_are_an_error_that_names_the_column(store, pool, test_set, change, found):
    version = write_generation(store, pool, PROBS, rows_per_shard=6)
    (file,) = (version.folder / "pseudo_labels").iterdir()
    pq.write_table(change(pq.read_table(file)), file)
    with pytest.raises(NstError, match=f"pseudo_labels: column `phash` is {found}, expected int64"):
        balance(store, version, BalanceSettings(), [test_set])

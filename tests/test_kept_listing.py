"""What was listed at an address is kept: an address of this disk, which is else another way to write a path, stands for a server."""

import os
import struct

import pyarrow as pa
import pytest
from conftest import write_pool
from labels import RUN, SETTINGS, table_rows
from nst_cli.main import app
from pictures import keys, png, read_contents, write_files, write_table, write_tar
from typer.testing import CliRunner
from watched import RecordingProgress
from wording import pattern

from nst_data.adoption import adopt
from nst_data.errors import NstError
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import listing as listing_module
from nst_data.sources import open_source, opening, tar_index
from nst_data.sources.listing import build_listing, listing_from_table, read_listing, write_listing
from nst_data.store.file_tree import FileTree
from nst_data.store.indexes import INDEXES_FOLDER, Indexes
from nst_train.cluster.job import SourceAddress
from nst_train.labeling.label import extend, label, label_like

EMBEDDED = BalanceSettings(min_confidence=0, per_class=9, embed_images=True)


@pytest.fixture
def listings(monkeypatch):
    """The addresses that were listed."""
    found, files = [], FileTree.files
    monkeypatch.setattr(opening, "local_path", str)
    monkeypatch.setattr(FileTree, "files", lambda tree, prefix="": found.append(tree.address) or files(tree, prefix))
    return found


@pytest.fixture
def pool(tmp_path):
    return write_pool(tmp_path / "pool", 3, 5)


@pytest.fixture
def store(tiny_store):
    """With a teacher; nothing is kept yet."""
    store, *_ = tiny_store
    for kept in store.indexes.folder.glob("*"):
        kept.unlink()
    return store


def labels_of(store, pool, corpus):
    source = open_source(f"file://{pool}", indexes=store.indexes)
    return label(store, corpus, "tiny-teacher", source, SETTINGS, run=RUN, progress=RecordingProgress())


def put(path, content, seconds):
    """A file with another etag, which on a disk is its time."""
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))


@pytest.mark.parametrize(
    "where", ["images", "images/b", "tars", "tars/1.tar", "tars/*.tar", "tars/**/*.tar", "parquet", "parquet/{0,1}.parquet"]
)
def test_a_source_of_a_known_fingerprint_is_opened_as_it_was_listed_without_a_listing(tmp_path, listings, where):
    write_files(tmp_path / "images", "b/2.png", "b/10.png", "a.png", "ü.png", "b/odd.heic", "b/.hidden.png")
    for number in range(2):
        write_tar(tmp_path / f"tars/{number}.tar", [(f"{number}.png", png(0, number)), ("scan.heic", b"x")])
        write_table(tmp_path / f"parquet/{number}.parquet", image=[png(1, number), png(2, number)])
    write_tar(tmp_path / "tars/z/2.tar", [("2.png", png(0, 2))])
    (tmp_path / "tars/beside.zip").write_bytes(b"x")
    address, indexes = f"file://{tmp_path}/{where}", tmp_path / "indexes"
    first = open_source(address, indexes=indexes)
    listings.clear()
    again = open_source(address, indexes=indexes, digest=first.fingerprint)
    assert listings == []
    assert type(again) is type(first)
    assert (again.location, again.fingerprint, again.skipped) == (first.location, first.fingerprint, first.skipped)
    assert again.listing().equals(first.listing())
    assert again.stamps().tolist() == first.stamps().tolist()
    assert (keys(again), read_contents(again)) == (keys(first), read_contents(first))
    assert again.read(0) == first.read(0)


def test_an_address_that_is_named_without_a_fingerprint_or_with_another_one_is_listed(tmp_path, pool, listings):
    first = open_source(f"file://{pool}", indexes=tmp_path)
    write_pool(pool, 1, 1, first=300)
    for digest in (None, "0" * 64):
        listings.clear()
        now = open_source(f"file://{pool}", indexes=tmp_path, digest=digest)
        assert (listings, len(now)) == ([f"file://{pool}"], len(first) + 1)
    listings.clear()
    before = open_source(f"file://{pool}", indexes=tmp_path, digest=first.fingerprint)
    assert (listings, keys(before)) == ([], keys(first))


def test_a_copy_at_another_address_has_a_listing_of_its_own(tmp_path, listings):
    for name, seconds in (("one", 1_000), ("copy", 2_000)):
        (tmp_path / name).mkdir()
        put(tmp_path / name / "a.png", png(0), seconds)
    first, copy = (open_source(f"file://{tmp_path}/{name}", indexes=tmp_path / "indexes") for name in ("one", "copy"))
    listings.clear()
    assert first.fingerprint == copy.fingerprint
    for source in (first, copy):
        again = open_source(source.location, indexes=tmp_path / "indexes", digest=source.fingerprint)
        assert (again.location, again.stamps().tolist()) == (source.location, source.stamps().tolist())
    assert listings == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def another_name(path):
    path.write_bytes(path.read_bytes().replace(b"0-103.png", b"0-903.png"))


def a_name_that_ends_before_it_begins(path):
    path.write_bytes(path.read_bytes().replace(struct.pack("<3q", 0, 9, 18), struct.pack("<3q", 0, 9, 5)))


def no_listing(path):
    path.write_bytes(b"\x80\x04\x95 not one")


def without_what_it_is(path):
    write_listing(path, read_listing(path).replace_schema_metadata(None))


def without_rows(path):
    write_listing(path, read_listing(path).slice(0, 0))


def with_a_null(path):
    table = read_listing(path)
    write_listing(path, table.set_column(2, table.schema.field(2), pa.array([None] * len(table), pa.uint64())))


def with_other_columns(path):
    write_listing(path, read_listing(path).drop_columns(["stamp"]))


@pytest.mark.parametrize(
    "damage",
    [cut, another_name, a_name_that_ends_before_it_begins, no_listing, without_what_it_is, without_rows, with_a_null, with_other_columns],
)
def test_a_damaged_listing_is_made_again(tmp_path, pool, listings, damage):
    first = open_source(f"file://{pool}", indexes=tmp_path / "indexes")
    (kept,) = (tmp_path / "indexes").iterdir()
    whole = kept.read_bytes()
    damage(kept)
    assert kept.read_bytes() != whole
    listings.clear()
    again = open_source(f"file://{pool}", indexes=tmp_path / "indexes", digest=first.fingerprint)
    assert (listings, keys(again), again.fingerprint) == ([f"file://{pool}"], keys(first), first.fingerprint)
    assert kept.read_bytes() == whole


def test_a_listing_holds_names_sizes_and_stamps_alone(tmp_path, pool, listings):
    open_source(f"file://{pool}", indexes=tmp_path / "indexes")
    (kept,) = (tmp_path / "indexes").iterdir()
    table = read_listing(kept)
    assert table.column_names == ["name", "bytes", "stamp"]
    assert list(table.schema.metadata) == [b"about"]


def test_a_listing_leads_to_no_other_place(tmp_path, listings):
    for name in ("pool", "else"):
        write_tar(tmp_path / name / "x.tar", [("a.png", name.encode())])
    first = open_source(f"file://{tmp_path}/pool", indexes=tmp_path / "indexes")
    (kept,) = [path for path in (tmp_path / "indexes").iterdir() if b"etag" in path.read_bytes()]
    table = read_listing(kept)
    about = table.schema.metadata[b"about"].replace(b"/pool", b"/else")
    write_listing(kept, table.replace_schema_metadata({b"about": about}))
    listings.clear()
    again = open_source(first.location, indexes=tmp_path / "indexes", digest=first.fingerprint)
    assert (listings, read_contents(again)) == ([first.location], read_contents(first))


def test_parquet_files_that_were_written_again_at_another_size_are_listed(tmp_path, listings):
    write_table(tmp_path / "x/0.parquet", image=[png(0)])
    first = open_source(f"file://{tmp_path}/x", indexes=tmp_path)
    write_table(tmp_path / "x/0.parquet", image=[png(0), png(1)])
    listings.clear()
    assert read_contents(open_source(f"file://{tmp_path}/x", indexes=tmp_path, digest=first.fingerprint)) == [png(0), png(1)]
    assert listings == [f"file://{tmp_path}/x"]


def test_where_nothing_can_be_kept_a_source_is_listed_each_time(tmp_path, pool, listings):
    (tmp_path / "file").write_bytes(b"")
    for _ in range(2):
        assert len(open_source(f"file://{pool}", indexes=tmp_path / "file" / "indexes", digest="0" * 64)) == 15
    assert len(listings) == 2


def test_the_newest_listing_of_a_fingerprint_is_kept_and_one_that_is_the_same_stays(tmp_path, pool, listings):
    def opened(**more):
        return open_source(f"file://{pool}", indexes=tmp_path / "indexes", **more)

    first = opened()
    (kept,) = (tmp_path / "indexes").iterdir()
    written = kept.stat().st_ino
    opened()
    assert kept.stat().st_ino == written
    put(pool / "1-102.png", (pool / "1-102.png").read_bytes(), 1_000)
    newest = opened().stamps().tolist()
    assert newest != first.stamps().tolist()
    assert opened(digest=first.fingerprint).stamps().tolist() == newest


@pytest.mark.parametrize("piece", [1, 4, 65_536])
def test_a_fingerprint_is_that_of_the_names_and_sizes_whatever_the_pieces(monkeypatch, piece):
    names, sizes = [f"ü{number}.png" for number in range(9)], list(range(9))
    expected = build_listing([(names, sizes)])
    monkeypatch.setattr(listing_module, "PIECE", piece)
    found = listing_from_table(pa.table({"bytes": sizes, "name": pa.array(names, pa.large_string())}))
    assert (found.fingerprint, found.table.equals(expected.table)) == (expected.fingerprint, True)


def test_each_command_lists_a_pool_that_is_named_once_and_the_pool_of_a_version_never(store, pool, listings, tmp_path):
    def listed_by(*arguments):
        listings.clear()
        done = CliRunner().invoke(app, [*map(str, arguments), "--store", str(store.root)])
        assert done.exit_code == 0, done.stderr
        return len(listings)

    assert listed_by("label", f"file://{pool}", "--teacher", "tiny-teacher", "--corpus", "at") == 1
    assert listed_by("label", f"file://{pool}", "--teacher", "tiny-teacher", "--corpus", "at") == 1
    assert listed_by("balance", "at", "--per-class", 9, "--min-confidence", 0, "--embed-images") == 0
    assert listed_by("balance", "at", "--per-class", 9, "--min-confidence", 0) == 0
    assert listed_by("pick", "at@gen-1", "--spread", "k-means", "--copy-to", tmp_path / "picked") == 0
    assert listed_by("export", "at@gen-1.2", tmp_path / "out") == 0
    assert listed_by("label", "--like", "at@gen-1.2", "--teacher", "tiny-teacher") == 1
    assert listed_by("label", "--extend", "at@gen-1") == 1
    tiny = ["--model", "test_resnet", "--image-size", "16", "--epochs", "1", "--batch-size", "4", "--workers", "0"]
    assert listed_by("train", "--pseudo", "at@gen-1.2", "--name", "student", *tiny) == 0


@pytest.mark.parametrize("is_labeled", [False, True])
def test_class_folders_at_an_address_are_adopted_with_one_listing(store, tiny_store, listings, is_labeled):
    _, labeled, _ = tiny_store
    expected = adopt(store, f"here-{is_labeled}", open_source(labeled), progress=RecordingProgress())
    images = open_source(f"file://{labeled}", labeled=is_labeled)
    version = adopt(store, f"there-{is_labeled}", images, progress=RecordingProgress())
    assert listings == [f"file://{labeled}"]
    assert version.manifest.files == expected.manifest.files
    assert version.manifest.request.inputs.pool.digest == expected.manifest.request.inputs.pool.digest


def test_the_pool_of_a_version_is_the_one_that_was_labeled_also_when_it_has_grown(store, pool, listings):
    version = labels_of(store, pool, "grown")
    write_pool(pool, 1, 1, first=99)  # before all others
    listings.clear()
    edition = balance(store, version, EMBEDDED, progress=RecordingProgress())
    assert listings == []
    assert [row["image"]["bytes"] for row in table_rows(edition, "balanced")] == [
        (pool / row["key"]).read_bytes() for row in table_rows(edition, "balanced")
    ]
    more = extend(store, version, run=RUN, progress=RecordingProgress())
    assert (listings, more.manifest.counts.labeled) == ([f"file://{pool}"], 16)
    listings.clear()
    like = label_like(store, edition, "tiny-teacher", settings=SETTINGS, run=RUN, progress=RecordingProgress())
    assert (listings, like.manifest.counts.errors) == ([f"file://{pool}"], 0)


def test_an_image_that_is_gone_or_another_by_now_is_noticed_when_it_is_read(store, pool, listings):
    gone, other = (labels_of(store, pool, corpus) for corpus in ("gone", "other"))
    whole = (pool / "1-102.png").read_bytes()
    (pool / "1-102.png").unlink()
    listings.clear()
    with pytest.raises(NstError, match=pattern("1-102.png … no such file")):
        balance(store, gone, EMBEDDED, progress=RecordingProgress())
    put(pool / "1-102.png", whole[:-1] + b"x", 1_000)
    with pytest.raises(NstError, match=pattern("'1-102.png' has different content than the labeled image")):
        balance(store, other, EMBEDDED, progress=RecordingProgress())
    assert listings == []
    with pytest.raises(NstError, match=pattern("1 image has different content than when other@gen-1 was made … '1-102.png'")):
        labels_of(store, pool, "other")


def test_a_pool_that_has_moved_is_told_as_if_nothing_was_kept(store, pool, listings):
    version = labels_of(store, pool, "moved")
    pool.rename(pool.parent / "elsewhere")
    with pytest.raises(NstError, match=pattern("pool: no such file or folder … moved@gen-1 … pass its current location with `pool`")):
        balance(store, version, EMBEDDED, progress=RecordingProgress())


def test_workers_that_are_told_the_fingerprint_of_a_pool_do_not_list_it(tmp_path, pool, listings):
    source = open_source(f"file://{pool}")
    source.store_listing(Indexes(tmp_path / "indexes"))  # as the driver does
    write_pool(pool, 1, 1, first=99)
    place = SourceAddress.from_source(source)
    listings.clear()
    for _ in range(3):
        assert keys(place.open(Indexes(tmp_path / "indexes"))) == keys(source)
    assert listings == []
    with pytest.raises(NstError, match=pattern("different files than where the command was started (16 images)")):
        place.open(Indexes(tmp_path / "nothing"))


def test_what_a_commit_pins_needs_no_listing(tmp_path, listings):
    write_table(tmp_path / "x/0.parquet", image=[png(0)])
    source = open_source(f"file://{tmp_path}/x")
    source.pin("0" * 40)
    source.store_listing(Indexes(tmp_path / "indexes"))
    assert not (tmp_path / "indexes").exists()


def shared(top):
    """As of two machines with one store at an address."""
    tree = FileTree(f"file://{top}/store")
    return [Indexes(top / name, tree) for name in ("one", "other")]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


POOLS = {"images": "images/b.png", "tars": "tars/1.tar", "parquet": "parquet/1.parquet"}


def write_pools(top, number):
    """Of each kind a pool of two files, the second of which has another content of the same size for each number."""
    for place, value in (("a", 9), ("b", number)):
        write_files(top / "images", f"{place}.png")
        (top / f"images/{place}.png").write_bytes(b"image %d" % value)
    for file, value in ((0, 9), (1, number)):
        write_tar(top / f"tars/{file}.tar", [(f"{value}.png", b"image %d" % value)])
        write_table(top / f"parquet/{file}.parquet", image=[b"image %d" % value])
    for file in POOLS.values():
        os.utime(top / file, (number, number))


@pytest.mark.parametrize("kind", POOLS)
def test_what_one_machine_has_found_out_others_take_from_the_address_of_the_store(tmp_path, listings, monkeypatch, kind):
    write_pools(tmp_path, 1)
    one, other = shared(tmp_path)
    first = open_source(f"file://{tmp_path}/{kind}", indexes=one)
    there = names(tmp_path / "store" / INDEXES_FOLDER)
    assert len(there) == len(names(one.folder)) == (2 if kind == "tars" else 1)
    monkeypatch.setattr(tar_index, "members", None)  # no header is read again
    listings.clear()
    for _ in range(2):
        again = SourceAddress.from_source(first).open(other)
        assert (listings, read_contents(again), again.stamp) == ([], read_contents(first), first.stamp)
    assert names(other.folder) == there


@pytest.mark.parametrize("has_older", [True, False])
@pytest.mark.parametrize("kind", POOLS)
def test_a_worker_never_takes_what_was_listed_when_files_of_the_same_sizes_had_another_content(tmp_path, listings, kind, has_older):
    address = f"file://{tmp_path}/{kind}"
    one, other = shared(tmp_path)
    write_pools(tmp_path, 1)
    before = SourceAddress.from_source(open_source(address, indexes=one))
    if has_older:
        before.open(other)
    write_pools(tmp_path, 2)
    now = open_source(address, indexes=one.alone)  # as where the upload failed
    assert (now.fingerprint, now.stamp == before.stamp) == (before.digest, False)
    assert read_contents(SourceAddress.from_source(now).open(other)) == read_contents(now) == [b"image 9", b"image 2"]
    now.store_listing(one)
    listings.clear()
    assert read_contents(SourceAddress.from_source(now).open(Indexes(tmp_path / "third", one.tree))) == read_contents(now)
    assert listings == []


def test_a_worker_that_sees_other_content_than_the_driver_is_refused(tmp_path, listings):
    write_pools(tmp_path, 1)
    place = SourceAddress.from_source(open_source(f"file://{tmp_path}/tars"))
    write_pools(tmp_path, 2)
    with pytest.raises(NstError, match=pattern("different files than where the command was started")):
        place.open(Indexes(tmp_path / "indexes"))


def test_the_driver_shares_what_was_kept_on_its_machine_alone(tmp_path, listings):
    write_tar(tmp_path / "tars/0.tar", [("a.png", png(0))])
    one, _ = shared(tmp_path)
    source = open_source(f"file://{tmp_path}/tars", indexes=one.folder)
    assert not (tmp_path / "store").exists()
    source.store_listing(one)
    assert len(names(tmp_path / "store" / INDEXES_FOLDER)) == 2


def test_times_of_local_files_are_shared_with_no_other_machine(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.png", png(0))])
    one, _ = shared(tmp_path)
    assert len(open_source(tmp_path / "0.tar", indexes=one)) == 1
    assert (len(names(one.folder)), (tmp_path / "store").exists()) == (1, False)


def test_a_store_that_may_not_be_written_to_keeps_indexes_on_this_machine(tmp_path, listings):
    write_tar(tmp_path / "tars/0.tar", [("a.png", png(0))])
    (tmp_path / "store").write_text("no folder")
    one, _ = shared(tmp_path)
    assert len(open_source(f"file://{tmp_path}/tars", indexes=one)) == 1
    assert len(names(one.folder)) == 2


def without_an_offset(path):
    write_listing(path, read_listing(path).drop_columns(["offset"]))


def with_another(column, value):
    def damage(path):
        table = read_listing(path)
        place = table.column_names.index(column)
        write_listing(
            path, table.set_column(place, table.schema.field(place), pa.array([value] * len(table), table.schema.field(place).type))
        )

    return damage


@pytest.mark.parametrize(
    "damage",
    [cut, no_listing, without_an_offset, *(with_another(*one) for one in (("file", 5), ("file", -1), ("offset", -1), ("size", None)))],
)
def test_a_damaged_index_of_tar_files_is_made_again(tmp_path, damage):
    write_tar(tmp_path / "0.tar", [("a.png", png(0)), ("b.png", png(1))])
    found = read_contents(open_source(tmp_path / "0.tar", indexes=tmp_path / "indexes"))
    (kept,) = (tmp_path / "indexes").iterdir()
    whole = kept.read_bytes()
    damage(kept)
    assert read_contents(open_source(tmp_path / "0.tar", indexes=tmp_path / "indexes")) == found
    assert kept.read_bytes() == whole

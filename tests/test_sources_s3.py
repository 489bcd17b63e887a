"""Sources on a real S3 server: what the same files in a folder give, and what faults between the two do."""

import os
from pathlib import Path

import object_store
import pytest
from addressed import (
    ODD,
    ROWS,
    SOURCES,
    assert_is_as_on_disk,
    assert_requests_are_few,
    assert_threads_and_a_fork_read,
    bmp,
    read_all,
    write_files,
)
from faulty_proxy import proxy_to
from nst_cli.main import app
from pictures import write_tar
from typer.testing import CliRunner
from wording import mentions, pattern

from nst_data.errors import NstError
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import addressed_table, open_source
from nst_data.store import file_tree
from nst_data.store.file_tree import FileTree
from nst_data.store.indexes import Indexes
from nst_train.cluster.job import SourceAddress
from nst_train.labeling.label import label
from nst_train.settings import LabelRunSettings, LabelSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def server(files, tmp_path_factory):
    """The address of an S3 server with the files, and the faults that can be put before it; this process's environment leads there."""
    with (
        object_store.serving(tmp_path_factory.mktemp("s3")) as url,
        proxy_to(url) as (address, faults),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in object_store.settings(address).items():
            patch.setenv(name, value)
        patch.setattr(file_tree, "_TIMEOUT_SECONDS", 1)
        patch.setattr(file_tree, "WAITS_SECONDS", (0.1, 0.1))
        file_tree._file_system.cache_clear()
        tree = FileTree("s3://nst/files")
        for path in files.rglob("*"):
            if path.is_file():
                tree.upload(path, path.relative_to(files).as_posix())
        yield address, faults
    file_tree._file_system.cache_clear()


@pytest.fixture
def faults(server):
    _, faults = server
    faults.clear()
    file_tree._silent_until.clear()
    yield faults
    faults.clear()


@pytest.mark.parametrize(("name", "options"), SOURCES)
def test_an_address_gives_the_rows_of_the_same_files_in_a_folder(server, files, tmp_path, name, options):
    here = open_source(str(files / name), **options)
    there = open_source(f"s3://nst/files/{name}", indexes=tmp_path, **options)
    assert there.location == f"s3://nst/files/{Path(here.location).relative_to(files).as_posix()}"
    assert_is_as_on_disk(there, here)


def test_a_listing_comes_in_pages(server, faults, files, monkeypatch):
    monkeypatch.setattr(file_tree, "_PAGE_FILES", 7)
    source = open_source("s3://nst/files/images")
    pages = [path for method, path, _ in faults.requests if method == "GET" and "list-type" in path]
    assert len(pages) > ROWS / 7
    assert source.fingerprint == open_source(str(files / "images")).fingerprint


@pytest.mark.parametrize("name", ["images", "tars", "tars/**/*.tar", "parquet"])
def test_a_listing_is_kept_and_no_worker_makes_another(server, faults, tmp_path, monkeypatch, name):
    monkeypatch.setattr(file_tree, "_PAGE_FILES", 7)

    def listings():
        return [path for method, path, _ in faults.requests if method == "GET" and "list-type" in path]

    first = open_source(f"s3://nst/files/{name}", indexes=tmp_path)
    assert listings()
    faults.requests.clear()
    for _ in range(3):
        again = SourceAddress.from_source(first).open(tmp_path)
        assert (read_all(again), again.stamps().tolist()) == (read_all(first), first.stamps().tolist())
    assert listings() == []
    assert [method for method, *_ in faults.requests].count("HEAD") == 3  # is it still there?
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert [secret for secret in (object_store.KEY, object_store.SECRET) if secret.encode() in kept] == []


@pytest.mark.parametrize(("name", "second"), [("tars", "z/2.tar"), ("parquet", "1.parquet")])
def test_a_server_that_fails_while_headers_of_listed_files_are_read_is_not_asked_for_a_listing(server, faults, tmp_path, name, second):
    first = open_source(f"s3://nst/files/{name}")
    first.store_listing(Indexes(tmp_path))
    for path in tmp_path.iterdir():
        if b"etag" not in path.read_bytes():
            path.unlink()  # where the members of tar files lie
    faults.requests.clear()
    faults.inject(second, 99, ("status", 503, "SlowDown"))
    with pytest.raises(NstError, match=r"the server is busy \(503\)"):
        SourceAddress.from_source(first).open(tmp_path)
    assert [path for _, path, _ in faults.requests if "list-type" in path] == []


def test_threads_and_a_forked_process_read_single_rows(server, files):
    sources = [(open_source(str(files / name)), open_source(f"s3://nst/files/{name}")) for name in ("classes", "tars", "parquet")]
    assert_threads_and_a_fork_read(sources)


def test_each_image_is_one_request_and_neighbors_in_a_tar_file_share_one(server, faults):
    images, tars = open_source("s3://nst/files/images"), open_source("s3://nst/files/tars")
    assert_requests_are_few(images, tars, faults)


def test_an_index_of_tar_files_is_kept_and_made_anew_for_other_bytes_of_the_same_size(server, faults, tmp_path):
    tree = FileTree("s3://nst/kept")
    write_tar(tmp_path / "x.tar", [("a.png", b"first"), ("b.png", b"x")])
    tree.upload(tmp_path / "x.tar", "x.tar")
    first = open_source("s3://nst/kept", indexes=tmp_path)
    faults.requests.clear()
    again = open_source("s3://nst/kept", indexes=tmp_path)
    assert not [path for method, path, _ in faults.requests if method == "GET" and path.endswith("x.tar")]
    write_tar(tmp_path / "x.tar", [("c.png", b"x"), ("a.png", b"other")])
    tree.upload(tmp_path / "x.tar", "x.tar")
    other = open_source("s3://nst/kept", indexes=tmp_path)
    assert (read_all(first)[0][1], read_all(other)[1]) == ("x.tar:a.png", (1, "x.tar:a.png", b"other"))
    assert first.fingerprint == again.fingerprint == other.fingerprint  # names and sizes
    assert first.stamps().tolist() == again.stamps().tolist() != other.stamps().tolist()


def test_several_tar_files_are_asked_for_their_headers_at_once(server, faults, tmp_path):
    for name in "abcd":
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.png", bytes(100))])
        FileTree("s3://nst/four").upload(tmp_path / f"{name}.tar", f"{name}.tar")
    faults.most_at_once = 0
    faults.inject(".tar", 4, ("slow", 0.4))
    source = open_source("s3://nst/four")
    assert faults.most_at_once >= 2
    assert [source.key(row) for row in range(4)] == [f"{name}.tar:{name}.png" for name in "abcd"]


@pytest.mark.parametrize("fault", [("status", 503, "SlowDown"), ("status", 500, "InternalError"), ("cut", 100), ("slow", 3)])
@pytest.mark.parametrize("name", ["images", "tars", "parquet"])
def test_what_passes_is_waited_for_with_a_warning_and_nothing_is_lost(server, faults, files, caplog, name, fault):
    source = open_source(f"s3://nst/files/{name}")
    faults.inject(ODD[name], 2, fault)
    assert read_all(source) == read_all(open_source(str(files / name)))
    assert any("retrying in 0.1 s" in line for line in caplog.messages)
    assert not [line for line in caplog.messages if object_store.SECRET in line or "with a secret" in line]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (("status", 403, "AccessDenied"), r"access denied \(403\)"),
        (("status", 403, "RequestTimeTooSkewed"), "the server refuses this machine's clock"),
        (("status", 503, "SlowDown"), r"the server is busy \(503\)"),
    ],
)
@pytest.mark.parametrize("name", ["images", "tars", "parquet"])
def test_what_does_not_pass_stops_and_blames_no_image(server, faults, name, fault, says):
    source = open_source(f"s3://nst/files/{name}")
    faults.inject(ODD[name], 99, fault)
    with pytest.raises(NstError, match=f"s3://nst/files/{name}/[^:]*: {says}") as caught:
        read_all(source)
    assert "\n" not in str(caught.value)
    assert "with a secret" not in str(caught.value)
    with pytest.raises(NstError, match=says):
        source.read(next(row for row in range(len(source)) if ODD[name] in source.key(row)))


@pytest.mark.parametrize("name", ["images", "tars", "parquet"])
def test_files_that_have_gone_meanwhile_are_rows_that_say_so(server, faults, files, name):
    source = open_source(f"s3://nst/files/{name}")
    faults.inject(ODD[name], 99, ("status", 404, "NoSuchKey"))
    for (_, key, found), (_, _, expected) in zip(read_all(source), read_all(open_source(str(files / name))), strict=True):
        if ODD[name] in key:
            assert "no such file" in found
        else:
            assert found == expected


def test_an_image_of_another_size_than_was_listed_says_so(server, tmp_path):
    tree = FileTree("s3://nst/grown")
    tree.write("a.png", b"12345")
    tree.write("b.png", b"12345")
    source = open_source("s3://nst/grown")
    tree.write("a.png", b"123456")
    tree.write("b.png", b"")
    assert [content for _, _, content in read_all(source)] == [f"has {size} bytes, 5 when the pool was listed" for size in (6, 0)]
    with pytest.raises(NstError, match="has 6 bytes, 5 when"):
        source.read(0)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("s3://nst/nothing", "s3://nst/nothing: no such file …; expected at an address"),
        ("s3://nowhere/at/all", "s3://nowhere/at/all: no such bucket"),
        ("s3://nst/files/images/nothing.csv", "s3://nst/files/images/nothing.csv: no such file …; expected at an address"),
        ("s3://nst/files/images/b/x.txt", "s3://nst/files/images/b/x.txt: no such file …; expected at an address"),
        ("s3://nst/files/images/b/odd.dcm", "s3://nst/files/images/b/odd.dcm: not a source of images; expected at an address"),
        ("s3://nst/files/images/b.png", "these are images; give their folder"),
        ("s3://nst/files/nothing-*.tar", "parquet or tar files, no file matches"),
        ("s3://nst/files/{tars/1.tar,parquet/0.parquet}", "expected files of one kind"),
    ],
)
def test_what_is_not_there_or_not_read_is_one_line(server, address, says):
    with pytest.raises(NstError, match=pattern(says)) as caught:
        open_source(address)
    assert "\n" not in str(caught.value)


def test_a_table_or_a_list_on_this_disk_names_images_by_their_addresses(server, files, tmp_path):
    names = [f"tables/own/{index:02d}.png" for index in (3, 1, 8)]
    there = [f"s3://nst/files/{name}" for name in (*names, "gone.png")]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *(f"{name},{'ab'[index % 2]}" for index, name in enumerate(there))]))
    (tmp_path / "list.txt").write_text("\n".join(there))
    table, listed = open_source(tmp_path / "table.csv", labeled=True), open_source(tmp_path / "list.txt")
    assert [table.class_names[label] for label in table.labels] == ["a", "b", "a", "b"]
    expected = [(index, name, (files / path).read_bytes()) for index, (name, path) in enumerate(zip(there, names, strict=False))]
    assert read_all(table) == read_all(listed) == [*expected, (3, "s3://nst/files/gone.png", "no such file")]
    assert table.remarks() == [
        f"{tmp_path / 'table.csv'}: 1 of its image files is missing or empty: s3://nst/files/gone.png; "
        "relative paths start at the folder of the file that lists them; move the images there, or correct the paths"
    ]
    assert (table.stamps() == listed.stamps()).all()
    assert [stamp > 0 for stamp in table.stamps()] == [True, True, True, False]


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (["s3://nst/a.png", "s3://others/b.png", "s3://others/c.png"], "expected images in s3://nst, found 's3://others/b.png' in 2 rows"),
        (["s3://nst/a.png", "b.png"], "expected images in s3://nst, found 'b.png' in 1 row; correct the paths"),
        (["b.png", "s3://nst/a.png"], "expected …, found 'b.png'"),
        (["https://example.org/a.png"], "https://example.org/a.png: expected a path or an address that begins with s3://"),
        (["s3://nst/a.png", "s3://nst/b.png?X-Amz-Signature=c0ffee"], "s3://nst/b.png: expected an address without credentials"),
        (["s3://key:c0ffee@nst/a.png"], "s3://nst/a.png: expected an address without credentials"),
    ],
)
def test_a_table_names_images_of_one_bucket_without_credentials(server, paths, says, tmp_path):
    for name, lines in (("table.csv", ["path", *paths]), ("list.txt", paths if "://" in paths[0] else paths[::-1])):
        (tmp_path / name).write_text("\n".join(lines))
        with pytest.raises(NstError, match=pattern(says)) as caught:
            open_source(tmp_path / name)
        assert "c0ffee" not in str(caught.value)


def test_a_table_at_an_address_names_images_of_its_bucket_and_metadata_that_came_with_a_folder_those_below_it(server, tmp_path):
    tree = FileTree("s3://nst/narrow")
    tree.write("folder/a/x.png", bmp(1))
    for name in ("table.csv", "folder/metadata.csv"):
        for path in ("../../outside.png", "/etc/passwd", "s3://others/a.png"):
            tree.write(name, f"file_name,label\n{path},a\n".encode())
            with pytest.raises(NstError, match=r"in s3://nst, found|leads out of its folder"):
                open_source(tree.address_of(name.removesuffix("/metadata.csv")), labeled=True)
    tree.write("b.png", bmp(2))
    for path in ("../b.png", "s3://nst/narrow/b.png"):
        tree.write("folder/metadata.csv", f"file_name,label\n{path},a\n".encode())
        with pytest.raises(NstError, match="leads out of its folder"):
            open_source(tree.address_of("folder"), labeled=True)
        assert open_source(tree.address_of("folder/metadata.csv"), labeled=True).read(0) == bmp(2)
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a/x.png").write_bytes(bmp(1))
        (tmp_path / "metadata.csv").write_text(f"file_name,label\n{path},a\n")
        with pytest.raises(NstError, match="leads out of its folder"):
            open_source(tmp_path, labeled=True)


def test_the_images_of_a_short_table_in_a_large_folder_are_asked_for_one_by_one(server, faults, monkeypatch, tmp_path):
    tree = FileTree("s3://nst/large")
    for index in range(12):
        tree.write(f"{index:02d}.png", bmp(index))
    (tmp_path / "list.txt").write_text("\n".join(tree.address_of(name) for name in ("01.png", "10.png", "08.png", "99.png")))
    faults.requests.clear()
    expected = open_source(tmp_path / "list.txt")
    assert [request[0] for request in faults.requests] == ["GET"]
    monkeypatch.setattr(file_tree, "_PAGE_FILES", 2)
    monkeypatch.setattr(addressed_table, "_LEAST_PAGES", 2)
    faults.requests.clear()
    found = open_source(tmp_path / "list.txt")
    assert sum("list-type=2" in path and "max-keys=2" in path for _, path, _ in faults.requests) == 2
    assert sum(method == "HEAD" for method, _, _ in faults.requests) == 3
    assert found.fingerprint == expected.fingerprint
    assert found.stamp == expected.stamp


def label_both(store, name, files):
    """Labels of the same pool from the folder and from the address."""
    corpora = Path(name).stem
    for corpus, pool in ((f"{corpora}-here", str(files / name)), (f"{corpora}-there", f"s3://nst/files/{name}")):
        settings = LabelSettings(batch_size=4, rows_per_shard=15)
        yield label(store, corpus, "tiny-teacher", open_source(pool), settings, run=LabelRunSettings(decode_threads=2))


@pytest.mark.parametrize("name", ["images", "tars", "parquet", "tables/whole.csv"])
def test_labels_have_the_bytes_of_those_of_a_folder_and_their_pool_is_found_again(server, faults, files, tiny_store, name):
    store, *_ = tiny_store
    here, there = label_both(store, name, files)
    assert there.manifest.files == here.manifest.files
    assert there.manifest.request.inputs.pool.ref == f"s3://nst/files/{name}"
    everything = b"".join(path.read_bytes() for path in there.folder.rglob("*") if path.is_file())
    assert object_store.SECRET.encode() not in everything
    assert object_store.KEY.encode() not in everything
    settings = BalanceSettings(min_confidence=0, per_class=9, embed_images=True)
    assert balance(store, there, settings).manifest.files == balance(store, here, settings).manifest.files


def test_an_object_that_was_written_again_at_its_size_is_noticed_as_a_file_is(server, faults, tiny_store):
    store, *_ = tiny_store
    tree = FileTree("s3://nst/changing")
    for index in range(4):
        tree.write(f"{index}.png", bmp(index))
    label(store, "changing", "tiny-teacher", open_source(tree.address), LabelSettings(batch_size=4))
    tree.write("2.png", bmp(9))
    says = "1 image has different content than when changing@gen-1 was made .'2.png'."
    with pytest.raises(NstError, match=says):
        label(store, "changing", "tiny-teacher", open_source(tree.address), LabelSettings(batch_size=4))


def test_an_address_in_a_downloaded_manifest_is_not_asked(server, faults, files, tiny_store):
    store, *_ = tiny_store
    *_, there = label_both(store, "classes", files)
    (there.folder / "nst.json").write_text(there.manifest.marked_as_pulled().model_dump_json())
    faults.requests.clear()
    for words in (["balance", there.ref, "--embed-images"], ["label", "--extend", there.ref]):
        done = CliRunner().invoke(app, [*words, "--store", str(store.root)])
        assert done.exit_code == 2
        assert mentions(done.stderr, "downloaded manifest, … not open")
    picked = CliRunner().invoke(app, ["pick", there.ref, "--by", "random", "--store", str(store.root)])  # needs no image
    assert picked.exit_code == 0, picked.output
    assert faults.requests == []


@pytest.mark.parametrize("address", ["s3://{0}:{1}@nst/files/images", "s3://nst/files/images?X-Amz-Signature={1}"])
def test_credentials_in_an_address_are_refused_and_not_repeated(server, tiny_store, address):
    given = address.format(object_store.KEY, object_store.SECRET)
    done = CliRunner().invoke(app, ["label", given, "--teacher", "tiny-teacher", "--corpus", "x", "--store", str(tiny_store[0].root)])
    assert done.exit_code == 2
    assert "expected an address without credentials or query" in done.stderr
    assert object_store.SECRET not in done.output + done.stderr

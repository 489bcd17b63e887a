import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nst_cli.main import app
from pictures import keys, read_contents, write_tar
from typer.testing import CliRunner
from wording import is_line

from nst_data.errors import NstError, UsageError, redact_secrets
from nst_data.sources import open_source, streamed
from nst_data.sources.addressed import AddressedTars
from nst_data.sources.read_ahead import Extent, group_neighbors, read_ahead
from nst_data.sources.streamed import StreamedParquet
from nst_data.store import file_tree
from nst_data.store.file_tree import FileTree, MissingFileError, without_secrets


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://bucket", "s3://bucket"),
        ("S3://bucket/pool/", "s3://bucket/pool"),
        ("s3://bucket/a b/what?/100%25", "s3://bucket/a b/what?/100%25"),
        ("gs://bucket/pool/*.tar", "gs://bucket/pool/*.tar"),
        ("az://container/pool", "az://container/pool"),
        ("abfss://container@account.dfs.core.windows.net/pool", "abfss://container@account.dfs.core.windows.net/pool"),
        ("hf://datasets/owner/name@v1/data", "hf://datasets/owner/name@v1/data"),
        ("file:///data/photos", "file:///data/photos"),
    ],
)
def test_an_address_is_kept_as_it_is_written(text, address):
    assert FileTree.parse(text) == FileTree(address)


@pytest.mark.parametrize("text", ["photos", "/data/photos", "owner/name@main:config/split", "C:/photos", "a:b//c", ""])
def test_a_path_and_a_dataset_of_the_hub_are_no_addresses(text):
    assert FileTree.parse(text) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:hunter2@bucket/pool", "s3://bucket/pool"),
        ("s3://hunter2@bucket/pool", "s3://bucket/pool"),
        ("s3://bucket/x.tar?X-Amz-Signature=hunter2&X-Amz-Credential=hunter2", "s3://bucket/x.tar"),
        ("az://container/x.tar?sv=2024&sig=hunter2", "az://container/x.tar"),
        ("abfs://container:hunter2@account/x", "abfs://account/x"),
        ("https://user:hunter2@example.org/x.tar?token=hunter2", "https://example.org/x.tar"),
        ("hf://user:hunter2@datasets/a/b/c", "hf://datasets/a/b/c"),
        ("https://huggingface.co/datasets/a/b?token=hunter2", "https://huggingface.co/datasets/a/b"),
    ],
)
def test_what_gives_access_is_refused_and_not_repeated(text, shown):
    assert without_secrets(text) == shown
    for open_it in (FileTree.parse, open_source):
        with pytest.raises(UsageError, match="expected") as caught:
            open_it(text)
        assert str(caught.value).startswith(f"{shown}: ")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["init", "{0}"],
        ["label", "{0}", "--teacher", "test_resnet", "--corpus", "x"],
        ["run", "{0}"],
        ["show", "{0}"],
    ],
)
@pytest.mark.parametrize("address", ["s3://key:hunter2@bucket/pool", "s3://bucket/pool?X-Amz-Signature=hunter2"])
def test_no_command_repeats_what_gives_access(tmp_path, words, address):
    done = CliRunner().invoke(app, [*(word.format(address) for word in words), *(["--store", str(tmp_path)] if words[0] != "init" else [])])
    assert done.exit_code in (1, 2)
    assert "s3:/" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    ["owner/name@v1: a", "abfss://container@account/x: a", "hf://datasets/a/b@v1/x: a=b?", "lost: a@b", "what? s3://a/b c=d"],
)
def test_a_line_without_secrets_stays_as_it_is(line):
    assert redact_secrets(line) == line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ftp://host/pool", "ftp://host/pool: … s3://"),
        ("https://host/pool.tar", "https://host/pool.tar: … s3://"),
        ("s3://", "s3://: expected a bucket, as in s3://bucket/folder"),
        ("s3://*/pool", "s3://*/pool: expected a bucket without wildcards"),
        ("hf://datasets/owner/name", "hf://datasets/owner/name: … OWNER/NAME; write owner/name"),
        ("file://photos", "file://photos: … from the root, … file:///data/photos"),
    ],
)
def test_what_cannot_be_an_address_is_one_line(text, says):
    with pytest.raises(UsageError, match="expected") as caught:
        open_source(text)
    assert is_line(str(caught.value), f"{says}…")


def test_an_address_of_this_machine_is_another_way_to_write_a_path(pool_folder):
    here, there = open_source(str(pool_folder)), open_source(f"file://{pool_folder}")
    assert (there.location, there.fingerprint, there.read(0)) == (here.location, here.fingerprint, here.read(0))


@pytest.fixture
def tree(tmp_path):
    return FileTree(f"file://{tmp_path}/top")


def test_files_are_listed_by_the_bytes_of_their_names_with_sizes_and_what_changes_with_them(tree):
    assert tree.files() == []
    for name in ("b", "a/z", "a.png", "ü", "a/b/c"):
        tree.write(name, name.encode())
    assert [(file.name, file.size) for file in tree.files()] == [("a.png", 5), ("a/b/c", 5), ("a/z", 3), ("b", 1), ("ü", 2)]
    assert [file.name for file in tree.files("a")] == ["a/b/c", "a/z"]
    found = tree.stat("b")
    tree.write("b", b"other")
    assert (found.size, tree.stat("b").size, tree.stat("a"), tree.stat("none")) == (1, 5, None, None)


def test_ranges_and_whole_files_are_read_and_a_missing_one_says_so(tree):
    tree.write("x", b"0123456789")
    assert (tree.read("x"), tree.read("x", 2, 5), tree.read("x", 8, 20), tree.read("x", 20, 30)) == (b"0123456789", b"234", b"89", b"")
    assert tree.read_if_exists("none") is None
    with pytest.raises(MissingFileError, match=r"file:///.*/top/none: no such file"):
        tree.read("none")


def test_a_file_is_created_once(tree):
    assert (tree.create("x", b"first"), tree.create("x", b"second"), tree.read("x")) == (True, False, b"first")
    tree.remove(["x", "never there"])
    assert tree.stat("x") is None


def test_a_file_is_uploaded_to_its_place_once(tree, tmp_path):
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "b").write_bytes(b"second")
    assert (tree.upload_new(tmp_path / "a", "x/y"), tree.upload_new(tmp_path / "b", "x/y"), tree.read("x/y")) == (True, False, b"first")


def test_what_may_pass_is_tried_again_and_said_once_for_all_that_wait_for_it(tree, monkeypatch, caplog):
    monkeypatch.setattr(file_tree, "WAITS_SECONDS", (0.05, 0.05))
    monkeypatch.setattr(file_tree, "_silent_until", {})
    failures = [ConnectionResetError("with a secret"), TimeoutError("with a secret")]

    def call():
        if failures:
            raise failures.pop(0)
        return "done"

    assert tree._with_retries(call, "x") == "done"
    assert caplog.messages == [f"{tree.address_of('x')}: the connection broke or was silent for too long; retrying in 0.05 s"] * 2

    def never():
        raise ConnectionResetError("with a secret")

    with pytest.raises(NstError, match=r"/top/x: the connection broke.*$"):
        tree._with_retries(never, "x")


def test_what_is_read_ahead_comes_in_order_and_tells_of_what_is_missing(tree):
    for index in range(100):
        tree.write(f"{index}", b"%03d" % index)
    wanted = [(Extent(f"{index}", 0, 3), index) for index in range(100)]
    wanted.insert(50, (Extent("none", 0, 3), -1))
    found = list(read_ahead(tree, iter(wanted)))
    assert [beside for beside, _ in found] == [beside for _, beside in wanted]
    assert isinstance(found[50][1], MissingFileError)
    assert str(found[50][1]) == "no such file"  # as a reason it is published, and an address may name a bucket
    assert [content for beside, content in found if beside >= 0] == [b"%03d" % index for index in range(100)]


@pytest.mark.parametrize(("size", "members", "requests", "most_bytes"), [(1_000, 3_000, 3, 5 * 2**20), (12 * 2**20, 3, 5, 5 * 2**20)])
def test_headers_of_a_tar_file_are_read_in_blocks_or_one_by_one_where_they_are_far_apart(tmp_path, size, members, requests, most_bytes):
    path = write_tar(tmp_path / "x.tar", [(f"{index}.png", bytes(size)) for index in range(members)])
    asked = []

    class Counted(FileTree):
        def read(self, name, start=None, stop=None):
            content = super().read(name, start, stop)
            asked.append(len(content))
            return content

    tree = Counted(f"file://{tmp_path}")
    source = AddressedTars(tree.address, tree, tree.files(), ["x.tar"], None, None)
    assert len(asked) <= requests
    assert sum(asked) < most_bytes
    assert keys(source) == keys(open_source(path))
    assert source.read(members - 1) == bytes(size)


@pytest.mark.parametrize("piece", [700, 2**20])
@pytest.mark.parametrize(
    "options", [{"compression": "none"}, {"compression": "zstd"}, {"use_dictionary": ["image"]}, {"data_page_size": 400}]
)
def test_row_groups_read_in_pieces_hold_the_images_of_the_file(tmp_path, monkeypatch, piece, options):
    monkeypatch.setattr(streamed, "PIECE_BYTES", piece)
    images = [bytes([index]) * (100 + index) for index in range(40)]
    pq.write_table(pa.table({"before": range(40), "image": images, "after": images}), tmp_path / "x.parquet", row_group_size=9, **options)
    tree = FileTree(f"file://{tmp_path}")
    source = StreamedParquet(tree.address, tree, tree.files(), ["x.parquet"], "image")
    assert [bytes(row.read()) for row in source.rows(range(40))] == images
    assert [(row.id, bytes(row.read())) for row in source.rows(range(8, 20))] == [(row, images[row]) for row in range(8, 20)]


def test_a_damaged_row_group_is_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [bytes([index]) * 500 for index in range(9)]}), path, row_group_size=3, compression="none")
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content[start : start + 36] = bytes(36)
    path.write_bytes(content)
    tree = FileTree(f"file://{tmp_path}")
    there, here = StreamedParquet(tree.address, tree, tree.files(), ["x.parquet"], None), open_source(str(path))
    assert read_contents(there) == read_contents(here)
    assert read_contents(there)[4].startswith("NstError: row group 1 of x.parquet is damaged")


def test_extents_that_lie_near_one_another_are_read_at_once():
    wanted = [("a", 0, 10), ("a", 512, 600), ("a", 2**20, 2**20 + 5), ("b", 2**20 + 6, 2**20 + 7), ("b", 0, 5), ("b", 8, 2**24)]
    joined = [(whole, len(near)) for whole, near in group_neighbors((Extent(*one), None) for one in wanted)]
    assert joined == [
        (Extent("a", 0, 600), 2),
        (Extent("a", 2**20, 2**20 + 5), 1),
        (Extent("b", 2**20 + 6, 2**20 + 7), 1),
        (Extent("b", 0, 5), 1),
        (Extent("b", 8, 2**24), 1),
    ]

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import TOKEN, commit, read_files, resolve_commit, serving, set_ref
from hub_looks import open_each, parquet
from pictures import images_and_labels, png, read_contents, tar_bytes
from wording import is_line

from nst_data.sources import open_source, what_changed

CARD = b"---\nconfigs:\n- config_name: %s\n  data_files: %s\n- config_name: other\n  data_files: b/*.parquet\n---\n"
DECLARED = b"""---
dataset_info:
  features:
  - {name: thumb, dtype: binary}
  - {name: photo, dtype: image}
  - {name: n, dtype: int64}
  - name: kind
    dtype: {class_label: {names: {'0': ant, '1': bee}}}
---
"""


def fill(top):
    """Repositories of every kind under one owner."""
    data = images_and_labels()
    table = data.data.table
    commit(
        top,
        "me/one",
        {"data/train-00000-of-00002.parquet": parquet(table.slice(0, 2)), "data/train-00001-of-00002.parquet": parquet(table.slice(2))},
    )
    commit(top, "me/splits", {f"data/{split}-00000-of-00001.parquet": parquet(data) for split in ("train", "test")})
    commit(top, "me/configs", {"README.md": CARD % (b"first", b"a/*.parquet"), "a/x.parquet": parquet(data), "b/y.parquet": parquet(data)})
    commit(
        top,
        "me/outside",
        {"README.md": CARD % (b"first", b"hf://datasets/me/splits/data/train-00000-of-00001.parquet"), "b/y.parquet": parquet(data)},
    )
    commit(top, "me/folder", {f"{kind}/{index}.png": png(label, index) for label, kind in enumerate(("ant", "bee")) for index in range(2)})
    commit(
        top,
        "me/tars",
        {"b-1.tar": tar_bytes([("x.png", png(1)), ("x.cls", b"bee")]), "b-0.tar": tar_bytes([("x.png", png(0)), ("x.cls", b"ant")])},
    )
    cells = [{"bytes": None, "path": path} for path in ("../secret.png", "/etc/passwd", "x.png")]
    commit(
        top,
        "me/paths",
        {"x.parquet": parquet(pa.table({"image": pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}))},
    )
    card = b"---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n---\n"
    commit(top, "me/hostile", {"README.md": card, "x.jsonl": b'{"image": "/etc/passwd"}'})
    damaged = bytearray(parquet(pa.table({"image": [png(0, index) for index in range(6)]}), row_group_size=2))
    start = pq.read_metadata(pa.BufferReader(bytes(damaged))).row_group(1).column(0).data_page_offset
    damaged[start : start + 36] = bytes(36)
    commit(top, "me/damaged", {"x.parquet": bytes(damaged)})
    commit(top, "me/several", {"x.parquet": parquet(pa.table({"image": [png(0)], "thumbnail": [png(1)]}))})
    declared = pa.table({"thumb": [png(1)] * 2, "photo": [png(0), png(1)], "n": [7, 8], "kind": [1, 0]})
    commit(top, "me/declared", {"README.md": DECLARED, "x.parquet": parquet(declared)})
    commit(top, "me/text", {"README.md": b"nothing here"})
    commit(top, "me/script", {"script.py": b"raise SystemExit"})
    for secret in ("private", "gated"):
        commit(top, f"me/{secret}", {"x.parquet": parquet(data)})
        Path(top, "datasets/me", secret, secret).touch()
    old = commit(top, "me/versions", {"x.parquet": parquet(table.slice(0, 1))})
    set_ref(top, "me/versions", "v1", old)
    set_ref(top, "me/versions", "refs/pr/1", old)
    commit(top, "me/versions", {"x.parquet": parquet(table.slice(1))})
    return old


CASES = {
    "downloaded": ("me/one", {}),
    "streamed": ("me/one", {"stream": True}),
    "downloaded labels": ("me/one", {"labeled": True}),
    "streamed labels": ("me/one/train", {"labeled": True, "stream": True}),
    "some streamed": ("me/one", {"stream": True, "wanted": [0, 2]}),
    "no split": ("me/splits", {}),
    "wrong split": ("me/splits/validation", {}),
    "split": ("me/splits:default/test", {}),
    "no config": ("me/configs", {}),
    "wrong config": ("me/configs:third", {}),
    "config": ("me/configs:other", {}),
    "outside": ("me/outside:first", {}),
    "folder": ("me/folder", {"labeled": True}),
    "streamed folder": ("me/folder", {"stream": True}),
    "tars": ("me/tars", {"labeled": True}),
    "streamed tars": ("me/tars", {"stream": True}),
    "paths": ("me/paths", {}),
    "streamed paths": ("me/paths", {"stream": True}),
    "damaged": ("me/damaged", {}),
    "streamed damaged": ("me/damaged", {"stream": True}),
    "several": ("me/several", {}),
    "one of several": ("me/several", {"image_column": "thumbnail"}),
    "declared": ("me/declared", {"labeled": True}),
    "streamed declared": ("me/declared", {"labeled": True, "stream": True}),
    "text": ("me/text", {}),
    "script": ("me/script", {}),
    "private": ("me/private", {}),
    "gated": ("me/gated", {}),
    "missing": ("me/nothing", {}),
    "newest": ("me/versions", {}),
    "tag": ("me/versions@v1", {}),
    "pull request": ("me/versions@refs/pr/1", {}),
    "wrong revision": ("me/versions@v2", {}),
    "no name": ("me/no--name", {}),
    "hostile": ("me/hostile", {}),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    top = tmp_path_factory.mktemp("hub")
    old = fill(top)
    with serving(top) as (url, answers):
        yield top, url, answers, old


@pytest.fixture(scope="module")
def found(hub, tmp_path_factory):
    """What each case finds, in one process."""
    _, url, _, _ = hub
    return dict(zip(CASES, open_each(url, tmp_path_factory.mktemp("home"), *CASES.values()), strict=True))


def test_a_download_and_a_stream_and_local_files_give_equal_rows(hub, found, tmp_path):
    top, _, _, _ = hub
    for path, content in read_files(top, "me/one").items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    local = open_source(str(tmp_path), labeled=True)
    hexes = [content.hex() for content in read_contents(local)]
    for case in ("downloaded", "streamed", "downloaded labels", "streamed labels"):
        assert found[case]["found"] == found[case]["single"] == hexes
        assert found[case]["keys"] == [f"data/train-0000{file}-of-00002.parquet:{row}" for file, row in ((0, 0), (0, 1), (1, 0))]
    assert found["downloaded"]["fingerprint"] == found["streamed"]["fingerprint"]
    assert found["downloaded labels"]["fingerprint"] == found["streamed labels"]["fingerprint"]
    assert found["some streamed"]["found"] == [hexes[0], hexes[2]]
    for case in ("downloaded labels", "streamed labels"):
        assert (
            (found[case]["labels"], found[case]["class_names"])
            == (local.labels.tolist(), local.class_names)
            == ([1, 0, 1], ["zebra", "ant"])
        )
    assert [found[case]["kind"] for case in ("downloaded", "streamed")] == ["ParquetFiles", "StreamedParquet"]


def test_a_source_of_the_hub_is_pinned_by_its_commit(hub, found):
    top, _, _, old = hub
    now = resolve_commit(top, "me/versions")
    assert found["newest"]["revision"] == now
    assert found["newest"]["location"] == f"me/versions@{now}:default/train"
    assert found["newest"]["listing"] == [{"name": found["newest"]["location"], "bytes": 0}]
    assert {found[case]["location"] for case in ("tag", "pull request")} == {f"me/versions@{old}:default/train"}
    assert (len(found["newest"]["keys"]), len(found["tag"]["keys"])) == (2, 1)
    listings = [pa.Table.from_pylist(found[case]["listing"]) for case in ("tag", "newest")]
    assert what_changed(*listings) == f"'me/versions@{old}:default/train' before, 'me/versions@{now}:default/train' now"


@pytest.mark.slow
def test_every_location_opens_the_same_source_again(hub, found, tmp_path):
    _, url, _, _ = hub
    cases = ("split", "config", "tag", "folder")
    assert [again["keys"] for again in open_each(url, tmp_path, *((found[case]["location"], {}) for case in cases))] == [
        found[case]["keys"] for case in cases
    ]


def test_other_formats_are_read_as_datasets_reads_them(found):
    images = [png(label, index).hex() for label in range(2) for index in range(2)]
    assert found["folder"]["found"] == found["folder"]["single"] == images
    assert (found["folder"]["labels"], found["folder"]["class_names"]) == ([0, 0, 1, 1], ["ant", "bee"])
    assert found["folder"]["keys"] == ["0", "1", "2", "3"]


def test_tar_files_of_the_hub_are_downloaded(found):
    assert found["tars"]["keys"] == ["b-0.tar:x.png", "b-1.tar:x.png"]
    assert found["tars"]["found"] == found["tars"]["single"] == [png(0).hex(), png(1).hex()]
    assert (found["tars"]["labels"], found["tars"]["class_names"]) == ([0, 1], ["ant", "bee"])


def test_a_config_and_a_split_are_taken_by_name(found):
    assert found["split"]["keys"][0] == "data/test-00000-of-00001.parquet:0"
    assert found["config"]["keys"][0] == "b/y.parquet:0"


@pytest.mark.parametrize("case", ["paths", "streamed paths", "hostile"])
def test_what_a_repo_writes_into_its_tables_leads_to_no_other_file(found, case):
    assert found[case]["found"] == found[case]["single"]
    assert all(text.startswith("names the file '") and text.endswith("' and holds no bytes") for text in found[case]["found"])


@pytest.mark.parametrize("case", ["damaged", "streamed damaged"])
def test_rows_of_a_damaged_row_group_on_the_hub_say_so(found, case):
    before, after = ([png(0, index).hex() for index in rows] for rows in ((0, 1), (4, 5)))
    assert found[case]["found"] == found[case]["single"]
    assert (found[case]["found"][:2], found[case]["found"][4:]) == (before, after)
    assert all(text.startswith("row group 1 of x.parquet is damaged (") for text in found[case]["found"][2:4])


@pytest.mark.parametrize("case", ["declared", "streamed declared"])
def test_a_card_says_which_column_is_the_image_and_which_the_label(found, case):
    assert found[case]["found"] == found[case]["single"] == [png(0).hex(), png(1).hex()]
    assert (found[case]["labels"], found[case]["class_names"]) == ([1, 0], ["ant", "bee"])


def test_one_of_several_columns_is_taken_by_name(found):
    assert found["one of several"]["found"] == [png(1).hex()]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no split", "UsageError: me/splits: … no split, … train, test; … me/splits/train"),
        ("wrong split", "UsageError: me/splits/validation: … 'validation', … train, test; … me/splits/train"),
        ("no config", "UsageError: me/configs: … no config, … first, other; … me/configs:first"),
        ("wrong config", "UsageError: me/configs:third: … 'third', … first, other; … me/configs:first"),
        ("outside", "NstError: me/outside:first: … not in the repo; … files of its own"),
        (
            "streamed folder",
            "UsageError: `stream`: me/folder … parquet …; remove `stream`",
        ),
        ("streamed tars", "UsageError: `stream`: me/tars … parquet …; remove `stream`"),
        ("several", "UsageError: me/several@"),
        ("text", "NstError: me/text: … no data files"),
        ("script", "NstError: me/script: … no code …; use one with data files"),
        (
            "private",
            "NstError: me/private: … no such dataset …; correct it or, for a private one, log in",
        ),
        ("gated", "NstError: me/gated: … request access … `hf auth login`"),
        ("missing", "NstError: me/nothing: no such file …, … no such dataset"),
        ("wrong revision", "NstError: me/versions@v2: … no such revision; … branch, tag or commit"),
        ("no name", "NstError: me/no--name: no such file …, … no such dataset"),
    ],
)
def test_what_cannot_be_opened_is_one_line_that_says_what_to_do(found, case, message):
    assert is_line(found[case]["error"], f"{message}…")
    assert "\n" not in found[case]["error"]


def test_a_private_dataset_is_read_with_a_token_that_nobody_sees(hub, tmp_path):
    _, url, _, _ = hub
    private, gated = open_each(url, tmp_path, ("me/private", {}), ("me/gated", {}), token=TOKEN)
    assert len(private["found"]) == 3
    assert "request access" in gated["error"]

"""Sources in a bucket of the Hub: what the same files in a folder give."""

import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from hub import ALICE, BOB, environment, serving
from hub_faults import ALWAYS, Fault
from hub_looks import open_each
from pictures import images_and_labels, keys, png, read_contents, tar_bytes
from wording import is_line

from nst_data.sources import open_source

TOP = "hf://buckets/alice/photos"


@pytest.fixture
def bucket(tmp_path):
    folder = tmp_path / "top/buckets/alice/photos"
    for name in ("pool/a/1 +%20.png", "pool/ü.png", "pool/b.png", "pool-2/other.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(0, len(name)))
    (folder / "tars").mkdir()
    (folder / "tars/x.tar").write_bytes(tar_bytes([(f"{index}.png", png(0, index)) for index in range(3)]))
    pq.write_table(images_and_labels().data.table, folder / "x.parquet", row_group_size=2)
    (tmp_path / "home").mkdir()
    return folder


def test_an_address_gives_the_rows_of_the_same_files_in_a_folder(tmp_path, bucket):
    names = ("pool", "tars", "tars/x.tar", "x.parquet", "*.parquet", "list.txt")
    (bucket / "list.txt").write_text("pool/b.png\npool/ü.png\n")
    with serving(tmp_path / "top") as (url, answers):
        all_found = open_each(url, tmp_path / "home", *((f"{TOP}/{name}", {}) for name in names))
    for name, found in zip(names, all_found, strict=True):
        here = open_source(str(bucket / name))
        assert (found["location"], found["fingerprint"]) == (f"{TOP}/{name}", here.fingerprint)
        assert found["keys"] == keys(here)
        assert found["found"] == found["single"] == [content.hex() for content in read_contents(here)]
    assert {answer.call for answer in answers} == {"bucket", "bucket tree", "bucket resolve"}


WRITTEN_AGAIN = """
import pathlib, sys
from nst_data.sources import open_source
address, file = sys.argv[1:]
first = open_source(address)
assert first.stamps().tolist() == open_source(address).stamps().tolist()
pathlib.Path(file).write_bytes(pathlib.Path(file).read_bytes()[::-1])
again = open_source(address)
print(first.fingerprint == again.fingerprint, (first.stamps() != again.stamps()).tolist())
"""


def test_a_file_that_was_written_again_at_its_size_is_noticed(tmp_path, bucket):
    command = [sys.executable, "-c", WRITTEN_AGAIN, f"{TOP}/pool", str(bucket / "pool/b.png")]
    with serving(tmp_path / "top") as (url, _):
        done = subprocess.run(command, env=environment(url, tmp_path), capture_output=True, text=True, check=True)
    assert done.stdout == "True [False, True, False]\n"


@pytest.mark.parametrize("token", [None, BOB, "hf_wrong"])
def test_what_is_not_there_or_not_shown_is_one_line(tmp_path, bucket, token):
    (bucket.parent / "secret/pool").mkdir(parents=True)
    (bucket.parent / "secret.private").touch()
    says = {
        "photos/nothing": "no such file or folder; expected …",
        "photos/nothing.tar": "no such file or folder; expected …",
        "nothing/pool": "no such bucket on the Hub; … `hf auth login`",
        "secret/pool": "no such bucket on the Hub; … `hf auth login`",
    }
    with serving(tmp_path / "top") as (url, _):
        all_found = open_each(url, tmp_path / "home", *((f"hf://buckets/alice/{name}", {}) for name in says), token=token)
    for (name, line), found in zip(says.items(), all_found, strict=True):
        line = "the Hub rejects your token; …" if token == "hf_wrong" else line
        assert is_line(found["error"], f"NstError: hf://buckets/alice/{name}: {line}")
        assert not token or token not in found["error"]


def test_a_file_of_another_kind_is_no_source(tmp_path, bucket):
    (bucket / "notes.yaml").write_text("name: notes")
    (bucket / "part-0").write_bytes((bucket / "x.parquet").read_bytes()[:-9])
    with serving(tmp_path / "top") as (url, _):
        other, damaged = open_each(url, tmp_path / "home", (f"{TOP}/notes.yaml", {}), (f"{TOP}/part-0", {}))
    expected = "expected at an address a folder of images, …; if it is a recipe, run it"
    assert is_line(other["error"], f"NstError: {TOP}/notes.yaml: not a source of images; {expected}")
    assert is_line(damaged["error"], f"NstError: {TOP}/part-0: corrupt parquet file …; recreate it")


def test_a_denied_listing_and_a_denied_image_are_one_line(tmp_path, bucket):
    faults = [Fault("bucket tree", 403)]
    with serving(tmp_path / "top", faults) as (url, _):
        (denied, found) = open_each(url, tmp_path / "home", (f"{TOP}/pool", {}), (f"{TOP}/pool", {}), token=ALICE)
    assert is_line(denied["error"], f"NstError: {TOP}/pool: your token has no read access to this bucket; …")
    assert len(found["found"]) == 3
    with serving(tmp_path / "top", [Fault("bucket resolve", 403, times=ALWAYS, path="b.png")]) as (url, _):
        (denied,) = open_each(url, tmp_path / "home", (f"{TOP}/pool", {}), token=ALICE)
    assert is_line(denied["error"], f"NstError: {TOP}/pool/b.png: your token has no read access to this bucket; …")

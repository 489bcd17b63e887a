"""Addresses of the Hub, `hf://datasets/...`, against a server of its protocol."""

from pathlib import Path

import pyarrow as pa
import pytest
from hub import commit, serving, set_ref
from hub_looks import open_each, parquet
from pictures import keys, png, tar_bytes
from wording import is_line

from nst_data.sources import open_source

pytestmark = pytest.mark.slow
CASES = {
    "images": ("hf://datasets/me/files/images", {"labeled": True}),
    "tars": ("hf://datasets/me/files@main/tars", {}),
    "one": ("hf://datasets/me/files/tars/1.tar", {}),
    "pattern": ("hf://datasets/me/files/parquet/*.parquet", {}),
    "parquet": ("hf://datasets/me/files/parquet", {"labeled": True}),
    "tag": ("hf://datasets/me/files@v1/tars", {}),
    "no path": ("hf://datasets/me/files/nothing", {}),
    "no repository": ("hf://datasets/me/nothing/images", {}),
    "no revision": ("hf://datasets/me/files@v2/images", {}),
    "gated": ("hf://datasets/me/gated/parquet", {}),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each case finds, and the same files in a folder."""
    top, here, home = (tmp_path_factory.mktemp(word) for word in ("hub", "here", "home"))
    files = {f"images/{kind}/{index}.png": png(label, index) for label, kind in enumerate(("ant", "bee")) for index in range(3)}
    table = pa.table({"image": [png(0, index) for index in range(6)], "label": [0, 1] * 3})
    files |= {f"parquet/{number}.parquet": parquet(table, row_group_size=2) for number in range(2)}
    old = {"tars/0.tar": tar_bytes([("old.png", png(1))])}
    files |= {f"tars/{number}.tar": tar_bytes([(f"{index}.png", png(number, index)) for index in range(3)]) for number in range(2)}
    set_ref(top, "me/files", "v1", commit(top, "me/files", old))
    commit(top, "me/files", files)
    commit(top, "me/gated", files)
    Path(top, "datasets/me/gated/gated").touch()
    for path, content in files.items():
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).write_bytes(content)
    with serving(top) as (url, _):
        return here, dict(zip(CASES, open_each(url, home, *CASES.values()), strict=True))


@pytest.mark.parametrize(
    ("case", "path"),
    [("images", "images"), ("tars", "tars"), ("one", "tars/1.tar"), ("pattern", "parquet/*.parquet"), ("parquet", "parquet")],
)
def test_an_address_of_the_hub_gives_the_rows_of_the_same_files_in_a_folder(found, case, path):
    here, cases = found
    source = open_source(str(here / path), labeled=CASES[case][1].get("labeled", False))
    there = cases[case]
    assert there["location"] == CASES[case][0]
    assert there["fingerprint"] == source.fingerprint
    assert there["keys"] == keys(source)
    assert there["found"] == there["single"] == [bytes(row.read()).hex() for row in source.rows(range(len(source)))]
    assert there["class_names"] == source.class_names


def test_a_revision_is_the_one_that_is_named(found):
    _, cases = found
    assert cases["tag"]["keys"] == ["0.tar:old.png"]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("no path", "hf://datasets/me/files/nothing: no such file or folder"),
        ("no repository", "hf://datasets/me/nothing/images: no such dataset on the Hub"),
        ("no revision", "hf://datasets/me/files@v2/images: … no such revision"),
        ("gated", "hf://datasets/me/gated/parquet"),
    ],
)
def test_what_is_not_there_is_one_line(found, case, says):
    _, cases = found
    assert is_line(cases[case]["error"], f"NstError: {says}…")
    assert "\n" not in cases[case]["error"]

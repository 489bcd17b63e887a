import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hub import commit, environment, serving
from hub_looks import open_each, parquet

from nst_data.hub.reference import HubReference


@pytest.mark.slow
def test_without_a_network_the_error_says_so(tmp_path):
    (offline,) = open_each("http://127.0.0.1:9", tmp_path, ("me/one", {}), HF_HUB_OFFLINE="1")
    (nobody,) = open_each("http://127.0.0.1:9", tmp_path, ("me/one", {}))
    assert (
        offline["error"]
        == "NstError: me/one: no such file or folder here, and HF_HUB_OFFLINE is set, so the Hub is not asked; unset it or give a path"
    )
    unreached = r"the Hub cannot be reached \([\w ]+\); check the path, the network and HF_ENDPOINT"
    assert re.fullmatch(rf"NstError: me/one: no such file or folder here, and {unreached}", nobody["error"])


def test_a_stream_fetches_the_row_groups_that_are_wanted(tmp_path):
    images = [np.random.default_rng(index).bytes(100_000) for index in range(8)]
    commit(tmp_path / "top", "me/large", {"x.parquet": parquet(pa.table({"image": images}), row_group_size=1)})
    (tmp_path / "home").mkdir()
    with serving(tmp_path / "top") as (url, answers):
        (found,) = open_each(url, tmp_path / "home", ("me/large", {"stream": True, "wanted": [2, 5]}))
    assert found["found"] == found["single"] == [images[2].hex(), images[5].hex()]
    fetched = [answer.size for answer in answers if answer.call == "lfs get"]
    assert 400_000 < sum(fetched) < 800_000  # each image twice, and the footers; not all eight
    assert not list((tmp_path / "home").rglob("*.parquet"))


def test_a_network_that_fails_on_the_way_stops_and_blames_no_image(tmp_path):
    images = [np.random.default_rng(index).bytes(20_000) for index in range(150)]  # more than is read ahead
    commit(tmp_path / "top", "me/large", {"x.parquet": parquet(pa.table({"image": images}), row_group_size=1)})
    script = """
import pathlib, sys
from nst_data.errors import NstError
from nst_data.sources import open_source
rows = open_source("me/large", stream=True).rows(range(150))
next(rows).read()
pathlib.Path(sys.argv[1]).touch()
try:
    for row in rows:
        row.read()
except NstError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "top/datasets/me/large/gated")]
    with serving(tmp_path / "top") as (url, _):
        done = subprocess.run(command, env=environment(url, tmp_path), capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.endswith(": it is gated: request access on the dataset's page, then log in with `hf auth login`\n")
    assert done.stdout.startswith("hf://datasets/me/large@")


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("a/b", HubReference("a/b")),
        ("a/b/train", HubReference("a/b", split="train")),
        ("a/b:c", HubReference("a/b", config="c")),
        ("a/b:c/d", HubReference("a/b", config="c", split="d")),
        ("a/b@v1/train", HubReference("a/b", "v1", split="train")),
        ("a/b@refs/pr/1:c/train", HubReference("a/b", "refs/pr/1", "c", "train")),
        ("a/b@refs/convert/parquet/train", HubReference("a/b", "refs/convert/parquet", split="train")),
        ("a/b@feature%2Fx:c", HubReference("a/b", "feature/x", "c")),
    ],
)
def test_a_reference_names_repo_revision_config_and_split(text, reference):
    assert HubReference.parse(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize("text", ["a", "/a/b", "./a/b", "../a", "a/b/c/d", "a/b.parquet", "a//b", "a/b:", "a/b@", "a/ b", "C:/a"])
def test_a_path_is_no_reference(text):
    assert HubReference.parse(text) is None

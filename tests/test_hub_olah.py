"""What the test Hub stored, read through another server (olah.py)."""

import os

import pytest
from hub import ALICE, resolve_commit, serving
from hub_client import FIRST, SECOND, read, run, write
from olah import serve_mirror

pytestmark = pytest.mark.slow

PUSH = """
options = {"repo_id": "alice/data", "repo_type": "dataset"}
api.create_repo(**options)
for number in ("1", "2"):
    done = api.upload_folder(folder_path=top / number, **options)
    api.create_tag(tag=f"gen-{number}", revision=done.oid, tag_message=f"round {number}" if number == "2" else None, **options)
api.create_repo("alice/net")
api.upload_folder(folder_path=top / "net", repo_id="alice/net")
print(json.dumps(None))
"""
PULL = """
import datasets
from huggingface_hub import get_session
options = {"repo_id": "alice/data", "repo_type": "dataset"}
for number in ("1", "2"):
    api.snapshot_download(revision=f"gen-{number}", local_dir=top / f"olah-{number}", **options)
api.snapshot_download("alice/net", local_dir=top / "olah-net")
refs = api.list_repo_refs(**options)
rows = datasets.load_dataset("alice/data", "balanced", revision="gen-1", split="train")["label"][:]
info = api.dataset_info("alice/data", revision="gen-2")
tree = api.list_repo_tree(recursive=True, revision="gen-1", **options)
commits = get_session().get(f"{api.endpoint}/api/datasets/alice/data/commits/main").json()
print(json.dumps({
    "refs": {ref.ref: ref.target_commit for ref in refs.branches + refs.tags},
    "large": {file.path: file.lfs.sha256 for file in tree if getattr(file, "lfs", None)},
    "rows": rows,
    "sha": info.sha,
    "license": info.card_data.license,
    "titles": [one["title"].strip() for one in commits],
}))
"""


def test_another_server_gives_the_bytes_that_were_pushed(tmp_path):
    network = {"model.safetensors": os.urandom(3_000_000), "config.json": b"{}"}
    for name, contents in (("1", FIRST), ("2", SECOND), ("net", network)):
        write(tmp_path / name, contents)
    with serving(tmp_path / "hub") as (url, _):
        run(url, tmp_path / "home", PUSH, tmp_path, token=ALICE)
    with serve_mirror(tmp_path / "hub", tmp_path / "olah") as url:
        seen = run(url, tmp_path / "other-home", PULL, tmp_path)
    for name, contents in (("1", FIRST), ("2", SECOND), ("net", network)):
        found = read(tmp_path / f"olah-{name}")
        del found[".gitattributes"]
        assert found == contents
    commits = [resolve_commit(tmp_path / "hub", "alice/data", f"gen-{number}") for number in (1, 2)]
    assert seen["refs"] == {"refs/heads/main": commits[1], "refs/tags/gen-1": commits[0], "refs/tags/gen-2": commits[1]}
    assert seen["sha"] == commits[1]
    assert set(seen["large"]) == {"balanced/train-00000-of-00001.parquet", "pictures/counts.png", "bytes"}
    assert seen["rows"] == [0, 1, 2]
    assert seen["license"] == "mit"
    assert seen["titles"] == ["Upload folder using huggingface_hub"] * 2 + ["initial commit"]

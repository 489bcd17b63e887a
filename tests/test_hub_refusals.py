"""Who the test Hub refuses, and what goes wrong at it, seen by the Hub's own client (see hub.py, hub_faults.py)."""

import json

import pytest
from hub import ALICE, BOB, READER, commit, read_files, resolve_commit, serving
from hub_client import LARGE, run, start, write
from hub_faults import ALWAYS, Fault

pytestmark = pytest.mark.slow  # of the tests' own Hub

MAY = """
secret, public = {"repo_id": "alice/secret", "repo_type": "dataset"}, {"repo_id": "alice/data", "repo_type": "dataset"}
file = {"path_or_fileobj": b"x", "path_in_repo": "x.txt"}
print(json.dumps({
    "look": caught(api.dataset_info, "alice/secret"),
    "read": caught(api.hf_hub_download, filename="x.txt", **secret),
    "public": caught(api.hf_hub_download, filename="x.txt", **public),
    "missing": caught(api.dataset_info, "alice/nothing"),
    "revision": caught(api.dataset_info, "alice/data", revision="v9"),
    "file": caught(api.hf_hub_download, filename="y.txt", **public),
    "folder": caught(lambda: list(api.list_repo_tree(path_in_repo="y", **public))),
    "write": caught(api.upload_file, **file, **public),
    "tag": caught(api.create_tag, tag="v1", **public),
    "create": caught(api.create_repo, "alice/more", repo_type="dataset"),
}))
"""


def test_who_may_read_and_write(tmp_path):
    commit(tmp_path / "hub", "alice/data", {"x.txt": b"for all"})
    with serving(tmp_path / "hub") as (url, _):
        run(url, tmp_path / "0", 'print(len(api.create_repo("alice/secret", repo_type="dataset", private=True)))', tmp_path, token=ALICE)
        commit(tmp_path / "hub", "alice/secret", {"x.txt": b"hers alone"})
        tokens = {"nobody": None, "bob": BOB, "wrong": "hf_wrong", "reader": READER, "alice": ALICE}
        seen = {name: run(url, tmp_path / name, MAY, tmp_path, token=token) for name, token in tokens.items()}
    calls = ("look", "read", "public", "missing", "revision", "file", "folder", "write", "tag", "create")
    assert {name: [seen[name][call].get("status") for call in calls] for name in tokens} == {
        "nobody": [401, 401, None, 401, 404, 404, 404, 401, 401, 401],
        "bob": [404, 404, None, 404, 404, 404, 404, 403, 403, 403],
        "wrong": [401] * 10,
        "reader": [None, None, None, 404, 404, 404, 404, 403, 403, 403],
        "alice": [None, None, None, 404, 404, 404, 404, None, None, None],
    }
    errors = [seen["bob"][call]["error"] for call in ("look", "read", "missing", "revision", "file", "folder")]
    assert errors == ["RepositoryNotFoundError"] * 3 + ["RevisionNotFoundError"] + ["RemoteEntryNotFoundError"] * 2
    assert 'rights to create a dataset under the namespace "alice"' in seen["bob"]["create"]["says"]
    assert read_files(tmp_path / "hub", "alice/data")["x.txt"] == b"x"


FAILING = """
def download(repo, name):
    path = api.hf_hub_download(f"alice/{repo}", name, repo_type="dataset")
    return Path(path).read_bytes().hex()

def upload(repo, name):
    return api.upload_file(path_or_fileobj=b"other " + name.encode(), path_in_repo=name, repo_id=f"alice/{repo}", repo_type="dataset")

answers = {f"refs-{kind}": caught(api.list_repo_refs, f"alice/refs-{kind}", repo_type="dataset") for kind in json.loads(sys.argv[2])}
answers["lost"] = caught(api.create_tag, "alice/lost", tag="v1", repo_type="dataset")
for repo, name in (("half", "large.bin"), ("flip", "large.bin"), ("flip", "small.txt")):
    answers[f"{repo} {name}"] = caught(download, repo, name)
answers["busy"], answers["broken"], answers["after"] = [caught(upload, repo, "other.bin") for repo in ("busy", "broken", "broken")]
print(json.dumps(answers))
"""


def test_faults_reach_the_client(tmp_path):
    kinds = (401, 403, 404, 409, 429, 500, 503, "cut")
    faults = [Fault("refs", kind, path=f"refs-{kind}", times=ALWAYS) for kind in kinds]
    faults += [Fault("tag", "lost"), Fault("lfs get", "half", path="/half/"), Fault("lfs get", "flip", path="/flip/")]
    faults += [Fault("resolve", "flip", path="small.txt"), Fault("lfs put", 429, path="/busy/"), Fault("commit", 500, path="/broken/")]
    for repo in (*(f"refs-{kind}" for kind in kinds), "lost", "half", "flip", "busy", "broken"):
        commit(tmp_path / "hub", f"alice/{repo}", {"large.bin": LARGE, "small.txt": b"abc"})
    with serving(tmp_path / "hub", faults) as (url, answers):
        seen = run(url, tmp_path / "home", FAILING, tmp_path, json.dumps(kinds), token=ALICE)
    assert [seen[f"refs-{kind}"]["status"] for kind in kinds[:-1]] == list(kinds[:-1])
    assert seen["refs-cut"]["error"] == seen["lost"]["error"] == "RemoteProtocolError"
    assert resolve_commit(tmp_path / "hub", "alice/lost", "v1") == resolve_commit(
        tmp_path / "hub", "alice/lost"
    )  # done, though nobody was told

    halves = [(answer.status, answer.size) for answer in answers if answer.call == "lfs get" and "/half/" in answer.path]
    assert seen["half large.bin"]["done"] == LARGE.hex()
    assert halves[0] == (0, len(LARGE) // 2)
    assert len(halves) == 2
    for name, content in (("large.bin", LARGE), ("small.txt", b"abc")):
        came = bytes.fromhex(seen[f"flip {name}"]["done"])
        assert [index for index in range(len(content)) if came[index] != content[index]] == [len(content) // 2]

    assert [answer.status for answer in answers if answer.call == "lfs put" and "/busy/" in answer.path] == [429, 200]
    assert "done" in seen["busy"]
    assert seen["broken"]["status"] == 500
    assert "done" in seen["after"]
    assert read_files(tmp_path / "hub", "alice/broken")["other.bin"] == b"other other.bin"


def test_a_client_can_be_killed_at_a_call(tmp_path):
    commit(tmp_path / "hub", "alice/data", {"x.txt": b"x"})
    write(tmp_path / "new", {"large.bin": LARGE, "more.bin": LARGE[1:]})
    script = 'print(len(api.upload_folder(repo_id="alice/data", repo_type="dataset", folder_path=top)))'
    stop = Fault("commit", "stop")
    with serving(tmp_path / "hub", [stop]) as (url, answers):
        process = start(url, tmp_path / "home", script, tmp_path / "new", token=ALICE)
        with process:
            assert stop.arrived.wait(30)
            process.kill()
        stop.go.set()
        assert read_files(tmp_path / "hub", "alice/data") == {"x.txt": b"x"}
        run(url, tmp_path / "home", script, tmp_path / "new", token=ALICE)
    assert read_files(tmp_path / "hub", "alice/data") == {"x.txt": b"x", "large.bin": LARGE, "more.bin": LARGE[1:]}
    assert [answer.status for answer in answers if answer.call == "commit"] == [0, 200]
    assert len([answer for answer in answers if answer.call == "lfs put"]) == 2  # large files stay where they are


def test_of_two_commits_on_one_parent_the_later_is_refused(tmp_path):
    parent = commit(tmp_path / "hub", "alice/data", {"x.txt": b"x"})
    script = """
file = {"path_or_fileobj": sys.argv[2].encode(), "path_in_repo": "x.txt", "repo_id": "alice/data", "repo_type": "dataset"}
print(json.dumps(caught(api.upload_file, parent_commit=sys.argv[3], **file)))
"""
    hold = Fault("commit", "hold")
    with serving(tmp_path / "hub", [hold]) as (url, _):
        process = start(url, tmp_path / "home", script, tmp_path, "held", parent, token=ALICE)
        assert hold.arrived.wait(30)
        first = run(url, tmp_path / "home", script, tmp_path, "first", parent, token=ALICE)
        hold.go.set()
        held = json.loads(process.communicate()[0])
    assert "done" in first
    assert held["status"] == 412
    assert read_files(tmp_path / "hub", "alice/data") == {"x.txt": b"first"}

"""The test Hub seen by the Hub's own clients, each story in a process of its own (see hub.py)."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from hub import ALICE, commit, read_files, resolve_commit, serving
from hub_card import metadata
from hub_client import FIRST, LARGE, SECOND, read, run, write
from hub_git import Repository
from labels import write_teacher
from test_teachers import write_transformer

pytestmark = pytest.mark.slow  # of the tests' own Hub

PUSH = """
options = {"repo_id": "alice/data", "repo_type": "dataset"}
answers = {"whoami": api.whoami()["name"], "created": str(api.create_repo(**options)), "again": caught(api.create_repo, **options)}
for number in ("1", "2"):
    done = api.upload_folder(folder_path=top / number, **options)
    answers[number] = done.oid
    answers["tag " + number] = caught(api.create_tag, tag=f"gen-{number}", revision=done.oid, tag_message=f"round {number}", **options)
answers["moved"] = caught(api.create_tag, tag="gen-1", revision=done.oid, **options)
answers["nothing new"] = api.upload_folder(folder_path=top / "2", **options).oid
answers["stale"] = caught(api.upload_file, path_or_fileobj=b"x", path_in_repo="x", parent_commit=answers["1"], **options)
answers["card"] = caught(api.upload_file, path_or_fileobj=b"---\\ntags: [a\\n---\\n", path_in_repo="README.md", **options)
answers["3"] = api.delete_file("bytes", **options).oid
answers["4"] = api.delete_folder("pictures", **options).oid
refs = api.list_repo_refs(**options)
answers["refs"] = {ref.ref: ref.target_commit for ref in refs.branches + refs.tags}
answers["titles"] = [one.title for one in api.list_repo_commits(**options)]
tree = api.list_repo_tree(recursive=True, expand=True, revision="gen-2", **options)
answers["changed"] = {file.path: file.last_commit.oid for file in tree}
answers["there"] = [api.file_exists(filename=name, **options) for name in ("a/b", "b")]
for number in ("1", "2"):
    api.snapshot_download(revision=f"gen-{number}", local_dir=top / f"back-{number}", **options)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """(top of the Hub, its address, what a client saw while it pushed two versions, what the Hub answered, the client's folder)."""
    place = tmp_path_factory.mktemp("pushed")
    write(place / "1", FIRST)
    write(place / "2", SECOND)
    with serving(place / "hub") as (url, answers):
        yield place / "hub", url, run(url, place / "home", PUSH, place, token=ALICE), list(answers), place


def test_each_tag_gives_the_bytes_that_were_pushed(pushed):
    _, _, _, _, place = pushed
    for number, contents in (("1", FIRST), ("2", SECOND)):
        found = read(place / f"back-{number}")
        assert b"*.parquet filter=lfs" in found.pop(".gitattributes")
        assert found == contents


def test_names_content_and_size_decide_what_is_a_large_file(pushed):
    top, _, _, _, _ = pushed
    repository = Repository(top / "datasets/alice/data")
    entries = repository.entries(repository.resolve("gen-1")).values()
    assert {entry.path for entry in entries if entry.lfs} == {"balanced/train-00000-of-00001.parquet", "pictures/counts.png", "bytes"}


def test_git_reads_what_was_pushed(pushed):
    top, _, seen, _, _ = pushed
    folder = top / "datasets/alice/data"

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout

    git("fsck", "--strict")
    assert git("show", "gen-1:a text.txt") == "drei Größen\n"
    assert git("rev-parse", "gen-1^{commit}", "gen-2^{commit}").split() == [seen["1"], seen["2"]]
    assert git("for-each-ref", "--format=%(contents:subject)", "refs/tags").split("\n")[:2] == ["round 1", "round 2"]
    assert git("diff", "--name-only", "gen-2", "main").split() == ["bytes", "pictures/counts.png"]
    pointer = git("show", "gen-1:bytes").split()
    assert (folder / ".git/lfs/objects" / pointer[3][7:9] / pointer[3][9:11] / pointer[3][7:]).read_bytes() == FIRST["bytes"]


def test_a_tag_and_a_repository_are_made_once(pushed):
    top, _, seen, _, _ = pushed
    assert (seen["whoami"], seen["tag 1"]) == ("alice", {"done": "None"})
    assert seen["created"].endswith("/datasets/alice/data")
    assert [seen[call]["status"] for call in ("again", "moved")] == [409, 409]
    assert resolve_commit(top, "alice/data", "gen-1") == seen["1"] != seen["2"]
    assert seen["refs"] == {"refs/heads/main": seen["4"], "refs/tags/gen-1": seen["1"], "refs/tags/gen-2": seen["2"]}


def test_the_history_tells_what_changed_when(pushed):
    _, _, seen, _, _ = pushed
    assert seen["titles"][2:] == ["Upload folder using huggingface_hub"] * 2 + ["initial commit"]
    assert seen["nothing new"] == seen["2"]
    changed = {path for path, sha in seen["changed"].items() if sha == seen["2"]}
    assert changed == {"manifest.json", "balanced", "balanced/train-00000-of-00001.parquet"}
    assert seen["there"] == [True, False]


def test_a_commit_wants_the_parent_it_names_and_metadata_that_can_be_read(pushed):
    _, _, seen, _, _ = pushed
    assert seen["stale"]["status"] == 412
    assert "A commit has happened since" in seen["stale"]["says"]
    assert seen["card"]["error"] == "ValueError"
    assert "Invalid metadata in README.md" in seen["card"]["says"]


def test_a_large_file_is_sent_once(pushed):
    _, _, _, answers, _ = pushed
    calls = [answer.call for answer in answers]
    assert calls.count("lfs put") == 4  # three of the first version, one of the second; none when nothing is new
    assert calls.index("lfs put") < calls.index("commit") < calls.index("tag")
    assert calls.count("untag") == 0


def test_datasets_loads_a_tag(pushed, tmp_path):
    _, url, _, _, _ = pushed
    script = """
import datasets
loaded = [datasets.load_dataset("alice/data", "balanced", revision=f"gen-{number}", split="train")["label"][:] for number in "12"]
stream = datasets.load_dataset("alice/data", "balanced", revision="gen-2", split="train", streaming=True)
print(json.dumps([*loaded, [row["label"] for row in stream]]))
"""
    assert run(url, tmp_path, script, tmp_path) == [[0, 1, 2], [3, 4], [3, 4]]


def test_timm_and_transformers_load_a_tag(tmp_path):
    """The weights of each tag, into a network that timm or transformers makes from the repository alone."""
    folders = {name: write_teacher(tmp_path / name, ["ant", "bee", "cat"], seed) for seed, name in enumerate(("old", "new"))}
    folders["vit"] = write_transformer(tmp_path / "vit")
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "pushed.pt")
    script = """
import timm, torch
from timm.models import push_to_hf_hub
from transformers import AutoModelForImageClassification
for name, tag in (("old", "v1"), ("new", "v2"), ("vit", "v3")):
    done = api.create_repo("alice/net", exist_ok=True), api.upload_folder(repo_id="alice/net", folder_path=top / name, delete_patterns="*")
    api.create_tag("alice/net", tag=tag)
network = timm.create_model("test_resnet", num_classes=3)
network.load_state_dict(torch.load(top / "pushed.pt"))
push_to_hf_hub(network, "alice/bare", safe_serialization=True)

def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return [*one] == [*other] and all(torch.equal(one[name], other[name]) for name in one)

def by_transformers(where, **options):
    return AutoModelForImageClassification.from_pretrained(where, **options)

print(json.dumps({
    "v1": equal(timm.create_model("hf-hub:alice/net@v1", pretrained=True), timm.create_model(f"local-dir:{top}/old", pretrained=True)),
    "v2": equal(timm.create_model("hf-hub:alice/net@v2", pretrained=True), timm.create_model(f"local-dir:{top}/new", pretrained=True)),
    "other": equal(timm.create_model("hf-hub:alice/net@v1", pretrained=True), timm.create_model(f"local-dir:{top}/new", pretrained=True)),
    "bare": equal(timm.create_model("hf-hub:alice/bare", pretrained=True), network),
    "wrapped": equal(by_transformers("alice/net", revision="v1"), by_transformers(top / "old")),
    "v3": equal(by_transformers("alice/net", revision="v3"), by_transformers(top / "vit")),
}))
"""
    with serving(tmp_path / "hub") as (url, _):
        seen = run(url, tmp_path / "home", script, tmp_path, token=ALICE)
    assert seen == {"v1": True, "v2": True, "other": False, "bare": True, "wrapped": True, "v3": True}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("license: CC BY 4.0", '"license" with value "CC BY 4.0"'),
        ("license: [mit, other]\nlicense_name: my-own", None),
        ("base_model: ./teacher", '"base_model" with value "./teacher" is not valid'),
        ("base_model: alice/net\ndatasets: [alice/data]", None),
        ("datasets: [alice/data@gen-1]", '"datasets" with value "alice/data@gen-1" is not valid'),
        ("tags: images", '"tags" must be'),
        ("model-index: [{name: net, results: [{task: {type: image-classification}, metrics: [{type: accuracy}]}]}]", "dataset.type"),
        ("- a list", "must be a mapping"),
    ],
)
def test_a_card_is_wrong_where_the_hub_says_so(text, says):
    _, errors, warnings = metadata(f"---\n{text}\n---\n# Card\n")
    assert warnings == []
    assert (says is None and errors == []) or says in errors[0]


def test_a_deleted_tag_is_gone_and_recorded_and_ignored_files_stay_away(tmp_path):
    commit(tmp_path / "hub", "alice/data", {"x.txt": b"x"})
    write(tmp_path / "new", {".gitignore": b"# mine\n*.log\n/scratch/\n", "a.log": b"1", "scratch/b.txt": b"2", "c.txt": b"3"})
    script = """
options = {"repo_id": "alice/data", "repo_type": "dataset"}
api.create_tag(tag="v1", **options)
api.delete_tag(tag="v1", **options)
again = caught(api.delete_tag, tag="v1", **options)
api.upload_folder(folder_path=top, **options)
print(json.dumps(again))
"""
    with serving(tmp_path / "hub") as (url, answers):
        assert run(url, tmp_path / "home", script, tmp_path / "new", token=ALICE)["status"] == 404
    assert [answer.status for answer in answers if answer.call == "untag"] == [200, 404]
    assert resolve_commit(tmp_path / "hub", "alice/data", "v1") is None
    assert set(read_files(tmp_path / "hub", "alice/data")) == {"x.txt", ".gitignore", "c.txt"}


def test_many_files_are_listed_in_pages(tmp_path):
    commit(tmp_path / "hub", "alice/data", {f"{index:04d}.txt": b"x" for index in range(2001)})
    script = 'print(json.dumps([file.path for file in api.list_repo_tree("alice/data", repo_type="dataset", recursive=True)]))'
    with serving(tmp_path / "hub") as (url, answers):
        assert run(url, tmp_path / "home", script, tmp_path) == [f"{index:04d}.txt" for index in range(2001)]
    assert [answer.call for answer in answers] == ["tree"] * 3


def test_a_part_of_a_file_can_be_asked_for(tmp_path):
    commit(tmp_path / "hub", "alice/data", {"large.bin": LARGE, "small.txt": b"0123456789"})
    script = """
from huggingface_hub import HfFileSystem, get_session
ranges = ("bytes=2-4", "bytes=7-", "bytes=-2", "bytes=8-99", "bytes=99-")
asked = [get_session().get(f"{api.endpoint}/datasets/alice/data/resolve/main/small.txt", headers={"Range": text}) for text in ranges]
with HfFileSystem().open("datasets/alice/data/large.bin", block_size=1000, cache_type="none") as file:
    file.seek(70_001)
    part = file.read(300).hex()
print(json.dumps([[answer.status_code, answer.headers["Content-Range"], answer.text] for answer in asked] + [part]))
"""
    with serving(tmp_path / "hub") as (url, answers):
        *seen, part = run(url, tmp_path / "home", script, tmp_path)
    assert seen[:2] == [[206, "bytes 2-4/10", "234"], [206, "bytes 7-9/10", "789"]]
    assert seen[2:] == [[206, "bytes 8-9/10", "89"], [206, "bytes 8-9/10", "89"], [416, "bytes */10", ""]]
    assert part == LARGE[70_001:70_301].hex()
    assert sum(answer.size for answer in answers if answer.call == "lfs get") < 3000


def test_it_serves_alone(tmp_path):
    commit(tmp_path / "hub", "alice/data", {"x.txt": b"x"})
    command = [sys.executable, Path(__file__).parent / "hub.py", tmp_path / "hub"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split()[0]
        seen = run(url, tmp_path / "home", 'print(json.dumps(api.dataset_info("alice/data").sha))', tmp_path)
        process.terminate()
    assert seen == resolve_commit(tmp_path / "hub", "alice/data")

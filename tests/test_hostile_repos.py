"""Repositories of people who mean harm: what is in them stays in its folder, and names in them stay names."""

import json
import re
import shutil

import pytest
from hub import ALICE, commit, read_files, serving, set_ref
from hub_commands import nst
from markdown_it import MarkdownIt

from nst_data.store.manifest import SealedFile, content_digest, parse_manifest
from nst_data.store.store import Store

pytestmark = pytest.mark.slow  # a server and processes of their own

MARKUP = "<script>alert(1)</script> [x](http://y) `z` | **b**"


@pytest.fixture(scope="module")
def sound(tiny_store, tmp_path_factory):
    """The files of a generation as a user pushed it, by name."""
    home, top = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("hub")
    store, *_ = tiny_store
    shutil.copytree(store.root, home / "store")
    with serving(top) as (url, _):
        (done,) = nst(url, home, ["push", "tiny@gen-1", "alice/tiny", "--public"], token=ALICE)
    assert done.status == 0, done.err
    return read_files(top, "alice/tiny", "gen-1")


def changed(sound, **parts):
    """The same files with another manifest, its digest right."""
    manifest = json.loads(sound["nst.json"]) | parts
    request = parse_manifest(json.dumps(json.loads(sound["nst.json"]) | {"request": manifest["request"]}), "x").request
    sealed = {name: SealedFile(**one) for name, one in manifest["files"].items()}
    manifest["digest"] = content_digest(request, sealed, manifest["class_names"])
    return sound | {"nst.json": json.dumps(manifest).encode()}


def other_key(files, old, new):
    return {new if key == old else key: value for key, value in files.items()}


def with_files(sound, *more):
    """The same files, and more that the manifest seals."""
    sealed = json.loads(sound["nst.json"])["files"]
    some = next(iter(sealed))
    return changed(sound | dict.fromkeys(more, sound[some]), files=sealed | dict.fromkeys(more, sealed[some]))


HOSTILE = {
    "name": lambda sound, old: changed(sound, name="../../escaped"),
    "dots": lambda sound, old: changed(sound, name=".."),
    "version": lambda sound, old: changed(sound, version="../../../gen-1"),
    "answers": lambda sound, old: changed(sound, version="review-1"),
    "zeros": lambda sound, old: changed(sound, version="gen-01"),
    "file": lambda sound, old: changed(sound, files=other_key(json.loads(sound["nst.json"])["files"], old, "../../../escaped.parquet")),
    "absolute": lambda sound, old: changed(sound, files=other_key(json.loads(sound["nst.json"])["files"], old, "/tmp/escaped.parquet")),
    "hidden": lambda sound, old: changed(sound, files=other_key(json.loads(sound["nst.json"])["files"], old, ".ssh/escaped.parquet")),
    "code": lambda sound, old: changed(sound, files=other_key(json.loads(sound["nst.json"])["files"], old, "pseudo_labels/x.py")),
    "pickle": lambda sound, old: changed(sound, files=other_key(json.loads(sound["nst.json"])["files"], old, "pytorch_model.bin")),
    "reading": lambda sound, old: with_files(sound, "read/pool.json"),
    "reading-by-case": lambda sound, old: with_files(sound, "Read/pool.json"),
    "places-by-case": lambda sound, old: with_files(sound, "Hub.json"),
    "folders-by-case": lambda sound, old: with_files(sound, "Pseudo_Labels/x.parquet"),
    "files-by-case": lambda sound, old: with_files(sound, old.replace("train-", "Train-")),
    "escape": lambda sound, old: changed(sound, class_names=["ant", "bee", "\x1b]0;owned\x07"]),
    "counts": lambda sound, old: changed(sound, counts={"labeled": "<b>many</b>"}),
    "deep": lambda sound, old: changed(sound, machine={"x": json.loads("[" * 300 + "]" * 300)}),
    "later": lambda sound, old: changed(sound) | {"nst.json": json.dumps(json.loads(sound["nst.json"]) | {"schema_version": 99}).encode()},
    "list": lambda sound, old: changed(sound) | {"nst.json": b"[]"},
    "binary": lambda sound, old: changed(sound) | {"nst.json": b"\xff\xfe{}"},
    "digest": lambda sound, old: (
        sound | {"nst.json": sound["nst.json"].replace(json.loads(sound["nst.json"])["digest"].encode(), b"0" * 64)}
    ),
}


def test_a_manifest_that_leads_out_of_the_store_is_refused_in_a_line_and_nothing_is_written(sound, tmp_path):
    top, home = tmp_path / "hub", tmp_path / "home" / "deep" / "below"
    home.mkdir(parents=True)
    old = next(one for one in sound if one.startswith("pseudo_labels/"))
    for kind, make in HOSTILE.items():
        set_ref(top, f"eve/{kind}", "gen-1", commit(top, f"eve/{kind}", make(sound, old)))
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(home)}
    with serving(top) as (url, _):
        done = nst(url, home, *(["pull", f"eve/{kind}@gen-1"] for kind in HOSTILE))
        looked = nst(url, home, *(["list", "--remote", f"eve/{kind}"] for kind in HOSTILE))
    assert [(kind, one.out, one.err) for kind, one in zip(HOSTILE, done, strict=True) if one.status != 1] == []
    assert all(len(one.err.strip().splitlines()) <= 2 and "Traceback" not in one.err for one in done)
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(home)} == before
    assert not Store(home / "store").versions()
    assert all(one.status == 0 for one in looked)
    assert not any("\x1b" in one.out + one.err or "<b>" in one.out for one in [*done, *looked])


def test_what_is_larger_than_it_should_be_is_not_downloaded(sound, tmp_path):
    top = tmp_path / "hub"
    old = next(one for one in sound if one.startswith("pseudo_labels/"))
    huge = b" " * (64 * 2**20 + 1)
    wrong = {
        "large": (sound | {old: sound[old] + b"x" * 2**20}, f"{old} has .* bytes, its manifest says {len(sound[old]):,}: damaged or mal"),
        "lacking": ({name: content for name, content in sound.items() if name != old}, f"{old} is not there: damaged or malicious"),
        "huge": (sound | {"nst.json": huge}, "nst.json has 64 MB, expected at most 64 MB; it was not read"),
    }
    for kind, (content, _) in wrong.items():
        set_ref(top, f"eve/{kind}", "gen-1", commit(top, f"eve/{kind}", content))
    with serving(top) as (url, answers):
        pulled = nst(url, tmp_path, *(["pull", f"eve/{kind}@gen-1"] for kind in wrong))
        listed, followed = nst(url, tmp_path, ["list", "--remote", "eve/huge"], ["lineage", "eve/huge@gen-1"])
    for one, (_, problem) in zip(pulled, wrong.values(), strict=True):
        assert (one.status, len(one.err.strip().splitlines())) == (1, 1)
        assert re.search(problem, one.err)
    assert listed.status == 0
    assert "nst.json has 64 MB" in listed.out
    assert (followed.status, "nst.json has 64 MB" in followed.err) == (1, True)
    assert [answer.path for answer in answers if answer.call in ("resolve", "lfs get") and "nst.json" not in answer.path] == []
    assert sum(answer.size for answer in answers) < 2**20
    assert not Store(tmp_path / "store").versions()


def test_files_that_no_manifest_names_are_not_fetched_and_odd_metrics_are_dropped(sound, tmp_path):
    top = tmp_path / "hub"
    extra = {
        "setup.py": b"import os",
        "tiny.py": b"import os",
        "model.pkl": b"x",
        "a/b/c.png": b"x",
        ".hidden.md": b"x",
        "hub.json": b"[]",
        "metrics.json": b'{"test": "<b>"}',
        "evil name.png": b"x",
        "ok.png": b"x",
    }
    set_ref(top, "eve/more", "gen-1", commit(top, "eve/more", sound | extra))
    with serving(top) as (url, _):
        (done,) = nst(url, tmp_path, ["pull", "eve/more"])
    assert done.status == 0, done.err
    folder = Store(tmp_path / "store").open("tiny").folder
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there - sound.keys() == {"hub.json", "ok.png"}
    assert json.loads((folder / "hub.json").read_text())[0]["repo"] == "eve/more"


def test_names_of_a_repository_stand_as_text_in_what_is_made_from_it(sound, tmp_path):
    top, manifest = tmp_path / "hub", json.loads(sound["nst.json"])
    request = manifest["request"]
    request["inputs"]["teacher"] |= {"ref": MARKUP, "repo": None, "revision": None}
    request["inputs"]["pool"]["ref"] = MARKUP
    request["settings"]["note"] = MARKUP
    set_ref(top, "eve/names", "gen-1", commit(top, "eve/names", changed(sound, request=request)))
    with serving(top) as (url, _):
        pulled, balanced, pushed, tree = nst(
            url,
            tmp_path,
            ["pull", "eve/names"],
            ["balance", "tiny@gen-1", "--min-confidence", 0, "--per-class", 20],
            ["push", "tiny@gen-1", "alice/names"],
            ["lineage", "tiny@gen-1.1"],
            token=ALICE,
        )
    assert [pulled.status, balanced.status, pushed.status, tree.status] == [0, 0, 0, 0], (pulled.err, balanced.err, pushed.err, tree.err)
    local = (Store(tmp_path / "store").open("tiny@gen-1.1").folder / "README.md").read_text()
    for card in (local, read_files(top, "alice/names", "gen-1")["README.md"].decode()):
        html = MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])
        assert "<script>" not in html
        assert "http://y" not in [part.partition('"')[0] for part in html.split('href="')[1:]]
        assert "<strong>b</strong>" not in html


def test_a_pulled_manifest_makes_no_command_read_a_folder_or_ask_a_repository_that_it_names(sound, tiny_store, tmp_path):
    """Whatever it says of itself, and also where what the pull has noted beside it is deleted."""
    top, manifest = tmp_path / "hub", json.loads(sound["nst.json"])
    _, labeled, pool = tiny_store
    for kind, ref in (("folder", str(pool)), ("repository", "eve/images@main:default/train")):
        request = json.loads(json.dumps(manifest["request"]))
        request["inputs"]["pool"] |= {"ref": ref, "pulled": False}
        request["inputs"]["teacher"] |= {"ref": "eve/model", "repo": "../../eve/model", "revision": None, "pulled": False}
        set_ref(top, f"eve/{kind}", "gen-1", commit(top, f"eve/{kind}", changed(sound, request=request)))
    with serving(top) as (url, answers):
        done = nst(url, tmp_path, ["pull", "eve/folder", "--as", "folder"], ["pull", "eve/repository", "--as", "repository"])
        assert [one.status for one in done] == [0, 0], done
        for hub in (tmp_path / "store").rglob("hub.json"):
            hub.unlink()
        before = len(answers)
        done = nst(
            url,
            tmp_path,
            *(["balance", kind, "--embed-images"] for kind in ("folder", "repository")),
            ["balance", "folder", "--min-confidence", 0, "--per-class", 5],
            ["train", "--labeled", labeled, "--pseudo", "folder@gen-1.1", "--model", "test_resnet", "--name", "x"],
            ["label", pool, "--extend", "folder@gen-1"],
            ["show", "folder@gen-1"],
        )
        assert answers[before:] == []
        (tree,) = nst(url, tmp_path, ["lineage", "folder@gen-1"])
    assert [one.status for one in done] == [2, 2, 0, 2, 2, 0], [one.err for one in done]
    assert all("a downloaded manifest" in one.err for one in done if one.status)
    assert (tree.status, "named by a downloaded manifest, not followed" in tree.out) == (0, True), tree
    assert len(answers) == before

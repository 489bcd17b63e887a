"""What goes wrong between us and the Hub: tried again where that is right, else one line, and nothing half-done that can be read."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hub import ALICE, USERS, environment, read_files, resolve_commit, serving
from hub_commands import nst
from hub_faults import ALWAYS, Fault
from wording import mentions

from nst_data.store.store import Store

pytestmark = pytest.mark.slow

PASSING = [429, 500, 503, "cut", "lost"]
LASTING = [401, 403, 404]
PUSH_CALLS = ["info", "refs", "preupload", "lfs batch", "lfs put", "commit", "tag"]
PULL_CALLS = ["info", "refs", "head", "resolve", "lfs get", "tree"]


def cases(calls, kinds):
    return [(call, kind) for call in calls for kind in kinds]


@pytest.fixture(scope="module")
def home(tiny_store, tmp_path_factory):
    store, *_ = tiny_store
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(store.root, folder / "store")
    return folder


def is_one_line(done):
    return len([line for line in done.err.splitlines() if line.startswith("nst: ")]) == 1 and "Traceback" not in done.err


def test_a_push_survives_what_passes_and_its_tag_names_all_files(home, tmp_path):
    found = cases(PUSH_CALLS, PASSING)
    repos = [f"alice/p{number}x" for number in range(len(found))]
    faults = [Fault(call, kind, path=repo) for (call, kind), repo in zip(found, repos, strict=True)]
    with serving(tmp_path, faults) as (url, _):
        done = nst(url, home, *(["push", "tiny@gen-1.1", repo] for repo in repos), token=ALICE)
    assert [fault.seen > 0 for fault in faults] == [True] * len(faults)
    assert [case for case, one in zip(found, done, strict=True) if one.status] == []
    whole = set(read_files(tmp_path, repos[0], "gen-1.1"))
    assert {"README.md", "nst.json"} < whole
    assert all(set(read_files(tmp_path, repo, "gen-1.1")) == whole for repo in repos)


@pytest.mark.parametrize("call", ["create", "validate"])
def test_a_push_survives_what_passes_where_a_call_names_no_repository(home, tmp_path, call):
    faults = [Fault(call, kind, first=1 + 2 * number) for number, kind in enumerate(PASSING[:4])]  # each push asks once more
    with serving(tmp_path, faults) as (url, answers):
        done = nst(url, home, *(["push", "tiny@gen-1.1", f"alice/s{number}"] for number in range(4)), token=ALICE)
    assert [one.err for one in done if one.status] == []
    assert [answer.status for answer in answers if answer.call == call] == [429, 200, 500, 200, 503, 200, 0, 200]


@pytest.mark.parametrize(
    ("call", "kind", "why"),
    [
        ("create", 401, "the Hub rejects your token"),
        ("create", 403, "no write access …, or … storage is full; … make room"),
        ("create", 404, "no such dataset"),
        ("validate", 400, "metadata …; correct README.md, or … --license"),
        ("commit", 400, "rejects the request (400); check the names"),
        ("commit", 409, "409; try again later"),
    ],
)
def test_a_push_that_is_refused_at_once_says_why_in_a_line(home, tmp_path, call, kind, why):
    with serving(tmp_path, [Fault(call, kind, times=ALWAYS)]) as (url, _):
        (done,) = nst(url, home, ["push", "tiny@gen-1.1", "alice/new"], token=ALICE)
    assert (done.status, is_one_line(done)) == (1, True), done.err
    assert mentions(done.err, why)
    assert not _tagged(tmp_path, "alice/new")


def test_a_push_that_is_refused_says_why_in_a_line_leaves_no_tag_and_is_finished_by_the_next(home, tmp_path):
    found = [*cases(PUSH_CALLS, LASTING), ("tag", 409), ("commit", 409), ("commit", 400), ("lfs put", 400)]
    repos = [f"alice/r{number}x" for number in range(len(found))]
    faults = [Fault(call, kind, path=repo, times=ALWAYS) for (call, kind), repo in zip(found, repos, strict=True)]
    pushes = [["push", "tiny@gen-1.1", repo] for repo in repos]
    with serving(tmp_path, faults) as (url, answers):
        done = nst(url, home, *pushes, token=ALICE)
        assert [(case, one.err) for case, one in zip(found, done, strict=True) if one.status != 1 or not is_one_line(one)] == []
        assert [repo for repo in repos if _tagged(tmp_path, repo)] == []
        faults.clear()
        again = nst(url, home, *pushes, token=ALICE)
    assert [(case, one.err) for case, one in zip(found, again, strict=True) if one.status] == []
    assert all(_tagged(tmp_path, repo) for repo in repos)
    assert not [answer for answer in answers if answer.call == "untag"]


def _tagged(top, repo):
    return (top / "datasets" / repo).exists() and resolve_commit(top, repo, "gen-1.1")


def test_a_hub_that_stays_down_is_told_so(home, tmp_path):
    faults = [Fault("tag", 500, times=ALWAYS), Fault("refs", "cut", times=ALWAYS, path="down")]
    with serving(tmp_path, faults) as (url, _):
        tag, cut = nst(url, home, ["push", "tiny@gen-1.1", "alice/up"], ["push", "tiny@gen-1.1", "alice/down"], token=ALICE)
    assert (tag.status, cut.status) == (1, 1)
    assert mentions(tag.err, "alice/up: … 500; try again later")
    assert re.search(r"alice/down: the Hub cannot be reached \([\w ]+\); check the network and HF_ENDPOINT$", cut.err, re.MULTILINE)


def test_what_a_commit_of_somebody_else_changed_meanwhile_stays(home, tmp_path):
    with serving(tmp_path, [Fault("commit", 412)]) as (url, answers):
        (done,) = nst(url, home, ["push", "tiny@gen-1.1", "alice/busy"], token=ALICE)
    assert done.status == 0, done.err
    assert [answer.status for answer in answers if answer.call == "commit"] == [412, 200]


def test_a_push_that_is_killed_leaves_nothing_to_read_and_the_next_one_finishes_it(home, tmp_path):
    for call in ("lfs put", "commit", "tag"):
        repo = f"alice/killed-{call.replace(' ', '-')}"
        stop = Fault(call, "stop")
        with serving(tmp_path, [stop]) as (url, answers):
            command = [sys.executable, "-c", "from nst_cli.main import run; run()", "push", "tiny@gen-1.1", repo]
            variables = environment(url, home / "hf", ALICE) | {"NST_STORE": str(home / "store")}
            process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            assert stop.arrived.wait(60)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            stop.go.set()
            assert not _tagged(tmp_path, repo)
            sent = len([answer for answer in answers if answer.call == "lfs put" and answer.status == 200])
            (missing, done, pulled) = nst(
                url, home, ["pull", f"{repo}@gen-1.1"], ["push", "tiny@gen-1.1", repo], ["pull", repo, "--as", repo[6:]], token=ALICE
            )
            assert missing.status == 1
            assert (done.status, pulled.status) == (0, 0), (done.err, pulled.err)
            if call == "tag":
                assert len([answer for answer in answers if answer.call == "lfs put" and answer.status == 200]) == sent, "sent once"


@pytest.fixture(scope="module")
def published(home, tmp_path_factory):
    """A Hub with one repository for each test of a pull: (its folder, how many)."""
    top = tmp_path_factory.mktemp("published")
    count = len(PULL_CALLS) * (len(PASSING) + len(LASTING))
    with serving(top) as (url, _):
        (done,) = nst(url, home, ["push", "tiny@gen-1.1", "alice/q0x"], token=ALICE)
        assert done.status == 0, done.err
    for number in range(1, count):
        shutil.copytree(top / "datasets" / "alice" / "q0x", top / "datasets" / "alice" / f"q{number}x")
    return top


def test_a_pull_survives_what_passes(published, tmp_path):
    found = [*cases(PULL_CALLS, PASSING[:4]), ("lfs get", "half")]
    repos = [f"alice/q{number}x" for number in range(len(found))]
    faults = [Fault(call, kind, path=repo) for (call, kind), repo in zip(found, repos, strict=True)]
    pulls = [["pull", repo, "--as", repo[6:]] for repo in repos]
    with serving(published, faults) as (url, _):
        done = nst(url, tmp_path, *pulls, token=ALICE)
        verified = nst(url, tmp_path, *(["verify", f"{repo[6:]}@gen-1.1"] for repo in repos), token=ALICE)
    assert [(case, one.err) for case, one in zip(found, done, strict=True) if one.status] == []
    assert {one.status for one in verified} == {0}


def test_a_pull_that_is_refused_says_why_in_a_line_and_leaves_no_version(published, tmp_path):
    found = [one for one in cases(PULL_CALLS, LASTING) if one != ("info", 404)]  # asked to tell datasets from models, and not needed
    repos = [f"alice/q{number}x" for number in range(len(found))]
    faults = [Fault(call, kind, path=repo, times=ALWAYS) for (call, kind), repo in zip(found, repos, strict=True)]
    pulls = [["pull", repo, "--as", repo[6:]] for repo in repos]
    with serving(published, faults) as (url, _):
        *done, listed = nst(url, tmp_path, *pulls, ["list", "--json"], token=ALICE)
        assert [(case, one.err) for case, one in zip(found, done, strict=True) if one.status != 1 or not is_one_line(one)] == []
        assert listed.value["versions"] == []
        faults.clear()
        again = nst(url, tmp_path, *pulls, token=ALICE)
    assert [(case, one.err) for case, one in zip(found, again, strict=True) if one.status] == []


def test_a_pull_with_one_flipped_byte_is_refused_and_keeps_nothing(published, tmp_path):
    with serving(published, [Fault("lfs get", "flip")]) as (url, _):
        flipped, listed, again = nst(url, tmp_path, ["pull", "alice/q0x"], ["list", "--json"], ["pull", "alice/q0x"], token=ALICE)
    assert flipped.status == 1
    assert mentions(flipped.err, "manifest: damaged on the server …; nothing was kept; pull it again")
    assert listed.value == {"versions": [], "features": [], "unfinished": []}
    assert again.status == 0, again.err


def test_a_pull_that_is_killed_goes_on_where_it_was(home, tmp_path):
    top, far = tmp_path / "hub", tmp_path / "far"
    far.mkdir()
    with serving(top) as (url, _):
        (done,) = nst(url, home, ["push", "tiny@gen-1", "alice/two"], token=ALICE)
        assert done.status == 0, done.err
    stop = Fault("lfs get", "stop", first=2)
    with serving(top, [stop]) as (url, answers):
        command = [sys.executable, "-c", "from nst_cli.main import run; run()", "pull", "alice/two"]
        variables = environment(url, far / "hf", ALICE) | {"NST_STORE": str(far / "store")}
        process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert stop.arrived.wait(60)
        build = far / "store" / "runs" / "pulls" / "tiny" / "gen-1" / "build"
        while not (whole := list(build.glob("*/*.parquet"))):
            time.sleep(0.05)
        process.kill()
        process.wait()
        stop.go.set()
        listed, done = nst(url, far, ["list", "--json"], ["pull", "alice/two"], token=ALICE)
    assert listed.value == {"versions": [], "features": [], "unfinished": ["tiny@gen-1"]}
    assert done.status == 0, done.err
    sealed = done_manifest(far).files
    for first in (sealed[path.relative_to(build).as_posix()].sha256 for path in whole):
        got = [answer for answer in answers if answer.call == "lfs get" and first in answer.path]
        assert len(got) == 1, "what came whole is not fetched again"


def done_manifest(home):
    return Store(home / "store").open("tiny@gen-1").manifest


def test_no_token_is_seen_when_a_call_fails(home, tmp_path):
    """The tests above look at what commands say; here the whole error, were it printed."""
    code = """
import sys
from nst_data.errors import NstError
from nst_data.hub.repository import Repository
import traceback
for call in (lambda r: r.tags(), lambda r: r.head(), lambda r: r.tag("x", "y"), lambda r: r.create(True)):
    try:
        call(Repository("alice/none"))
    except NstError:
        print(traceback.format_exc())
"""
    faults = [Fault(call, 401, times=ALWAYS) for call in ("refs", "info", "tag", "create")]
    with serving(tmp_path, faults) as (url, _):
        done = subprocess.run([sys.executable, "-c", code], env=environment(url, home / "hf", ALICE), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("NstError") >= 4
    assert not any(token in done.stdout + done.stderr for token in USERS)
    assert json.dumps(done.stdout).count("Bearer") == 0

"""What changes beside a version's sealed files reaches the main branch; several versions go there in one command."""

import json
import shutil

import pytest
from hub import ALICE, read_files, resolve_commit, serving
from hub_commands import nst
from wording import mentions

from nst_data.sharing.push import sort_parents_first
from nst_data.store.store import Store

REPO, MODEL = "alice/tiny-pseudo", "alice/tiny-teacher"


def test_what_others_come_from_goes_first(tiny_store):
    store, *_ = tiny_store
    versions = [store.open(ref) for ref in ("tiny@gen-1.1", "tiny@gen-1")]
    assert [one.ref for one in sort_parents_first(versions)] == ["tiny@gen-1", "tiny@gen-1.1"]
    assert [one.ref for one in sort_parents_first(store.versions())] == ["tiny-teacher@gen-0", "tiny@gen-1", "tiny@gen-1.1"]


@pytest.mark.slow
def test_metrics_that_are_recorded_after_a_push_reach_the_card_by_another_push(tiny_store, tmp_path):
    store, labeled, _ = tiny_store
    top, home = tmp_path / "hub", tmp_path / "home"
    shutil.copytree(store.root, home / "store")
    with serving(top) as (url, answers):
        again = ["push", "tiny-teacher@gen-0", MODEL]
        first, measured, second = nst(
            url, home, again, ["evaluate", "tiny-teacher@gen-0", "--data", labeled, "--record", "seen"], [*again, "--json"], token=ALICE
        )
        assert [first.status, measured.status, second.status] == [0, 0, 0], (measured.err, second.err)
        before, asked = resolve_commit(top, MODEL, kind="models"), len(answers)
        (third,) = nst(url, home, again, token=ALICE)
        assert {answer.method for answer in answers[asked:]} <= {"GET", "HEAD"}
    assert mentions(second.err, "updated on main: README.md, metrics.json; tag gen-0 …")
    assert second.value["commit"] == resolve_commit(top, MODEL, "gen-0", "models") != before == resolve_commit(top, MODEL, kind="models")
    assert "updated on main" not in third.err
    tagged, main = read_files(top, MODEL, "gen-0", "models"), read_files(top, MODEL, kind="models")
    assert ("metrics.json" in tagged, b"seen" in tagged["README.md"]) == (False, False)
    assert json.loads(main["metrics.json"])["seen"]["images"] == 12
    assert b"**seen**" in main["README.md"]
    assert str(tmp_path).encode() not in b"".join(main.values())
    assert main["model.safetensors"] == tagged["model.safetensors"]


@pytest.mark.slow
def test_an_edition_that_was_pushed_before_its_generation_gets_its_link_by_another_push_and_an_older_version_stays_off_main(
    tiny_store, tmp_path
):
    top, home = tmp_path / "hub", tmp_path / "home"
    shutil.copytree(tiny_store[0].root, home / "store")

    def generation_on_main():
        return json.loads(read_files(top, REPO)["nst.json"])["request"]["inputs"]["generation"]["repo"]

    with serving(top) as (url, _):
        (first,) = nst(url, home, ["push", "tiny@gen-1.1", REPO], token=ALICE)
        assert (first.status, generation_on_main()) == (0, None)
        refused, mixed, several = nst(
            url,
            home,
            ["push", "tiny@gen-1", "tiny@gen-1.1", REPO, "--tag", "best"],
            ["push", "tiny@gen-1", "tiny-teacher@gen-0", REPO],
            ["push", "tiny@gen-1.1", "tiny@gen-1", "tiny", REPO, "--json"],
            token=ALICE,
        )
        assert (refused.status, mixed.status, several.status) == (2, 2, 0), several.err
        assert mentions(refused.err, "--tag best … one version, … 2 …")
        assert "datasets and models need separate repositories" in mixed.err
        assert [one["ref"] for one in several.value] == ["tiny@gen-1", "tiny@gen-1.1"]
        assert "nst.json; tag gen-1.1 is unchanged" in several.err
        assert generation_on_main() == f"{REPO}@gen-1"
        assert resolve_commit(top, REPO, "gen-1.1") == several.value[1]["commit"] != resolve_commit(top, REPO)
        before = resolve_commit(top, REPO)
        teacher, old, again = nst(
            url, home, ["push", "tiny-teacher", MODEL], ["push", "tiny@gen-1", REPO], ["push", "tiny@gen-1.1", REPO], token=ALICE
        )
    assert [teacher.status, old.status, again.status] == [0, 0, 0]
    assert mentions(old.err, "nst.json of gen-1 changed, … gen-1.1; not uploaded")
    assert "updated on main: README.md" in again.err, "the teacher has a link now"
    assert resolve_commit(top, REPO) != before
    assert [version.verify() for version in Store(home / "store").versions()] == [[], [], []]

"""`push_to` in a recipe: each version goes to the Hub as it is made, and what fails stops nothing."""

import pytest
from conftest import TINY, write_class_folders, write_pool, write_tiny_recipe
from hub import ALICE, resolve_commit, serving
from hub_commands import nst

from nst_data.errors import UsageError
from nst_data.sharing.push import check_tag
from nst_train.recipes.reading import load_recipe

TO = {"corpus": "alice/bugs-pseudo", "teacher": "alice/bugs-teacher"}


@pytest.mark.slow
def test_a_push_that_fails_is_told_stops_nothing_and_is_done_by_the_next_run(tmp_path):
    write_class_folders(tmp_path / "labeled", ["ant", "bee", "cat"], 4)
    write_class_folders(tmp_path / "test", ["ant", "bee", "cat"], 2, first=50)
    write_pool(tmp_path / "pool", 3, 5)
    generations = [TINY, TINY | {"ratio": 1}]
    select = {"min_confidence": 0, "per_class": 8}
    recipe = write_tiny_recipe(tmp_path, generations=generations, select=select, push_to=TO, run={"workers": 0})
    with serving(tmp_path / "hub") as (url, answers):
        (offline,) = nst(url, tmp_path, ["run", recipe, "--json"], token=ALICE, HF_HUB_OFFLINE="1")
        assert offline.status == 0, offline.err
        assert [row["teacher"] for row in offline.value["generations"]] == ["bugs-teacher@gen-0", "bugs-teacher@gen-1"]
        told = [line for line in offline.err.splitlines() if line.startswith("warning: ")]
        told = [line for line in told if not line.startswith("warning: bugs@gen-1.1 has no images of ")]  # of classes, which varies
        assert [line.split(" ")[1] for line in told] == ["bugs-teacher@gen-0", "bugs@gen-1", "bugs@gen-1.1", "bugs-teacher@gen-1"]
        assert all(line.endswith("unset it; the next run of this recipe tries again") for line in told)
        assert answers == []
        (again,) = nst(url, tmp_path, ["run", recipe, "--json"], token=ALICE)
    assert again.status == 0, again.err
    assert "warning" not in again.err
    top = tmp_path / "hub"
    assert all(resolve_commit(top, TO["corpus"], tag) for tag in ("gen-1", "gen-1.1"))
    assert all(resolve_commit(top, TO["teacher"], tag, "models") for tag in ("gen-0", "gen-1"))


@pytest.mark.parametrize(
    ("push_to", "says"),
    [
        ({}, r"push_to:.*`corpus: OWNER/NAME`, `teacher: OWNER/NAME` or both"),
        ({"corpus": "flowers"}, r"push_to\.corpus: flowers:.*OWNER/NAME.*alice/flowers-pseudo"),
        ({"teacher": "alice/x@gen-1"}, r"push_to\.teacher: alice/x@gen-1:.*OWNER/NAME"),
        ({"corpora": "alice/x"}, r"push_to\.corpora: unknown key; did you mean corpus\?"),
    ],
)
def test_a_place_that_is_no_repository_is_named_with_its_line(tmp_path, push_to, says):
    recipe = write_tiny_recipe(tmp_path, generations=[TINY, TINY], push_to=push_to)
    with pytest.raises(UsageError, match=rf"line \d+: {says}"):
        load_recipe(recipe)


@pytest.mark.parametrize("tag", ["", "a b", "-x", "../x", "x..y", "x.lock", "x/y", "é", "gen-01", "x" * 97])
def test_a_tag_that_git_or_the_store_would_not_take_is_refused(tag):
    with pytest.raises(UsageError, match=r"^tag "):
        check_tag(tag)

"""`nst push` and `nst pull` against the test Hub."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest
import yaml
from hub import ALICE, BOB, READER, USERS, commit, read_files, resolve_commit, serving
from hub_commands import nst
from hub_faults import ALWAYS, Fault
from huggingface_hub import parse_eval_result_entries
from wording import mentions

from nst_data import adopt, open_source
from nst_data.cards.own_text import BEGIN
from nst_data.progress import Progress
from nst_data.review.answers import AnswerLog
from nst_data.review.freeze import freeze
from nst_data.sharing.croissant import CROISSANT
from nst_data.store.files import PID_NAMESPACE
from nst_data.store.manifest import parse_manifest
from nst_data.store.store import Store
from nst_data.tables.label_tables import scan_labels
from nst_data.tables.review_table import read_review

pytestmark = pytest.mark.slow  # a server and processes of their own

REPO, MODEL = "alice/tiny-pseudo", "alice/tiny-teacher"


@pytest.fixture(scope="module")
def hub(tiny_store, tmp_path_factory):
    """The store of a user who pushed all her versions, on a Hub that serves: (its folder, address, answers, her home)."""
    top = tmp_path_factory.mktemp("hub")
    home = tmp_path_factory.mktemp("alice")
    store, *_ = tiny_store
    shutil.copytree(store.root, home / "store")
    with serving(top) as (url, answers):
        done = nst(
            url,
            home,
            ["push", "tiny-teacher@gen-0", MODEL, "--license", "mit"],
            ["push", "tiny@gen-1", REPO, "--json"],
            ["push", "tiny@gen-1.1", REPO, "--json"],
            token=ALICE,
        )
        assert [one.status for one in done] == [0, 0, 0], done
        yield top, url, answers, home, done


def folder_of(home, ref):
    return Store(home / "store").open(ref).folder


def test_a_tag_holds_the_files_of_its_version_and_main_those_of_the_newest(hub):
    top, _, _, home, _ = hub
    for tag, table in (("gen-1", "pseudo_labels"), ("gen-1.1", "balanced")):
        there, here = read_files(top, REPO, tag), folder_of(home, f"tiny@{tag}")
        data = {name: content for name, content in there.items() if name.endswith(".parquet")}
        assert data == {path.relative_to(here).as_posix(): path.read_bytes() for path in here.rglob("*.parquet")}
        assert any(name.startswith(f"{table}/") for name in data)
    assert read_files(top, REPO, "main").keys() == read_files(top, REPO, "gen-1.1").keys()
    assert resolve_commit(top, REPO, "main") == resolve_commit(top, REPO, "gen-1.1") != resolve_commit(top, REPO, "gen-1")


def test_the_manifest_there_names_no_folder_of_this_machine_and_links_to_what_it_was_made_from(hub):
    top, _, _, home, _ = hub
    text = read_files(top, REPO, "gen-1")["nst.json"].decode()
    manifest = parse_manifest(text, "gen-1")
    assert manifest.digest == Store(home / "store").open("tiny@gen-1").manifest.digest
    assert (manifest.request.inputs.pool.ref, manifest.request.inputs.teacher.repo) == ("pool", f"{MODEL}@gen-0")
    assert manifest.request.inputs.teacher.revision == resolve_commit(top, MODEL, "gen-0", "models")
    everything = b"".join(
        content for kind, repo in (("datasets", REPO), ("models", MODEL)) for content in read_files(top, repo, kind=kind).values()
    )
    assert str(home).encode() not in everything
    assert b"/tmp" not in text.encode()
    assert "hub.json" not in read_files(top, REPO, "gen-1")


def test_a_second_push_of_the_same_content_does_nothing(hub):
    top, url, answers, home, first = hub
    before = resolve_commit(top, REPO)
    shutil.copytree(home, again := home.parent / "again")
    (again / "store" / "corpora" / "tiny" / "gen-1.1" / "hub.json").unlink()  # as from another machine
    start = len(answers)
    (done,) = nst(url, again, ["push", "tiny@gen-1.1", REPO, "--json"], token=ALICE)
    assert (done.status, done.value) == (0, first[2].value)
    assert "already exists: same content" in done.err
    assert resolve_commit(top, REPO) == before
    assert {answer.method for answer in answers[start:]} <= {"GET", "HEAD"}


def test_the_croissant_there_is_that_of_the_version(hub):
    top, _, _, home, _ = hub
    for tag in ("gen-1", "gen-1.1", "main"):
        text = read_files(top, REPO, tag)[CROISSANT].decode()
        assert json.loads(text)["name"] == f"tiny@{'gen-1.1' if tag == 'main' else tag}"
        assert str(home) not in text
    assert CROISSANT not in read_files(top, MODEL, kind="models")


def test_a_tag_of_other_content_is_refused_with_both_digests_and_never_moved(hub):
    top, url, answers, home, _ = hub
    before = resolve_commit(top, REPO, "gen-1")
    refused, other = nst(
        url, home, ["push", "tiny@gen-1.1", REPO, "--tag", "gen-1"], ["push", "tiny@gen-1.1", REPO, "--tag", "mine", "--json"], token=ALICE
    )
    digests = [Store(home / "store").open(ref).manifest.digest[:12] for ref in ("tiny@gen-1", "tiny@gen-1.1")]
    assert refused.status == 1
    assert mentions(refused.err, f"digest {digests[0]}, yours … {digests[1]}; tags are never moved")
    assert len(refused.err.splitlines()) == 1
    assert (other.status, other.value["tag"]) == (0, "mine")
    assert resolve_commit(top, REPO, "gen-1") == before
    assert not any(answer.method == "DELETE" for answer in answers)


def test_what_people_keep_in_a_repository_stays_there(hub, tiny_store):
    """Their own files and text; the tables of another version go, its tag has them."""
    _, _, _, home, _ = hub
    from hub import commit

    top = home.parent / "own-hub"
    own = {"LICENSE": b"as you like", "notes/why.md": b"because", "my-figure.png": b"a figure", "croissant.json": b'{"name": "mine"}'}
    own |= {"review/why.md": b"because", "metrics.json.bak": b"{}", "errors/mine.parquet": b"PAR1", "summary.csv.gz": b"\x1f\x8b"}
    commit(top, "alice/mine", own | {"pseudo_labels/train-00000-of-00009.parquet": b"old", "confidence.png": b"old"})
    with serving(top) as (url, _):
        (done,) = nst(url, home, ["push", "tiny@gen-1.1", "alice/mine", "--public"], token=ALICE)
    assert done.status == 0, done.err
    there = read_files(top, "alice/mine")
    assert {name: there[name] for name in own} == own
    assert there["confidence.png"] != b"old"
    assert not any(name.startswith("pseudo_labels/") for name in there)


def test_a_repository_is_private_unless_asked_for_and_a_public_one_wants_to_be_named_so(hub):
    _top, url, _, home, _ = hub
    stranger = home.parent / "stranger"
    stranger.mkdir()
    (hidden,) = nst(url, stranger, ["pull", REPO], token=BOB)
    assert (hidden.status, hidden.out) == (1, "")
    assert "no such dataset or model on the Hub" in hidden.err
    public, again, pulled = nst(
        url,
        home,
        ["push", "tiny@gen-1.1", "alice/open", "--public"],
        ["push", "tiny@gen-1", "alice/open"],
        ["list", "--remote", "alice/open", "--json"],
        token=ALICE,
    )
    assert public.status == 0, public.err
    assert again.status == 2
    assert mentions(again.err, "alice/open is public …; add --public")
    assert [one["tag"] for one in pulled.value["versions"]] == ["gen-1.1"]
    (seen,) = nst(url, stranger, ["pull", "alice/open"])
    assert seen.status == 0, seen.err


@pytest.mark.parametrize(
    ("token", "repo", "says"),
    [
        (None, REPO, "not logged in …; … `hf auth login`, … HF_TOKEN"),
        ("hf_unknownToTheServerAndStillNotToBeShown", REPO, "rejects your token; … `hf auth login`"),
        (BOB, "alice/new", "your token has no write access there"),
        (READER, "alice/new", "your token has no write access there"),
    ],
)
def test_who_may_not_push_is_told_so_in_a_line(hub, token, repo, says):
    _, url, _, home, _ = hub
    (done,) = nst(url, home, ["push", "tiny@gen-1.1", repo, "--tag", "never"], token=token)
    assert (done.status, done.out) == (1, "")
    assert mentions(done.err.replace("\n", " "), f"nst: {repo}: …{says}")
    assert "hf_" not in done.err


def test_offline_what_is_local_works_and_what_is_remote_fails_at_once(hub):
    _, url, _, home, _ = hub
    commands = [["list"], ["verify", "tiny@gen-1.1"], ["lineage", "tiny@gen-1.1"]]
    remote = [["push", "tiny@gen-1", "alice/x"], ["pull", REPO], ["list", "--remote", REPO], ["lineage", f"{REPO}@gen-1"]]
    done = nst(url, home, *commands, *remote, token=ALICE, HF_HUB_OFFLINE="1")
    assert [one.status for one in done] == [0, 0, 0, 1, 1, 1, 1]
    assert all(mentions(one.err, "HF_HUB_OFFLINE is set, …; unset it") for one in done[3:])
    assert all(len(one.err.splitlines()) == 1 for one in done[3:])


def test_a_pulled_version_has_the_same_bytes_and_is_verified_against_its_checksums(hub, tmp_path):
    top, url, _, home, _ = hub
    pulled, again, verified, named, listed = nst(
        url,
        tmp_path,
        ["pull", f"{REPO}@gen-1.1", "--json"],
        ["pull", REPO],
        ["verify", "tiny@gen-1.1"],
        ["pull", f"{REPO}@gen-1", "--as", "other"],
        ["list", "--json"],
        token=ALICE,
    )
    assert [pulled.status, again.status, verified.status, named.status] == [0, 0, 0, 0], (pulled, again, verified, named)
    here, there = folder_of(tmp_path, "tiny@gen-1.1"), folder_of(home, "tiny@gen-1.1")
    assert {path.name: path.read_bytes() for path in here.glob("balanced/*")} == {
        path.name: path.read_bytes() for path in there.glob("balanced/*")
    }
    assert "the newest version is mine" not in again.err
    assert "the newest version is gen-1.1" in again.err
    assert "already exists" in again.err
    assert {one["ref"] for one in listed.value["versions"]} == {"tiny@gen-1.1", "other@gen-1"}
    assert listed.value["unfinished"] == []
    place = json.loads((here / "hub.json").read_text())[-1]
    assert (place["repo"], place["tag"], place["commit"]) == (REPO, "gen-1.1", resolve_commit(top, REPO, "gen-1.1"))
    assert not [path for path in (tmp_path / "store").rglob("*") if ".cache" in path.parts]
    kept = sum(path.stat().st_size for path in (tmp_path / "hf").rglob("*.parquet"))
    assert kept == 0, "the version is on disk once"


def test_what_follows_a_pull_is_what_the_version_can_be_used_for(hub, tmp_path):
    _, url, _, home, _ = hub
    shutil.copytree(home / "store", tmp_path / "alice" / "store")
    made, *pushed = nst(
        url,
        tmp_path / "alice",
        ["balance", "tiny@gen-1", "--min-confidence", 0, "--per-class", 20, "--embed-images"],
        ["push", "tiny@gen-1.2", "alice/whole"],
        ["push", "tiny@gen-1.1", "alice/shown", "--anonymous"],
        token=ALICE,
    )
    assert [one.status for one in (made, *pushed)] == [0, 0, 0], (made, pushed)
    whole, plain, shown = nst(url, tmp_path, ["pull", "alice/whole"], ["pull", REPO], ["pull", "alice/shown", "--as", "shown"], token=ALICE)
    assert whole.out.splitlines()[-1].startswith("  next: nst train --labeled LABELED --pseudo tiny@gen-1.2 --model ")
    assert plain.out.splitlines()[-1].startswith("  next: nst train --labeled LABELED --pseudo tiny@gen-1.1 --pool POOL --model ")
    assert shown.out.splitlines()[-1] == "  next: nst show shown@gen-1.1"


def test_what_a_branch_names_when_it_is_pulled_is_remembered_by_its_commit(hub, tmp_path):
    top, url, *_ = hub
    (pulled,) = nst(url, tmp_path, ["pull", f"{REPO}@main"], token=ALICE)
    assert pulled.status == 0, pulled.err
    commit = resolve_commit(top, REPO)
    (place,) = json.loads((folder_of(tmp_path, "tiny@gen-1.1") / "hub.json").read_text())
    assert (place["repo"], place["tag"], place["commit"]) == (REPO, commit, commit)


def test_a_push_warns_of_keys_that_are_paths_of_this_machine(hub, tmp_path, tiny_store):
    _, url, *_ = hub
    pool = tiny_store[2]
    images = sorted(pool.iterdir())
    for name, prefix in (("listed", f"{pool}/"), ("beside", "pool/")):
        table = tmp_path / f"{name}.csv"
        table.write_text("path,label\n" + "".join(f"{prefix}{path.name},{'ab'[row % 2]}\n" for row, path in enumerate(images)))
        (tmp_path / "pool").exists() or shutil.copytree(pool, tmp_path / "pool")
        adopt(Store(tmp_path / "store"), name, table, pool=open_source(table), progress=Progress())
    commands = [
        ["push", "listed@gen-1", "alice/listed"],
        ["push", "listed@gen-1", "alice/nobody", "--anonymous"],
        ["push", "beside@gen-1", "alice/b"],
    ]
    listed, nobody, beside = nst(url, tmp_path, *commands, token=ALICE)
    assert [one.status for one in (listed, nobody, beside)] == [0, 0, 0]
    assert mentions(listed.err, f"warning: listed@gen-1: keys … absolute paths, such as '{images[0]}' …; push with --anonymous")
    assert "absolute" not in nobody.err + beside.err


def test_a_version_that_is_taken_by_other_content_is_not_overwritten(hub, tmp_path, tiny_store):
    _, url, _, _, _ = hub
    store, *_ = tiny_store
    shutil.copytree(store.root / "corpora" / "tiny" / "gen-1", tmp_path / "store" / "corpora" / "tiny" / "gen-1.1")
    refused, teacher = nst(url, tmp_path, ["pull", REPO], ["pull", MODEL, "--as", "tiny"], token=ALICE)
    assert (refused.status, teacher.status) == (1, 1)
    assert "tiny@gen-1.1 exists in" in refused.err
    assert "--as NAME" in refused.err
    assert "'tiny' already names corpora" in teacher.err


def test_what_is_no_version_is_refused_with_what_there_is(hub, tmp_path):
    from hub import commit

    top, url, *_ = hub
    commit(top, "alice/elsewhere", {"data.parquet": b"PAR1"})
    unknown, foreign, no_tag, word = nst(
        url,
        tmp_path,
        ["pull", f"{REPO}@gen-9"],
        ["pull", "alice/elsewhere@main"],
        ["pull", "alice/elsewhere"],
        ["pull", "nothing"],
        token=ALICE,
    )
    assert [one.status for one in (unknown, foreign, no_tag, word)] == [1, 1, 1, 2]
    assert "it has gen-1, gen-1.1" in unknown.err
    assert "`nst adopt` imports pseudo-labels made elsewhere" in foreign.err
    assert mentions(no_tag.err, "tag gen-N or gen-N.K …, found none")
    assert "expected OWNER/NAME of the Hub" in word.err


def test_an_anonymous_push_holds_no_key_and_no_hash_and_says_so_to_who_trains_on_it(hub, tmp_path, tiny_store):
    top, url, _, home, _ = hub
    _, labeled, pool = tiny_store
    pushed, again = nst(
        url,
        home,
        ["push", "tiny@gen-1.1", "alice/nameless", "--anonymous", "--json"],
        ["push", "tiny@gen-1.1", "alice/nameless", "--anonymous"],
        token=ALICE,
    )
    assert pushed.status == 0, pushed.err
    assert "already exists" in again.err
    there = read_files(top, "alice/nameless", "gen-1.1")
    rows = pl.read_parquet([content for name, content in there.items() if name.endswith(".parquet")])
    original = pl.read_parquet(folder_of(home, "tiny@gen-1.1") / "balanced" / "*.parquet")
    assert rows["key"].to_list() == [""] * len(rows)
    assert rows["image_hash"].to_list() == [f"{row:032x}" for row in range(len(rows))]
    same = ["label", "confidence", "probs", "duplicates", "copies"]
    assert rows.select(same).equals(original.select(same))
    everything = b"".join(there.values())
    assert not any(key.encode() in everything for key in original["key"])
    assert not any(one.encode() in everything for one in original["image_hash"])
    pulled, verified, trained = nst(
        url,
        tmp_path,
        ["pull", "alice/nameless"],
        ["verify", "tiny@gen-1.1"],
        [
            "train",
            "--labeled",
            labeled,
            "--pseudo",
            "tiny@gen-1.1",
            "--pool",
            pool,
            "--model",
            "test_resnet",
            "--name",
            "x",
            "--image-size",
            16,
            "--batch-size",
            4,
            "--epochs",
            1,
        ],
        token=ALICE,
    )
    assert (pulled.status, verified.status, trained.status) == (0, 0, 1), (pulled, verified, trained)
    assert mentions(trained.err, "without keys and hashes: …")


def test_no_token_is_left_in_any_file(hub):
    top, _, _, home, _ = hub
    written = [path for path in [*home.rglob("*"), *top.rglob("*")] if path.is_file()]
    assert written
    assert not any(token.encode() in path.read_bytes() for path in written for token in USERS)


def test_several_that_pull_one_version_at_once_all_have_it(hub, tmp_path):
    _, url, _, _, _ = hub
    (tmp_path / "store").mkdir()
    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(lambda _: nst(url, tmp_path, ["pull", f"{REPO}@gen-1"], token=ALICE)[0], range(3)))
    assert [one.status for one in done] == [0, 0, 0], [one.err for one in done]
    version = Store(tmp_path / "store").open("tiny@gen-1")
    assert version.verify() == []
    assert not [path for path in version.folder.rglob("*") if ".cache" in path.parts]


def test_a_push_under_way_is_no_unfinished_version_and_a_dead_one_is_cleared(hub, tmp_path):
    _, url, _, home, _ = hub
    mine = shutil.copytree(home, tmp_path / "home")
    dead = mine / "store" / "runs" / "pushes" / f"tiny@gen-1.1.abcd.{PID_NAMESPACE}.4194999.tmp"
    (dead / "tiny" / "gen-1.1").mkdir(parents=True)
    os.utime(dead, (0, 0))
    assert Store(mine / "store").unfinished() == []
    (done,) = nst(url, mine, ["push", "tiny@gen-1.1", REPO], token=ALICE)
    assert done.status == 0, done.err
    assert not dead.exists()


def test_a_version_with_the_name_of_what_another_was_made_from_can_be_removed(hub, tmp_path):
    """Pulled under another name, an edition still names its generation as its maker did."""
    _, url, _, _, _ = hub
    pulled, generation, refused = nst(
        url,
        tmp_path,
        ["pull", f"{REPO}@gen-1.1", "--as", "alice"],
        ["pull", f"{REPO}@gen-1", "--as", "alice"],
        ["remove", "alice@gen-1"],
        token=ALICE,
    )
    assert (pulled.status, generation.status, refused.status) == (0, 0, 1), (pulled.err, generation.err, refused.err)
    assert "is the parent of alice@gen-1.1" in refused.err


def test_a_teacher_pushed_anonymously_names_no_source(hub, tmp_path):
    top, url, _, home, _ = hub
    pushed, pulled, verified = nst(
        url,
        home,
        ["push", "tiny-teacher@gen-0", "alice/nameless-teacher", "--anonymous"],
        ["pull", "alice/nameless-teacher", "--as", "again"],
        ["verify", "again@gen-0"],
        token=ALICE,
    )
    assert [pushed.status, pulled.status, verified.status] == [0, 0, 0], (pushed.err, pulled.err, verified.err)
    there = parse_manifest(read_files(top, "alice/nameless-teacher", "gen-0", "models")["nst.json"].decode(), "there")
    assert {role: (one.ref, one.digest) for role, one in there.request.inputs.by_role.items() if role != "original"} == {
        "labeled": ("not said", "")
    }


def test_own_text_in_a_local_card_goes_along(hub, tmp_path):
    top, url, _, home, _ = hub
    mine = shutil.copytree(home, tmp_path / "home")
    card = mine / "store" / "corpora" / "tiny" / "gen-1.1" / "README.md"
    card.write_text(card.read_text().replace(BEGIN + "\n", BEGIN + "\n## My words\n"))
    (done,) = nst(url, mine, ["push", "tiny@gen-1.1", "alice/words"], token=ALICE)
    assert done.status == 0, done.err
    assert "## My words" in read_files(top, "alice/words", "gen-1.1")["README.md"].decode()
    assert "## My words" in card.read_text()


def test_a_hub_that_refuses_the_files_is_no_repository_without_versions(tmp_path, hub):
    top, *_ = hub
    with serving(top, [Fault("head", 403, times=ALWAYS)]) as (url, _):
        (done,) = nst(url, tmp_path, ["list", "--remote", REPO], token=ALICE)
    assert (done.status, done.out) == (1, "")
    assert "your token has no read access" in done.err


def test_a_review_goes_to_the_repository_of_its_corpus_and_comes_back_the_same(hub, tmp_path):
    _, url, _, home, _ = hub
    store, repo = Store(home / "store"), "alice/tiny-with-answers"
    (image_hash, key), *_ = scan_labels(store.open("tiny@gen-1")).select("image_hash", "key").head(1).collect().rows()
    AnswerLog(store, "tiny", "ann").append(image_hash, key, excluded="none of these")
    review = freeze(store, "tiny")
    edition, anonymous, pushed, listed = nst(
        url,
        home,
        ["push", "tiny@gen-1.1", repo],
        ["push", "tiny@review-1", repo, "--anonymous"],
        ["push", "tiny@review-1", repo],
        ["list", "--remote", repo, "--json"],
        token=ALICE,
    )
    assert [edition.status, pushed.status] == [0, 0], (edition, pushed)
    assert anonymous.status == 2
    assert mentions(anonymous.err, "tiny@review-1 … only by their hashes; remove --anonymous")
    assert [(one["tag"], one["kind"]) for one in listed.value["versions"]] == [("review-1", "review"), ("gen-1.1", "edition")]
    newest, pulled, verified = nst(
        url,
        tmp_path,
        ["pull", repo, "--as", "theirs", "--json"],
        ["pull", f"{repo}@review-1", "--as", "theirs", "--json"],
        ["verify", "theirs@review-1"],
        token=ALICE,
    )
    assert newest.value["ref"] == "theirs@gen-1.1"
    assert (pulled.value["ref"], pulled.value["kind"], pulled.value["digest"]) == ("theirs@review-1", "review", review.manifest.digest)
    assert verified.status == 0
    there = Store(tmp_path / "store").open("theirs@review-1")
    assert read_review(there).equals(read_review(review))
    assert "annotations_creators:\n- expert-generated\n" in (there.folder / "README.md").read_text()


def test_a_score_on_a_benchmark_of_the_hub_is_pushed_as_its_leaderboard_takes_it(hub, tmp_path, tiny_store):
    top, url, *_ = hub
    tasks = "name: Bugs\ntasks:\n- {id: other, config: default, split: train}\n- {id: bugs, config: default, split: test}\n"
    benchmark = commit(top, "alice/benchmark", {"eval.yaml": tasks.encode()})
    plain = commit(top, "alice/plain", {"README.md": b"none"})
    shutil.copytree(tiny_store[0].root, tmp_path / "store")
    folder = folder_of(tmp_path, "tiny-teacher@gen-0")
    measured = {"top1": 0.75, "images": 8}
    sources = {"test": f"alice/benchmark@{benchmark}:default/test", "more": f"alice/plain@{plain}:default/test", "own": "/photos/test"}
    results = {name: measured | {"source": source} for name, source in sources.items()}
    results["fgsm"] = results["test"] | {"suite": "fgsm"}
    (folder / "metrics.json").write_text(json.dumps(results))
    assert nst(url, tmp_path, ["push", "tiny-teacher@gen-0", "alice/measured"], token=ALICE)[0].status == 0
    there = read_files(top, "alice/measured", "main", "models")
    (entry,) = parse_eval_result_entries(yaml.safe_load(there[".eval_results/nst.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value, entry.dataset_revision) == ("alice/benchmark", "bugs", 75.0, benchmark)
    assert "percent" in entry.notes
    del results["test"]
    (folder / "metrics.json").write_text(json.dumps(results))
    assert nst(url, tmp_path, ["push", "tiny-teacher@gen-0", "alice/measured"], token=ALICE)[0].status == 0
    assert ".eval_results/nst.yaml" not in read_files(top, "alice/measured", "main", "models")
    assert ".eval_results/nst.yaml" in read_files(top, "alice/measured", "gen-0", "models")

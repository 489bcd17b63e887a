import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sealed_labels import COUNTS

from nst_data.errors import NstError, UsageError
from nst_data.sharing.lineage import lineage
from nst_data.store.counts import GenerationCounts
from nst_data.store.files import clear_abandoned, temporary_path, write_text
from nst_data.store.inputs import Input
from nst_data.store.manifest import (
    MANIFEST_NAME,
    EditionManifest,
    EditionRequest,
    GenerationManifest,
    GenerationRequest,
    TeacherRequest,
    parse_manifest,
    read_manifest,
)
from nst_data.store.ownership import InUseError, register_worker
from nst_data.store.store import Number, Staging, Store, Version


def request(kind="generation", seed=0, digest="pool-digest", ref="photos"):
    kinds = {"generation": GenerationRequest, "edition": EditionRequest, "teacher": TeacherRequest}
    return kinds[kind](settings={"seed": seed, "batch_size": 8, "model": "net"}, inputs={"pool": Input(ref=ref, digest=digest)})


def seal(staging, text="labels"):
    (staging.build / "data").mkdir(exist_ok=True)
    files = {"data/a.txt": write_text(staging.build / "data" / "a.txt", text)}
    return staging.seal(staging.build_manifest(files, ["ant", "bee"], COUNTS[staging.request.kind], machine={"device": "cpu"}))


def make_version(store, name="flowers", requested=None, **numbers):
    return seal(store.find_or_stage(requested or request(), name, **numbers))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_a_version_goes_from_staging_to_its_place_whole(store):
    staging = store.find_or_stage(request(), "flowers")
    assert isinstance(staging, Staging)
    assert (store.versions(), store.unfinished()) == ([], ["flowers@gen-1"])
    version = seal(staging)
    assert (store.versions(), store.unfinished()) == ([version], [])
    assert version.folder == store.root / "corpora" / "flowers" / "gen-1"
    assert sorted(path.name for path in version.folder.rglob("*")) == ["a.txt", "data", MANIFEST_NAME]
    assert not staging.folder.exists()
    assert store.open("flowers@gen-1") == store.open("flowers") == version
    assert version.verify() == []


def test_the_manifest_says_what_the_version_was_made_from(store):
    staging = store.find_or_stage(request(), "flowers")
    staging.add_seconds(since=time.monotonic() - 1.5)
    manifest = seal(staging).manifest
    assert manifest.seconds == pytest.approx(1.5, abs=0.4)
    assert (manifest.name, manifest.version, manifest.request) == ("flowers", "gen-1", request())
    assert (manifest.class_names, manifest.counts) == (["ant", "bee"], GenerationCounts(**COUNTS["generation"]))
    assert manifest.machine["device"] == "cpu"
    assert {"nst", "torch", "polars", "pillow", "simplejpeg"} <= manifest.packages.keys()  # the last two decode images


def test_a_version_of_another_kind_is_refused_in_a_line(store):
    manifest = make_version(store).manifest
    assert GenerationManifest.from_manifest(manifest) is manifest
    with pytest.raises(UsageError, match=r"^flowers@gen-1: expected an edition, found a generation$"):
        EditionManifest.from_manifest(manifest)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [({"pool": None}, "pool: Value error, expected an input"), ({}, "pool: Field required"), ({"later": 5}, "later: Input should be")],
)
def test_inputs_that_are_none_are_refused_in_a_line(store, inputs, problem):
    content = json.loads((make_version(store).folder / MANIFEST_NAME).read_text())
    content["request"]["inputs"] = inputs if "later" not in inputs else content["request"]["inputs"] | inputs
    with pytest.raises(NstError, match=rf"^x: request\.inputs\.{problem}.*; the manifest.*damaged$"):
        parse_manifest(json.dumps(content), "x")


def test_the_same_request_finds_the_sealed_version(store):
    version = make_version(store)
    assert store.find_or_stage(request(), "flowers") == version
    assert store.find_or_stage(request(), "flowers", generation=1) == version


def test_where_the_inputs_lie_does_not_matter_and_what_they_hold_does(store):
    version = make_version(store)
    moved = request(ref="elsewhere")
    assert store.find_or_stage(moved, "flowers") == version
    assert isinstance(store.find_or_stage(request(digest="another-digest"), "flowers"), Staging)


def test_a_second_begin_leaves_a_sealed_version_untouched(store):
    version = make_version(store)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in version.folder.rglob("*") if path.is_file()}
    store.find_or_stage(request(), "flowers")
    seal(store.find_or_stage(request(seed=1), "flowers"), "other labels")
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in version.folder.rglob("*") if path.is_file()}


def test_a_half_done_staging_is_found_again(store):
    staging = store.find_or_stage(request(), "flowers")
    (staging.build / "half.txt").write_text("half")
    again = Store(store.root).find_or_stage(request(), "flowers")
    assert (again.folder, again.target, again.request) == (staging.folder, staging.target, staging.request)
    assert (staging.fresh, again.fresh) == (True, False)
    assert (again.build / "half.txt").read_text() == "half"


def test_refused_input_leaves_a_new_staging_behind_only_where_work_was_done(store):
    with pytest.raises(NstError, match="one class only"), store.find_or_stage(request(), "flowers").discard_on_error():
        raise NstError("one class only")
    assert store.unfinished() == []
    store.find_or_stage(request(), "flowers")
    with pytest.raises(NstError, match="one class only"), store.find_or_stage(request(), "flowers").discard_on_error():
        raise NstError("one class only")
    assert store.unfinished() == ["flowers@gen-1"]


def test_a_staging_remembers_the_first_value_and_adds_up_seconds(store):
    staging = store.find_or_stage(request(), "flowers")
    assert staging.get_or_store("machine", {"threads": 4}) == staging.get_or_store("machine", {"threads": 8}) == {"threads": 4}
    staging.add_seconds(since=0)
    first = staging.seconds
    staging.add_seconds(since=0)
    assert staging.seconds >= 2 * first > 0


def test_a_damaged_version_in_the_place_of_a_new_one_is_said_before_anything_is_made(store):
    (make_version(store).folder / "nst.json").unlink()
    with pytest.raises(NstError, match=r"flowers/gen-1: expected a version with nst\.json, found none"):
        store.find_or_stage(request(seed=1), "flowers")
    assert store.stagings("flowers") == []


def test_versions_take_the_next_free_number(store):
    assert [make_version(store, requested=request(seed=seed)).ref for seed in range(2)] == ["flowers@gen-1", "flowers@gen-2"]
    store.find_or_stage(request(seed=2), "flowers")
    assert store.find_or_stage(request(seed=3), "flowers").ref == "flowers@gen-4"


def test_a_first_number_of_zero_counts_from_there(store):
    teachers = [store.find_or_stage(request("teacher", seed), "net", first_generation=0).ref for seed in range(2)]
    assert teachers == ["net@gen-0", "net@gen-1"]


def test_editions_take_the_next_free_number_of_their_generation(store):
    make_version(store)
    editions = [
        make_version(store, requested=request("edition", seed), generation=generation).ref for seed, generation in ((0, 1), (1, 1), (2, 3))
    ]
    assert editions == ["flowers@gen-1.1", "flowers@gen-1.2", "flowers@gen-3.1"]
    assert store.find_or_stage(request(seed=5), "flowers").ref == "flowers@gen-4"  # above every number that is there, of either kind


def test_versions_are_listed_by_name_and_number(store):
    make_version(store, "b")
    for seed in range(10):
        make_version(store, "a", request(seed=seed))
    make_version(store, "a", request("edition"), generation=2)
    make_version(store, "t", request("teacher"), first_generation=0)
    refs = [version.ref for version in store.versions()]
    assert refs == ["a@gen-1", "a@gen-2", "a@gen-2.1", *(f"a@gen-{number}" for number in range(3, 11)), "b@gen-1", "t@gen-0"]
    assert [version.ref for version in store.versions("b")] == ["b@gen-1"]
    assert (store.open("a").ref, store.open("a", "edition").ref) == ("a@gen-10", "a@gen-2.1")


@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_number_taken_by_other_settings_is_an_error_that_names_them(store, is_sealed):
    staging = store.find_or_stage(request(), "flowers")
    if is_sealed:
        seal(staging)
    state = "exists" if is_sealed else "is unfinished and was started"
    with pytest.raises(NstError, match=rf"flowers@gen-1 {state}.*\(seed: 0 instead of 7\).*`store\.remove\('flowers@gen-1'\)`"):
        store.find_or_stage(request(seed=7), "flowers", generation=1)


def test_a_number_taken_by_other_inputs_is_an_error_that_names_them(store):
    make_version(store)
    with pytest.raises(NstError, match=r"flowers@gen-1.*\(pool: photos has changed since\); .*`store\.remove\('flowers@gen-1'\)` first$"):
        store.find_or_stage(request(digest="other"), "flowers", generation=1)


def test_a_number_taken_by_a_version_with_children_cannot_be_freed_by_removing_it(store):
    parent = make_version(store)
    make_version(store, requested=request("edition", digest=parent.manifest.digest, ref=parent.ref), generation=1)
    with pytest.raises(NstError, match=r"\), and flowers@gen-1\.1 was made from it; choose another name or number$"):
        store.find_or_stage(request(digest="other"), "flowers", generation=1)


def test_a_free_number_can_be_asked_for(store):
    assert store.find_or_stage(request(), "flowers", generation=5).ref == "flowers@gen-5"
    assert store.find_or_stage(request("edition"), "flowers", generation=5, edition=3).ref == "flowers@gen-5.3"


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize(("first", "second"), [("generation", "teacher"), ("teacher", "generation")])
def test_a_name_stands_for_one_kind(store, first, second, is_sealed):
    staging = store.find_or_stage(request(first), "flowers")
    if is_sealed:
        seal(staging)
    with pytest.raises(NstError, match=r"'flowers' already names.*choose another"):
        store.find_or_stage(request(second), "flowers")


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "../a", "a b", "a\n", "ä", "a" * 97, "a@b"])
def test_a_name_that_is_no_safe_folder_is_wrong_use(store, name):
    with pytest.raises(UsageError, match=r"expected ASCII letters, digits"):
        store.find_or_stage(request(), name)


@pytest.mark.parametrize("ref", ["flowers@1", "flowers@gen-", "flowers@gen-1.", "flowers@gen-1.2.3", "flowers@../gen-1", "flowers@gen-1\n"])
def test_a_version_that_is_no_number_is_wrong_use(store, ref):
    make_version(store)
    for read in (store.open, store.remove):
        with pytest.raises(UsageError, match=r"expected gen-N or gen-N\.K"):
            read(ref)


@pytest.mark.parametrize(("text", "number"), [("gen-0", Number(0)), ("gen-12", Number(12)), ("gen-2.10", Number(2, 10))])
def test_a_number_is_written_as_it_is_read(text, number):
    assert Number.parse(text) == number
    assert str(number) == text


def test_what_is_not_there_is_wrong_use_that_says_what_is(store):
    with pytest.raises(UsageError, match=r"flowers: expected a version in the store .*, which has no versions; name another with `store`"):
        store.open("flowers")
    make_version(store)
    with pytest.raises(UsageError, match=r"there is nothing called 'roses', `store\.versions\(\)`"):
        store.open("roses")
    with pytest.raises(UsageError, match=r"flowers@gen-2:.*there is flowers@gen-1 \(generation\)"):
        store.open("flowers@gen-2")
    with pytest.raises(UsageError, match=r"flowers:.*edition or teacher.*there is flowers@gen-1 \(generation\)"):
        store.open("flowers", "edition", "teacher")


def test_what_fits_is_named_by_the_nearest_name_and_not_by_the_last_one(store):
    for name in ("flowers", "weeds", "zebras"):
        make_version(store, name)
    with pytest.raises(UsageError, match=r"flowers@gen-9: expected a generation in .*; there is flowers@gen-1 \(generation\)$"):
        store.open("flowers@gen-9", "generation")
    with pytest.raises(UsageError, match=r"there is nothing called 'flower'; choose flowers@gen-1$"):
        store.open("flower@gen-1", "generation")
    with pytest.raises(UsageError, match=r"there is nothing called 'x'; choose flowers@gen-1 or weeds@gen-1 or zebras@gen-1$"):
        store.open("x@gen-1", "generation")


def edit(version, **changes):
    path = version.folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return Version(version.folder)


def test_a_newer_schema_version_is_refused(store):
    version = edit(make_version(store), schema_version=99, a_key_of_the_future=1)
    with pytest.raises(NstError, match=r"nst\.json:.*schema version 99.*up to 1; upgrade nst"):
        _ = version.manifest


def test_a_missing_manifest_is_an_error(tmp_path):
    with pytest.raises(NstError, match=r"expected a version with nst\.json, found none"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\xff"])
def test_a_manifest_that_is_no_manifest_is_an_error(tmp_path, text):
    (tmp_path / MANIFEST_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(NstError, match=r"nst\.json: expected a manifest, found unreadable JSON"):
        read_manifest(tmp_path)


def test_a_manifest_with_an_unknown_key_is_an_error_that_names_it(store):
    version = edit(make_version(store), colour="red")
    with pytest.raises(NstError, match=r"nst\.json: colour:.*; the manifest.*damaged"):
        _ = version.manifest


def test_verify_sees_a_flipped_bit(store):
    version = make_version(store)
    path = version.folder / "data" / "a.txt"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    (problem,) = version.verify()
    assert problem.startswith("data/a.txt: sha256 ")


def test_verify_sees_a_file_that_the_disk_cannot_read_any_more_and_looks_at_the_others(store, monkeypatch):
    version, whole = make_version(store), hashlib.file_digest
    (version.folder / "data" / "b.txt").write_text("later")

    def fails_for_one(file, digest):
        if file.name.endswith("a.txt"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(file, digest)

    monkeypatch.setattr(hashlib, "file_digest", fails_for_one)
    assert version.verify() == [
        "data/a.txt: cannot be read (Input/output error)",
        "data/b.txt: was not there when the version was sealed",
    ]


def test_a_part_of_a_manifest_can_be_left_out_where_it_is_shown():
    counts = GenerationCounts(pool=3, labeled=2, errors=1, per_class={"ant": 2}, teacher_parameters=7)
    assert counts.model_dump(exclude={"per_class", "errors"}) == {"pool": 3, "labeled": 2, "teacher_parameters": 7}
    assert json.loads(counts.model_dump_json(include={"pool"})) == {"pool": 3}


def test_a_folder_whose_name_is_not_in_utf_8_is_refused():
    with pytest.raises(NstError, match=r"/st.xe9: .*UTF-8; rename it"):
        Store("st\udce9")


def test_verify_sees_a_missing_file(store):
    version = make_version(store)
    (version.folder / "data" / "a.txt").unlink()
    assert version.verify() == ["data/a.txt: missing"]


@pytest.mark.parametrize(
    "changes",
    [
        {"request": request(seed=7).model_dump()},
        {"request": request(digest="other").model_dump()},
        {"files": {}},
        {"digest": "0" * 64},
        {"class_names": ["bee", "ant"]},
    ],
    ids=["settings", "inputs", "files", "digest", "class names"],
)
def test_verify_sees_an_edited_manifest(store, changes):
    assert edit(make_version(store), **changes).verify() == ["nst.json: digest does not match settings, inputs and files"]


def test_verify_does_not_follow_a_manifest_out_of_its_folder(store):
    version = make_version(store)
    (version.folder.parent / "secret").write_text("secret")
    files = json.loads((version.folder / MANIFEST_NAME).read_text())["files"]
    problems = edit(version, files={"../secret": files["data/a.txt"]}).verify()
    assert "../secret: leaves the version's folder" in problems


def test_remove_refuses_while_something_was_made_from_it(store):
    parent = make_version(store)
    child = make_version(store, requested=request("edition", digest=parent.manifest.digest, ref=parent.ref), generation=1)
    with pytest.raises(NstError, match=r"^flowers@gen-1 is the parent of flowers@gen-1\.1; remove.*first"):
        store.remove("flowers@gen-1")
    assert parent.verify() == []
    assert store.remove("flowers@gen-1.1") == child.folder
    assert store.remove("flowers@gen-1") == parent.folder
    assert store.versions() == []
    assert list((store.root / "runs").glob(".*")) == []


def test_of_equal_versions_each_has_what_was_made_from_it(store):
    for name in ("trial", "flowers"):
        parent = make_version(store, name)
        make_version(store, name, request("edition", digest=parent.manifest.digest, ref=parent.ref), generation=1)
    assert store.open("trial@gen-1").manifest.digest == parent.manifest.digest
    assert store.children(store.open("trial@gen-1")) == ["trial@gen-1.1"]
    for name in ("trial", "flowers"):
        tree = lineage(store, f"{name}@gen-1.1")
        assert [one.ref for one in tree.inputs] == [f"{name}@gen-1"]
    assert store.remove("trial@gen-1.1")
    assert store.remove("trial@gen-1")
    make_version(store, "again")
    assert store.remove("flowers@gen-1.1")
    assert store.remove("flowers@gen-1")
    renamed = make_version(store, "other", request("edition", digest=parent.manifest.digest, ref="flowers@gen-1"), generation=1)
    assert store.children(store.open("again@gen-1")) == [renamed.ref]  # the only one that is left


def test_remove_refuses_while_something_is_being_made_from_it(store):
    parent = make_version(store)
    store.find_or_stage(request("edition", digest=parent.manifest.digest, ref=parent.ref), "flowers", generation=1)
    with pytest.raises(NstError, match=r"flowers@gen-1\.1"):
        store.remove("flowers@gen-1")


@pytest.mark.parametrize(
    ("ref", "line"),
    [
        ("flowers", r"flowers: expected a version with its number, as in flowers@gen-1"),
        ("flowers@", r"version '': expected gen-N or gen-N\.K"),
    ],
)
def test_remove_takes_no_name_for_its_newest_version(store, ref, line):
    version = make_version(store)
    with pytest.raises(UsageError, match=line):
        store.remove(ref)
    assert store.open(version.ref)
    with pytest.raises(UsageError, match=r"version '': expected gen-N"):
        store.open("flowers@")


@pytest.mark.parametrize(
    ("number", "line"),
    [
        ({"generation": -1}, "`generation`: expected a whole number of at least 0, found -1"),
        ({"generation": "1/../../evil"}, "`generation`: expected a whole number of at least 0, found '1/../../evil'"),
        ({"generation": True}, "`generation`: expected a whole number of at least 0, found True"),
        ({"generation": 1, "edition": 0}, "`edition`: expected a whole number of at least 1, found 0"),
    ],
)
def test_a_number_that_no_version_can_have_is_refused_before_anything_is_written(store, number, line):
    with pytest.raises(UsageError, match=f"^{re.escape(line)}$"):
        store.find_or_stage(request(), "flowers", **number)
    assert not list(store.root.rglob("*"))


def test_remove_takes_a_version_itself_and_refuses_what_is_none(store):
    version = make_version(store)
    assert store.remove(version) == version.folder
    assert store.versions() == []
    with pytest.raises(UsageError, match="expected a version or its name, found 5"):
        store.remove(5)


def test_remove_takes_an_unfinished_version(store):
    staging = store.find_or_stage(request(), "flowers")
    assert store.remove("flowers@gen-1") == staging.folder
    assert store.unfinished() == []


@pytest.mark.parametrize("content", ["{", '{"kind": "poem"}', b"\xff"], ids=["cut off", "of a later nst", "no text"])
def test_an_unfinished_version_that_cannot_be_read_is_named_where_it_is_in_the_way_and_can_be_removed(store, content):
    other = make_version(store, name="trees")
    make_version(store)
    path = store.find_or_stage(request(seed=1), "flowers").folder / "request.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        NstError, match=r"flowers@gen-2 is unfinished.*request\.json in .*flowers/gen-2.*`store\.remove\('flowers@gen-2'\)`"
    ):
        store.find_or_stage(request(seed=2), "flowers")
    assert store.remove("trees@gen-1") == other.folder
    store.remove("flowers@gen-2")
    assert store.find_or_stage(request(seed=2), "flowers").ref == "flowers@gen-2"


def test_two_that_stage_one_request_at_once_get_the_same_staging(tmp_path):
    for attempt in range(20):
        store, barrier = Store(tmp_path / str(attempt)), threading.Barrier(4)

        def begin(_, store=store, barrier=barrier):
            barrier.wait()
            return store.find_or_stage(request(), "flowers")

        with ThreadPoolExecutor(4) as threads:
            assert {staging.ref for staging in threads.map(begin, range(4))} == {"flowers@gen-1"}
        assert os.listdir(store.root / "runs" / "corpora" / "flowers") == ["gen-1"]


def test_the_version_that_another_process_sealed_first_stands(store):
    first, second = store.find_or_stage(request(), "flowers"), store.find_or_stage(request(), "flowers")
    files = {"a.txt": write_text(first.build / "a.txt", "labels")}
    version = second.seal(second.build_manifest(files, ["ant"], COUNTS["generation"]))
    first.build.mkdir(parents=True)
    assert first.seal(first.build_manifest(files, ["ant"], COUNTS["generation"])) == version
    assert version.verify() == []


def test_a_staging_that_was_half_cleared_away_stops_nothing(store):
    (store.find_or_stage(request(), "flowers").folder / "request.json").unlink()
    assert isinstance(store.find_or_stage(request(seed=1), "flowers"), Staging)


def test_what_a_killed_writer_left_is_not_sealed(store):
    staging = store.find_or_stage(request(), "flowers")
    (staging.build / "data").mkdir()
    (staging.build / "data" / ".b.txt.4711.tmp").write_text("half a shard")
    version = seal(staging)
    assert version.verify() == []
    assert not list(version.folder.rglob("*.tmp"))


def test_what_processes_that_are_gone_left_behind_is_cleared_when_it_is_old(tmp_path):
    with subprocess.Popen(["true"]) as gone:
        pass
    alive, dead = os.getpid(), gone.pid
    for name, process, seconds in (("alive", alive, 0), ("dead", dead, 0), ("young", dead, time.time()), (".file", dead, 0)):
        path = temporary_path(tmp_path / name)
        path = path.with_name(path.name.replace(f".{alive}.", f".{process}."))
        if name == ".file":
            path.touch()
        else:
            path.mkdir()
            (path / "part-0.parquet").touch()
        os.utime(path, (seconds, seconds))
    clear_abandoned(tmp_path)
    assert sorted(path.name.partition(".")[0] for path in tmp_path.iterdir()) == ["alive", "young"]


def test_what_an_interrupted_removal_left_goes_when_the_next_version_is_begun(store, monkeypatch):
    folder = make_version(store).folder

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.remove("flowers@gen-1")
    (left,) = folder.parent.iterdir()
    assert (left / "gen-1" / "nst.json").is_file()
    of_run = store.root / "runs" / "corpora" / "flowers" / ".discarded.abcd1234"
    of_run.mkdir()
    store.find_or_stage(request(), "flowers")
    assert left.is_dir(), "it may be at work still"
    for one in (left, of_run):
        os.utime(one, (0, 0))
    store.find_or_stage(request(), "flowers")
    assert not left.exists()
    assert not of_run.exists()


def test_a_value_that_its_writer_did_not_finish_counts_for_nothing(store):
    staging = store.find_or_stage(request(), "flowers")
    (staging.work / ".machine.abcd").mkdir()  # killed before the move
    assert staging.get_or_store("machine", {"threads": 4}) == {"threads": 4}


def test_of_a_value_that_its_writer_settled_and_did_not_copy_the_first_stands(store):
    staging = store.find_or_stage(request(), "flowers")
    staging.get_or_store("machine", {"threads": 4})
    (staging.work / "machine.json").unlink()  # killed between the move and the copy
    assert staging.get_or_store("machine", {"threads": 8}) == {"threads": 4}
    assert json.loads((staging.work / "machine.json").read_text()) == {"threads": 4}


def test_of_a_staging_that_an_earlier_nst_began_the_values_stand(store):
    staging = store.find_or_stage(request(), "flowers")
    (staging.work / "machine.json").write_text('{"threads": 2}')
    assert staging.get_or_store("machine", {"threads": 8}) == {"threads": 2}


def test_of_many_values_that_come_at_once_all_get_one(store):
    staging = store.find_or_stage(request(), "flowers")
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: staging.get_or_store("machine", {"threads": number})["threads"], range(8)))
    assert len(set(found)) == 1


@pytest.mark.parametrize("error", [NstError("gone"), FileNotFoundError("gone"), ValueError("gone")])
def test_what_fails_since_another_process_sealed_the_version_ends_with_that_version(store, error):
    staging = store.find_or_stage(request(), "flowers")

    def lose():
        seal(store.find_or_stage(request(), "flowers"))
        raise error

    assert staging.run_as_worker(lose) == store.open("flowers@gen-1")


def test_what_fails_of_itself_fails(store):
    staging = store.find_or_stage(request(), "flowers")
    with pytest.raises(ValueError, match="broken"):
        staging.run_as_worker(lambda: (_ for _ in ()).throw(ValueError("broken")))
    assert store.unfinished() == ["flowers@gen-1"]


def test_work_whose_folder_was_deleted_ends_in_one_line(store):
    staging = store.find_or_stage(request(), "flowers")

    def lose():
        shutil.rmtree(staging.folder)
        raise FileNotFoundError(staging.work)

    with pytest.raises(NstError, match=r"flowers@gen-1 was removed while.*; rerun"):
        staging.run_as_worker(lose)


def test_a_version_that_a_process_makes_is_not_removed(store):
    staging = store.find_or_stage(request(), "flowers")
    with register_worker(staging.folder / "worker"), pytest.raises(InUseError, match=f"flowers@gen-1: in use by process {os.getpid()} on"):
        store.remove("flowers@gen-1")
    with staging.hold_ownership(print), pytest.raises(InUseError, match=f"flowers@gen-1: in use by process {os.getpid()} on"):
        store.remove("flowers@gen-1")
    assert store.unfinished() == ["flowers@gen-1"]
    store.remove("flowers@gen-1")
    assert store.unfinished() == []


def test_nothing_of_owners_is_sealed(store):
    staging = store.find_or_stage(request(), "flowers")
    with staging.hold_ownership(print), register_worker(staging.folder / "worker"):
        staging.get_or_store("machine", {"threads": 2})
        version = seal(staging)
    assert sorted(path.name for path in version.folder.rglob("*")) == ["a.txt", "data", MANIFEST_NAME]
    assert sorted(path.name for path in (store.root / "runs" / "corpora" / "flowers").iterdir()) == []

"""A store at `s3://…` whose server refuses, loses or ignores what it is asked: nothing is lost, and nothing is called done that is not."""

import threading

import object_store
import pytest
from conftest import write_pool
from faulty_proxy import proxy_to
from labels import write_teacher

from nst_data import open_source
from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.sharing.copy import copy
from nst_data.store import file_tree
from nst_data.store.file_tree import FileTree
from nst_data.store.leases import hold_lease
from nst_data.store.remote_run import RemoteRun
from nst_data.store.store import Store
from nst_train import LabelSettings, label

pytestmark = pytest.mark.slow
QUIET = Progress()
SETTINGS = LabelSettings(rows_per_shard=3)
REFUSED = b"<DeleteResult><Error><Key>x</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with object_store.serving(tmp_path_factory.mktemp("s3")) as url, proxy_to(url) as (address, faults):
        yield address, faults


@pytest.fixture
def faults(server, tmp_path, monkeypatch):
    address, faults = server
    for name, value in object_store.settings(address).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NST_MIRRORS", str(tmp_path / "mirrors"))
    monkeypatch.setattr(file_tree, "WAITS_SECONDS", (0.1, 0.1))
    file_tree._check_conditional_put.cache_clear()
    faults.clear()
    yield faults
    faults.clear()


@pytest.fixture
def address(tmp_path):
    return f"s3://nst/{tmp_path.name}"


@pytest.fixture
def labeled(tmp_path):
    """A teacher and a pool."""
    return write_teacher(tmp_path / "teacher", ["ant", "bee"]), open_source(write_pool(tmp_path / "pool", 2, 4))


def names(address):
    return [one.name for one in FileTree(address).files()]


@pytest.mark.parametrize("code", ["IncompleteBody", "BadDigest"])
def test_a_seal_that_came_damaged_is_put_again(address, faults, labeled, code):
    faults.inject(f"PUT {address.removeprefix('s3:/')}/corpora/c/gen-1/nst.json", 1, ("status", 400, code))
    version = label(Store(address), "c", *labeled, SETTINGS, progress=QUIET)
    assert version.verify() == []


@pytest.mark.parametrize("code", ["InvalidRequest", "InvalidArgument"])
def test_a_refused_seal_is_an_error_and_the_same_command_goes_on(address, faults, labeled, code):
    faults.inject(f"PUT {address.removeprefix('s3:/')}/corpora/c/gen-1/nst.json", 1, ("status", 400, code))
    with pytest.raises(NstError, match=r"corpora/c/gen-1/nst\.json: the server rejects the request \(400\)"):
        label(Store(address), "c", *labeled, SETTINGS, progress=QUIET)
    assert Store(address).unfinished() == ["c@gen-1"]
    assert len([name for name in names(address) if "/pseudo_labels/" in name]) == 3
    assert label(Store(address), "c", *labeled, SETTINGS, progress=QUIET).verify() == []


def test_an_answer_that_means_nothing_is_not_taken_for_a_refusal(address, faults):
    tree = FileTree(address)
    faults.inject("PUT", 1, ("status", 400, "InvalidRequest"))
    with pytest.raises(NstError, match="rejects the request"):
        tree.create("x", b"1")
    assert tree.create("x", b"1")
    assert not tree.create("x", b"2")


def test_a_put_that_a_client_makes_twice_counts_as_its_own(address, faults, monkeypatch):
    tree = FileTree(address)
    pipe = type(tree._system).pipe_file

    def twice(self, path, content, **options):
        pipe(self, path, content, **options)
        return pipe(self, path, content, **options)

    monkeypatch.setattr(type(tree._system), "pipe_file", twice)
    with hold_lease(tree, "runs/owner", "c@gen-1"):
        assert len(names(address)) == 1


def test_a_refused_delete_is_an_error(address, faults, labeled):
    label(Store(address), "c", *labeled, SETTINGS, progress=QUIET)
    faults.inject("POST /nst?delete", 1, ("answer", REFUSED))
    with pytest.raises(NstError, match="access denied"):
        Store(address).remove("c@gen-1")
    assert Store(address).open("c@gen-1").verify() == []
    tree = FileTree(address)
    for number in range(1_003):
        tree.write(f"many/{number}", b"")
    tree.remove([*names(f"{address}/many"), "none"])
    tree.remove(f"many/{number}" for number in range(1_003))
    assert names(f"{address}/many") == []


def test_names_with_signs_of_patterns_are_deleted_alone(address, faults):
    for name in ("team[1]/x", "team1/x", "team?/x"):
        FileTree(address).write(name, b"")
    FileTree(f"{address}/team[1]").remove(["x"])
    FileTree(f"{address}/team?").remove(["x"])
    assert names(address) == ["team1/x"]


def test_a_server_without_conditional_puts_is_refused(address, faults, labeled):
    faults.inject("/runs/.condition", 2, ("answer", b""))
    with pytest.raises(NstError, match="ignores If-None-Match"):
        label(Store(address), "c", *labeled, SETTINGS, progress=QUIET)
    assert names(address) == []


def test_processes_that_were_killed_in_the_check_of_a_server_leave_one_file_which_serves_the_next(address, faults):
    for _ in range(3):
        faults.inject("POST", 1, ("status", 403, "AccessDenied"))  # its delete
        FileTree(address).check_conditional_put()
        file_tree._check_conditional_put.cache_clear()
    faults.clear()
    assert names(address) == ["runs/.condition"]
    FileTree(address).check_conditional_put()
    assert names(address) == ["runs/.condition"]  # perhaps of one that is at it
    FileTree(address).remove(names(address))
    file_tree._check_conditional_put.cache_clear()
    FileTree(address).check_conditional_put()
    assert names(address) == []


def test_a_copy_that_looked_before_another_was_done_takes_nothing_of_it_away(tmp_path, address, faults, labeled, monkeypatch):
    local = Store(tmp_path / "local")
    label(local, "c", *labeled, SETTINGS, progress=QUIET)
    looked, done, create = threading.Event(), threading.Event(), FileTree.create
    monkeypatch.setenv("NST_MIRRORS", str(tmp_path / "late"))
    late = Store(address)
    monkeypatch.setenv("NST_MIRRORS", str(tmp_path / "early"))
    early = Store(address)

    def create_in_turn(self, name, content, is_unique=False):
        if name.endswith("nst.json"):
            other.start()
            assert looked.wait(60)
        if name.endswith("request.json") and threading.current_thread() is other:
            looked.set()
            assert done.wait(60)
        return create(self, name, content, is_unique)

    def copy_late():
        found.append(copy(local, "c@gen-1", late, progress=QUIET).ref)

    found = []
    other = threading.Thread(target=copy_late)
    monkeypatch.setattr(FileTree, "create", create_in_turn)
    found.append(copy(local, "c@gen-1", early, progress=QUIET).ref)
    done.set()
    other.join(60)
    assert found == ["c@gen-1"] * 2
    monkeypatch.setenv("NST_MIRRORS", str(tmp_path / "third"))
    assert Store(address).open("c@gen-1").verify() == []
    assert not [name for name in names(address) if name.startswith("runs/corpora/")]


def test_what_another_begins_while_a_version_is_discarded_stays(address, faults, monkeypatch):
    tree = FileTree(address)
    run = RemoteRun(Store(address).mirror, "runs/corpora/c/gen-1")
    assert run.claim("{}")
    tree.write("runs/corpora/c/gen-1/work/x", b"")
    remove, begun = FileTree.remove, []

    def remove_and_begin(self, gone):
        gone = list(gone)
        remove(self, gone)
        if gone == ["runs/corpora/c/gen-1/request.json"] and not begun:
            begun.append(run.claim("{1}"))
            tree.write("runs/corpora/c/gen-1/owner.000001", b"")

    with monkeypatch.context() as patch:
        patch.setattr(FileTree, "remove", remove_and_begin)
        run.discard()
    assert begun == [True]
    assert names(address) == ["runs/corpora/c/gen-1/owner.000001", "runs/corpora/c/gen-1/request.json"]


def test_a_machine_that_was_taken_for_dead_deletes_no_later_checkpoint(address, faults, tmp_path):
    mirror = Store(address).mirror
    run, tree = RemoteRun(mirror, "runs/teachers/t/gen-0", digest="d" * 20, own_request=b"{}"), FileTree(address)
    assert run.claim("{}")
    folder = mirror.root / run.name / "work" / "checkpoints" / "step-000000100"
    folder.mkdir(parents=True)
    (folder / "position.json").write_text("{}")
    later, earlier = (f"{run._work}/checkpoints/step-{step:09d}/position.json" for step in (200, 50))
    for name in (later, earlier):
        tree.write(name, b"{}")
    run.upload_training()
    found = [name for name in names(address) if name.endswith("position.json")]
    assert found == [later.replace("200", "100"), later]

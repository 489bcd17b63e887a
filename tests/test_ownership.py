import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest

from nst_data.errors import NstError
from nst_data.store import leases, ownership
from nst_data.store.file_tree import FileTree
from nst_data.store.files import discard, move_unless_exists
from nst_data.store.ownership import InUseError, Process, Sign, check_not_in_use, hold_ownership, is_owned, ownership_path, register_worker
from nst_data.store.places import Place, read_places, record_place


@pytest.fixture
def place(tmp_path):
    return tmp_path / "owner"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(ownership, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(ownership, "DEAD_AFTER_SECONDS", 0.5)
    monkeypatch.setattr(ownership, "_POLL_SECONDS", 0.02)


@pytest.fixture
def dead_process():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def leave(place, process, number="000001"):
    """The sign of a process that was here before."""
    sign = place.with_name(f"{place.name}.{number}")
    sign.mkdir()
    (sign / "process.json").write_text(json.dumps(asdict(process)))
    (sign / "alive").write_text("000000000000")
    return sign


def elsewhere():
    return replace(Process.current(), host="node-7", machine="node-7/boot/1", pid=4711)


def signs(place):
    return sorted(path.name for path in place.parent.iterdir())


def test_one_owns_a_place_and_leaves_nothing_there(place):
    with hold_ownership(place, "flowers@gen-1") as sign:
        assert signs(place) == ["owner.000001"]
        assert is_owned(place)
        sign.check("flowers@gen-1")
    assert (signs(place), is_owned(place)) == ([], False)


def test_the_second_is_told_who_is_at_work_and_since_when(place):
    today = time.strftime("%Y-%m-%d")
    with hold_ownership(place, "flowers@gen-1"):
        with (
            pytest.raises(
                InUseError, match=rf"flowers@gen-1:.*process {os.getpid()} on {platform.node()} .since {today}.*wait.*stop"
            ) as told,
            hold_ownership(place, "flowers@gen-1"),
        ):
            pass
        assert "\n" not in str(told.value)
        assert signs(place) == ["owner.000001"]


def test_a_dead_process_of_this_machine_is_followed_at_once(place, dead_process):
    leave(place, replace(Process.current(), pid=dead_process))
    began = time.monotonic()
    with hold_ownership(place, "flowers@gen-1"):
        assert signs(place) == ["owner.000002"]
    assert time.monotonic() - began < 5
    assert signs(place) == []


def test_a_process_that_ended_and_whose_parent_has_not_asked_is_dead(place):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        there = replace(Process.current(), pid=process.pid, started=ownership.psutil.Process(process.pid).create_time())
        assert there.is_alive is True
        os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while there.is_alive and time.monotonic() < deadline:
            time.sleep(0.01)
        assert there.is_alive is False


@pytest.mark.usefixtures("quick")
def test_another_process_that_got_the_id_of_a_dead_one_is_not_taken_for_it(place):
    leave(place, replace(Process.current(), started=1.0))
    with hold_ownership(place, "flowers@gen-1"):
        assert signs(place) == ["owner.000002"]


@pytest.mark.usefixtures("quick")
def test_what_another_machine_left_holds_until_it_was_watched_without_a_change(place):
    leave(place, elsewhere())
    said, began = [], time.monotonic()
    with hold_ownership(place, "flowers@gen-1", said.append):
        assert time.monotonic() - began > 0.5
    assert len(said) == 1
    assert "process 4711 on node-7" in said[0]


@pytest.mark.usefixtures("quick")
def test_a_process_of_another_machine_that_shows_life_refuses_the_second(place):
    sign = leave(place, elsewhere())
    os.utime(sign / "alive", (1, 1))  # clocks and file times count for nothing
    writing = threading.Timer(0.2, (sign / "alive").write_text, ("000000000001",))
    writing.start()
    with (
        pytest.raises(InUseError, match=r"flowers@gen-1:.*process 4711 on node-7 .since.*wait.*stop"),
        hold_ownership(place, "flowers@gen-1"),
    ):
        pass
    writing.join()
    assert signs(place) == ["owner.000001"]


@pytest.mark.usefixtures("quick")
def test_in_a_copy_of_what_a_living_process_owns_it_holds_until_it_was_watched_without_a_change(tmp_path):
    original, copy, link = (tmp_path / name / "owner" for name in ("original", "copy", "link"))
    original.parent.mkdir()
    link.parent.symlink_to(original.parent)
    said, began = [], time.monotonic()
    with hold_ownership(original, "flowers@gen-1"):
        shutil.copytree(original.parent, copy.parent)
        assert (is_owned(original), is_owned(link), is_owned(copy)) == (True, True, False)
        with hold_ownership(copy, "flowers@gen-1", said.append):
            assert time.monotonic() - began > 0.5
        with pytest.raises(InUseError, match=f"flowers@gen-1: .*process {os.getpid()} on "), hold_ownership(link, "flowers@gen-1"):
            pass
    assert [f"process {os.getpid()} on" in line for line in said] == [True]


def test_a_dead_process_is_followed_at_once_in_a_copy_too(place, dead_process):
    leave(place, replace(Process.current(), pid=dead_process, sign="/elsewhere/owner.000001"))
    said = []
    with hold_ownership(place, "flowers@gen-1", said.append):
        assert signs(place) == ["owner.000002"]
    assert said == []


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: path.symlink_to("nowhere")], ids=["file", "link"])
def test_a_file_named_as_a_sign_is_holds_nobody_up(place, make):
    make(place.with_name("owner.000007"))
    said = []
    with hold_ownership(place, "flowers@gen-1", said.append):
        assert signs(place) == ["owner.000007", "owner.000008"]
    check_not_in_use("flowers@gen-1", place)
    assert said == []


@pytest.mark.usefixtures("quick")
def test_what_a_later_nst_adds_to_a_sign_is_passed_over_in_a_folder_and_at_an_address(place, dead_process):
    tree = FileTree.parse(f"file://{place.parent}")
    alive, dead = ({**asdict(replace(Process.current(), pid=pid)), "zone": "b"} for pid in (os.getpid(), dead_process))
    for process in (dead, alive):
        record = json.dumps({"process": process, "beats": 3, "more": 1})
        tree.write("runs/remote.000001", record.encode())
        (leave(place, Process.current(), "000002" if process is alive else "000001") / "process.json").write_text(json.dumps(process))
        if process is dead:
            check_not_in_use("flowers@gen-1", place)
            leases.check_not_in_use(tree, "flowers@gen-1", ["runs/remote"])
    with pytest.raises(InUseError, match=f"in use by process {os.getpid()} on"):
        leases.check_not_in_use(tree, "flowers@gen-1", ["runs/remote"])
    with pytest.raises(InUseError, match=f"in use by process {os.getpid()} on"):
        check_not_in_use("flowers@gen-1", place)


def test_signs_of_processes_of_this_machine_that_were_killed_are_cleared_at_an_address_and_no_others(tmp_path, dead_process):
    tree = FileTree.parse(f"file://{tmp_path}")
    left = {"alive": Process.current(), "dead": replace(Process.current(), pid=dead_process), "elsewhere": elsewhere()}
    for name, process in left.items():
        tree.write(f"runs/seen.{name}", json.dumps({"process": asdict(process), "beats": 3}).encode())
    tree.write("runs/seen.odd", b"")
    leases.remove_dead_leases(tree, "runs/seen")
    assert [one.name for one in tree.files("runs")] == ["runs/seen.alive", "runs/seen.elsewhere", "runs/seen.odd"]


@pytest.mark.parametrize("text", ["", "[]", "5", "{}", '{"process": 5}', '{"pid": "x", "machine": "m"}', '{"machine": "m"}', b"\xff"])
def test_what_is_no_record_is_a_process_of_nowhere(text):
    assert Process.parse(text) == Process()


@pytest.mark.usefixtures("quick")
def test_a_sign_without_a_record_is_waited_for_as_what_it_may_be(place):
    (leave(place, Process.current()) / "process.json").unlink()
    said = []
    with hold_ownership(place, "flowers@gen-1", said.append):
        pass
    wait = "flowers@gen-1: another process may be working on it; waiting to see whether it is alive"
    assert said == [wait]


def test_a_sign_that_was_left_half_made_counts_for_nothing(place):
    (place.parent / ".owner.12ab.host.1.tmp").mkdir()
    with hold_ownership(place, "flowers@gen-1"):
        assert "owner.000001" in signs(place)


@pytest.mark.usefixtures("quick")
def test_of_many_that_wait_one_owns_at_a_time_also_when_a_dead_one_is_followed(place, dead_process):
    leave(place, replace(Process.current(), pid=dead_process))
    inside, most = [], []

    def work(number):
        with hold_ownership(place, "flowers@gen-1", wait=True):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.002)
            inside.remove(number)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(12)))
    assert most == [1] * 12
    assert signs(place) == []


def test_a_place_that_was_taken_and_is_free_again_at_once_is_no_error(tmp_path, monkeypatch):
    for name in ("fresh", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    rename = os.rename

    def rename_late(source, target):
        try:
            rename(source, target)
        finally:
            shutil.rmtree(tmp_path / "place")

    monkeypatch.setattr(os, "rename", rename_late)
    assert not move_unless_exists(tmp_path / "fresh", tmp_path / "place")
    assert signs(tmp_path / "fresh") == ["fresh"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("gone", ["taken over", "removed with all the work"])
def test_an_owner_that_was_taken_for_dead_stops_and_makes_nothing_anew(tmp_path, gone):
    place = tmp_path / "staging" / "owner"
    place.parent.mkdir()
    with hold_ownership(place, "flowers@gen-1") as sign:
        sign.check("flowers@gen-1")
        discard(sign.folder if gone == "taken over" else place.parent)
        deadline = time.monotonic() + 10
        while not sign.is_lost and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(NstError, match=r"flowers@gen-1: .*no heartbeat.*was replaced.*stopping"):
            sign.check("flowers@gen-1")
    assert not any(place.parent.glob("*"))


@pytest.mark.usefixtures("quick")
def test_a_full_disk_is_no_death(place, monkeypatch):
    sign = Sign(leave(place, Process.current()))
    monkeypatch.setattr("pathlib.Path.open", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    time.sleep(0.1)
    assert not sign.is_lost
    monkeypatch.undo()
    sign.end()


def test_any_number_may_be_present_and_who_would_remove_their_work_is_refused(place):
    with register_worker(place), register_worker(place):
        assert len(signs(place)) == 2
        with pytest.raises(InUseError, match=f"flowers@gen-1: in use by process {os.getpid()} on "):
            check_not_in_use("flowers@gen-1", place.with_name("other"), place)
    check_not_in_use("flowers@gen-1", place)


def test_a_generation_and_its_editions_have_owners_of_their_own(tmp_path):
    with (
        hold_ownership(ownership_path(tmp_path / "gen-1.1"), "flowers@gen-1.1"),
        hold_ownership(ownership_path(tmp_path / "gen-1"), "flowers@gen-1"),
    ):
        assert len(os.listdir(tmp_path)) == 2


def test_places_on_the_hub_that_are_noted_at_once_are_all_kept(tmp_path):
    folder = tmp_path / "flowers" / "gen-1"
    folder.mkdir(parents=True)
    places = [Place("alice/flowers", f"tag-{number}", "c" * 40, "d" * 64) for number in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda place: record_place(folder, place), places))
    assert sorted(read_places(folder), key=lambda place: place.tag) == places
    assert os.listdir(folder.parent) == ["gen-1"]

"""Who takes which shard, how one is written, and how rows are read back."""

import heapq
import itertools
import os
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sealed_labels import label_row, seal_generation

from nst_data.errors import NstError
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.store.file_tree import FileTree
from nst_data.store.files import PID_NAMESPACE, hash_file, temporary_path
from nst_data.store.manifest import SealedFile
from nst_data.store.mirror import Mirror
from nst_data.store.remote_run import RemoteRun
from nst_data.store.store import Store
from nst_data.tables import shards as pseudo_labels
from nst_data.tables.schema import pseudo_labels_schema
from nst_data.tables.shards import ShardPlan, Shards, ShardWriter, TableReader, table_files

NAMES = ["ant", "bee", "cat"]
SCHEMA = pseudo_labels_schema(NAMES)


@pytest.fixture
def few_open_files():
    """Within it a process may open so many files more than now."""
    import resource

    @contextmanager
    def limit(more):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        opened = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
        os.close(opened)
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + more, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return limit


def table(start, stop, names=NAMES):
    numbers = np.arange(start, stop)
    return pa.table(
        {
            "phash": -numbers,
            "id": numbers,
            "key": pa.array([f"{number}.png" for number in numbers], pa.string()),
            "image_hash": pa.array([f"{number:032x}" for number in numbers], pa.string()),
            "label": numbers % 3,
            "confidence": numbers / 1e6,
            "probs": pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(numbers / 1e6, len(names)).astype(np.float16)), len(names)),
        }
    )


@pytest.fixture
def shards(tmp_path):
    return make_shards(tmp_path, 10, 2)


def make_shards(folder, rows, rows_per_shard):
    for part in ("build", "work"):
        (folder / part).mkdir(exist_ok=True)
    return Shards(folder / "build", folder / "work", ShardPlan(rows, rows_per_shard))


def write(shards, shard, errors=()):
    writer = ShardWriter(shards, shard, SCHEMA)
    writer.add(table(*shards.plan.bounds(shard)), errors)
    writer.finish()


def claim(shards, shard, node, process):
    path = shards.work / "claims" / f"{shard:05d}.{node}.{process}"
    path.touch()
    return path


@pytest.fixture
def dead_process():
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(("rows", "rows_per_shard", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (1, 50, [1])])
def test_a_plan_cuts_all_rows_into_shards(rows, rows_per_shard, sizes):
    plan = ShardPlan(rows, rows_per_shard)
    assert [plan.size(shard) for shard in range(len(plan))] == sizes
    assert [number for shard in range(len(plan)) for number in range(*plan.bounds(shard))] == list(range(rows))
    assert plan.file(0) == f"pseudo_labels/train-00000-of-{len(sizes):05d}.parquet"


@pytest.mark.parametrize(("worker", "order"), [((0, 1), [0, 1, 2, 3, 4]), ((1, 2), [2, 3, 4, 0, 1]), ((4, 5), [4, 0, 1, 2, 3])])
def test_worker_i_of_n_begins_at_its_part_and_goes_round(shards, worker, order):
    assert list(shards.take(*worker)) == order


def test_a_shard_that_is_done_is_not_taken(shards):
    write(shards, 1)
    taken = []
    for shard in shards.take():
        taken.append(shard)
        if shard == 0:
            write(shards, 2)  # by another process meanwhile
    assert taken == [0, 3, 4]


def test_what_a_dead_process_of_this_machine_claimed_is_taken_in_its_turn(shards, dead_process):
    for shard in (0, 3):
        claim(shards, shard, PID_NAMESPACE, dead_process)
    assert list(shards.take()) == [0, 1, 2, 3, 4]


def test_containers_that_share_a_name_take_different_shards(shards, tmp_path):
    """With process ids of their own, as `docker run --network host` starts them on one machine, one for each GPU."""
    own_ids = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        may = subprocess.run([*own_ids, "true"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        may = False
    if not may:
        pytest.skip("this user may not begin a space of process ids")
    shards.claim(0)
    code = f"""
from pathlib import Path
from nst_data.store.files import clear_abandoned
from nst_data.tables.shards import ShardPlan, Shards
clear_abandoned(Path({str(tmp_path)!r}), min_age_seconds=0)
print(next(Shards(Path({str(shards.build)!r}), Path({str(shards.work)!r}), ShardPlan(10, 2)).take()))
"""
    part = temporary_path(tmp_path / "part")
    part.write_text("being written")
    found = subprocess.run([*own_ids, sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "1\n"
    assert part.exists()


@pytest.mark.parametrize(("stalled_seconds", "waits_for"), [(0.0, set()), (0.2, {1})])
def test_what_a_living_process_works_at_is_taken_last_and_when_it_stalls(shards, monkeypatch, stalled_seconds, waits_for):
    monkeypatch.setattr(pseudo_labels, "STALLED_SECONDS", stalled_seconds)
    monkeypatch.setattr(pseudo_labels, "_POLL_SECONDS", 0.01)
    claim(shards, 0, PID_NAMESPACE, os.getppid())
    waits = []
    assert list(shards.take(on_wait=waits.append)) == [1, 2, 3, 4, 0]
    assert set(waits) == waits_for


def test_a_claim_of_another_machine_holds_while_it_shows_life_and_falls_when_it_stalls(shards, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "STALLED_SECONDS", 0.3)
    monkeypatch.setattr(pseudo_labels, "_POLL_SECONDS", 0.01)
    for shard in range(1, 5):
        write(shards, shard)
    held = claim(shards, 0, "another.machine", 1)
    since, last_sign = time.monotonic(), None

    def live():
        nonlocal last_sign
        while time.monotonic() - since < 0.8:
            os.utime(held)
            last_sign = time.monotonic()
            time.sleep(0.02)

    living = threading.Thread(target=live)
    living.start()
    assert list(shards.take()) == [0]
    assert last_sign - since > 0.7
    assert time.monotonic() - last_sign > 0.25
    living.join()


def test_the_shard_of_another_that_finishes_it_ends_the_wait(shards, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "_POLL_SECONDS", 0.01)
    for shard in range(1, 5):
        write(shards, shard)
    claim(shards, 0, "another", 1)
    other = threading.Timer(0.2, write, (make_shards(shards.build.parent, 10, 2), 0))
    other.start()
    assert list(shards.take()) == []
    other.join()


def test_hidden_files_beside_claims_and_notes_are_none(shards):
    for folder in ("claims", "shards"):
        for name in (".DS_Store", "._00000.elsewhere.1", "._00001.json"):
            (shards.work / folder / name).write_bytes(b"\0\5\26\7")
    pseudo_labels.wait_for_claims(shards.work, "c@gen-1", print)
    for shard in shards.take():
        write(shards, shard)
    assert shards.missing() == []


def test_a_wait_can_be_stopped(shards):
    for shard in range(5):
        claim(shards, shard, "another", 1)
    shards.stopped.set()
    assert list(shards.take()) == []


def test_a_shard_that_another_process_makes_again_after_the_last_look_is_taken_in_the_end(shards):
    write(shards, 2)
    taken = []
    for shard in shards.take():
        taken.append(shard)
        write(shards, shard)
        if shard == 3:
            make_shards(shards.build.parent, 10, 2).reopen(2)
    assert taken == [0, 1, 3, 4, 2]


def test_claims_of_shards_that_are_done_go_and_one_tells_that_the_process_is_there(shards):
    for shard in shards.take():
        write(shards, shard)
    assert [path.name.partition(".")[0] for path in (shards.work / "claims").iterdir()] == ["00004"]


def test_one_of_a_hundred_thousand_shards_is_taken_in_milliseconds(tmp_path):
    shards = make_shards(tmp_path, 100_000, 1)
    since = time.process_time()
    for _ in zip(shards.take(), range(20), strict=False):
        shards.recently_missing()
    assert time.process_time() - since < 5


class CountedTree(FileTree):
    """A folder in place of a bucket, which counts how often it is listed."""

    listings = 0

    def files(self, prefix=""):
        self.listings += 1
        return super().files(prefix)


@pytest.fixture
def machine(tmp_path):
    """The shards of a version under way at an address, as the machine of a number has them."""
    tree, name = CountedTree(f"file://{tmp_path}/address"), "runs/corpora/bugs/gen-1"
    tree.create(f"{name}/request.json", b"{}")

    def of_number(number, shards):
        mirror = Mirror.__new__(Mirror)  # which takes no folders, as nobody needs such a store
        mirror.tree, mirror.root = tree, tmp_path / str(number)
        folder = mirror.root / name
        for part in ("build", "work"):
            (folder / part).mkdir(parents=True)
        (folder / "request.json").write_bytes(b"{}")
        return Shards(folder / "build", folder / "work", ShardPlan(shards, 1), RemoteRun(mirror, name))

    return of_number


def note_done(shards, shard):
    """As `write` does it, of a table without columns."""
    path = shards.build / shards.plan.file(shard)
    path.write_text("")
    shards.write_note(shard, hash_file(path), np.zeros(1, np.int64), [])


def shared_by(machines, speeds, worker=lambda _: (0, 1), ahead=0):
    """By a clock of their own, how long machines take, and how many shards they compute; each takes so many `ahead` of its work."""
    takes = [shards.take(*worker(number)) for number, shards in enumerate(machines)]
    at_hand = [list(itertools.islice(take, ahead + 1)) for take in takes]
    ends, computed, now = [(1 / speed, number) for number, speed in enumerate(speeds)], 0, 0.0
    heapq.heapify(ends)
    while ends:
        now, number = heapq.heappop(ends)
        note_done(machines[number], at_hand[number].pop(0))
        computed += 1
        at_hand[number] += itertools.islice(takes[number], 1)
        if at_hand[number]:
            heapq.heappush(ends, (now + 1 / speeds[number], number))
    return now, computed


@pytest.mark.parametrize(("count", "ahead", "most"), [(2, 0, 1.1), (2, 1, 1.1), (8, 0, 1.3), (8, 1, 1.3)])
def test_machines_that_see_only_what_others_finished_seldom_compute_the_same_shard(machine, count, ahead, most):
    needed = 50 * count
    machines = [machine(number, needed) for number in range(count)]
    seconds, computed = shared_by(machines, [1 + number / 100 for number in range(count)], ahead=ahead)
    assert computed <= most * needed
    assert seconds <= most * 50
    assert all(shards.missing() == [] for shards in machines)


def test_a_worker_that_is_through_with_its_part_does_not_go_along_with_another_machine(machine, monkeypatch):
    seeds, seeded = itertools.count(), random.Random
    monkeypatch.setattr(random, "Random", lambda _: seeded(next(seeds)))  # not by the folder and process of this test
    machines = [machine(number, 100) for number in range(2)]
    _, computed = shared_by(machines, [1, 1.5], lambda number: (number, 2))
    assert computed <= 105


def test_one_machine_reads_on_in_one_place_round_to_where_it_began(machine):
    shards, taken = machine(0, 30), []
    for shard in shards.take():
        taken.append(shard)
        note_done(shards, shard)
    assert taken == [(taken[0] + step) % 30 for step in range(30)]


def test_a_shard_that_another_machine_has_finished_since_the_last_look_is_not_taken(machine):
    one, other = machine(1, 6), machine(2, 6)
    taken = []
    for shard in one.take(1, 3):
        taken.append(shard)
        note_done(one, shard)
        if shard == 2:
            for done in (3, 5, 0):
                note_done(other, done)
    assert taken[0] == 2
    assert sorted(taken) == [1, 2, 4]


def test_an_address_is_not_listed_for_each_shard(machine, tmp_path):
    shards = machine(0, 40)
    for shard in shards.take():
        note_done(shards, shard)
        shards.recently_missing()
    assert shards._remote.mirror.tree.listings <= 10


def test_life_is_shown_by_touching_ones_own_claim(shards):
    taken = shards.take()
    shard = next(taken)
    mine = shards.work / "claims" / f"{shard:05d}.{PID_NAMESPACE}.{os.getpid()}"
    os.utime(mine, (0, 0))
    shards.refresh_claim(shard)
    assert time.time() - mine.stat().st_mtime < 60
    mine.unlink()
    shards.refresh_claim(shard)  # sealed meanwhile: nothing to show


def test_a_shard_holds_its_rows_in_the_order_and_types_of_the_schema(shards):
    write(shards, 3)
    path = shards.build / shards.plan.file(3)
    found = pq.read_table(path)
    assert found.column_names == SCHEMA.names
    assert found.schema.metadata == SCHEMA.metadata
    assert found.cast(SCHEMA).equals(table(6, 8).select(SCHEMA.names).cast(SCHEMA))
    note = shards.note(3)
    assert note["sealed"] == hash_file(path).model_dump()
    assert note["per_class"] == [1, 1, 0]
    assert shards.missing() == [0, 1, 2, 4]


def test_pieces_of_any_size_make_the_same_shard(tmp_path):
    digests = set()
    for name, cuts in (("one", [0, 9]), ("two", [0, 4, 4, 9]), ("many", range(10))):
        (tmp_path / name).mkdir()
        shards = make_shards(tmp_path / name, 9, 9)
        writer = ShardWriter(shards, 0, SCHEMA)
        for start, stop in itertools.pairwise(cuts):
            writer.add(table(start, stop))
        writer.finish()
        digests.add(shards.note(0)["sealed"]["sha256"])
    assert len(digests) == 1


def test_rows_leave_memory_row_group_by_row_group(shards, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "ROW_GROUP_ROWS", 4)
    shards = make_shards(shards.build.parent, 10, 10)
    writer = ShardWriter(shards, 0, SCHEMA)
    for start in range(0, 10, 5):
        writer.add(table(start, start + 5))
        assert writer._rows < 4
    writer.finish()
    footer = pq.read_metadata(shards.build / shards.plan.file(0))
    assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [4, 4, 2]
    assert shards.note(0)["per_class"] == [4, 3, 3]


def test_wide_soft_labels_have_smaller_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "_ROW_GROUP_BYTES", 2 * 3 * 2)  # two rows of three float16
    shards = make_shards(tmp_path, 5, 5)
    write(shards, 0)
    footer = pq.read_metadata(shards.build / shards.plan.file(0))
    assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [2, 2, 1]


def test_a_shard_without_a_readable_image_is_a_table_without_rows(shards):
    writer = ShardWriter(shards, 0, SCHEMA)
    writer.add(table(0, 0), [{"id": 0, "key": "0.png", "reason": "empty file"}])
    writer.finish()
    assert pq.read_table(shards.build / shards.plan.file(0)).num_rows == 0
    assert shards.note(0)["errors"] == [{"id": 0, "key": "0.png", "reason": "empty file"}]


def test_an_abandoned_shard_leaves_nothing(shards, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "ROW_GROUP_ROWS", 1)
    writer = ShardWriter(shards, 0, SCHEMA)
    writer.add(table(0, 2))
    assert list(shards.temp_folder.iterdir())
    writer.abandon()
    assert not list(shards.temp_folder.iterdir())
    assert not list((shards.build / "pseudo_labels").iterdir())
    assert 0 in shards.missing()


def test_a_shard_killed_before_its_note_is_made_again_with_the_same_bytes(shards):
    write(shards, 0)
    sealed = shards.note(0)
    shards.reopen(0)
    assert 0 in shards.missing()
    write(shards, 0)
    assert shards.note(0) == sealed


def test_finishing_counts_all_shards_and_collects_their_errors(shards):
    for shard in range(5):
        write(shards, shard, [{"id": 100 + shard, "key": "x", "reason": "empty file"}])
    files, counts = shards.finish(NAMES)
    assert counts.model_dump() == {"pool": 10, "labeled": 10, "errors": 5, "per_class": {"ant": 4, "bee": 3, "cat": 3}}
    assert {name: hash_file(shards.build / name) for name in files} == files
    assert pq.read_table(shards.build / "errors")["id"].to_pylist() == list(range(100, 105))
    assert not list(shards.temp_folder.iterdir())


def test_finishing_holds_the_counts_of_one_shard_at_a_time(tmp_path):
    names, counted = [f"class {number}" for number in range(10_000)], np.ones(10_000, np.int64)
    shards = make_shards(tmp_path, 100, 1)
    for shard in range(100):
        shards.write_note(shard, SealedFile(sha256="", bytes=0), counted, [])
    tracemalloc.start()
    try:
        _, counts = shards.finish(names)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000  # the lists of all take eight bytes for each of a million counts
    finally:
        tracemalloc.stop()
    assert counts.labeled == 1_000_000
    assert counts.per_class["class 7"] == 100


@pytest.mark.parametrize("wanted", [[], [0], [9], [0, 1, 2], [1, 4, 5, 8], list(range(10)), [2, 2, 7]])
def test_a_reader_takes_rows_from_any_shards_and_row_groups(shards, monkeypatch, wanted):
    monkeypatch.setattr(pseudo_labels, "ROW_GROUP_ROWS", 3)
    shards = make_shards(shards.build.parent, 10, 5)  # row groups of 3, 2, 3 and 2 rows
    for shard in range(2):
        write(shards, shard)
    reader = TableReader(shards.build, "pseudo_labels")
    assert len(reader) == 10
    found = reader.take(np.array(wanted, np.int64), ["key", "id"])
    assert found.column_names == ["key", "id"]
    assert found["id"].to_pylist() == wanted
    assert found["key"].to_pylist() == [f"{number}.png" for number in wanted]
    assert [number for batch in reader.batches(["id"]) for number in batch["id"].to_pylist()] == list(range(10))


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_a_version_has_more_shards_than_a_process_may_open_files(tmp_path, few_open_files):
    store, kept = Store(tmp_path), [label_row(row, f"image {row}", row % 3, 0.5 + row / 1000) for row in range(200)]
    version = seal_generation(store, kept, shards=200)
    reader = TableReader(version.folder, "pseudo_labels")
    with few_open_files(100):
        found = balance(store, version, BalanceSettings(per_class=50))
        assert reader.take(np.arange(200), ["id"])["id"].to_pylist() == list(range(200))
        assert reader.take(np.arange(150), ["id"])["id"].to_pylist() == list(range(150))
    assert found.manifest.counts.copies == 150


def test_a_table_of_more_than_a_hundred_thousand_shards_is_read_in_their_order(tmp_path):
    plan = ShardPlan(100_002, 1)
    (tmp_path / plan.table).mkdir()
    for shard in (100_001, 99_999, 100_000, 10_001, 10_000):
        (tmp_path / plan.file(shard)).touch()
    assert [int(file.name.split("-")[1]) for file in table_files(tmp_path, plan.table)] == [10_000, 10_001, 99_999, 100_000, 100_001]


def test_a_version_without_the_table_is_refused(tmp_path):
    with pytest.raises(NstError, match="expected parquet files in pseudo_labels/, found none"):
        TableReader(tmp_path, "pseudo_labels")


def test_what_was_read_of_a_table_does_not_stay_in_memory(tmp_path):
    (tmp_path / "labels").mkdir()
    noise = pa.table({"a": np.random.default_rng(0).integers(0, 2**62, 100_000)})
    for shard in range(4):
        pq.write_table(noise, tmp_path / f"labels/{shard}.parquet")
    before, reader = pa.total_allocated_bytes(), TableReader(tmp_path, "labels")
    assert sum(batch.num_rows for batch in reader.batches(["a"])) == len(reader) == 400_000
    assert pa.total_allocated_bytes() - before < noise.nbytes

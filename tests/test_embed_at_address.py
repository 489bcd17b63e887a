"""Features of a store at an address: what any machine did is there for all. Here it is a folder; slow tests have a server."""

import logging
import shutil
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import write_pool
from labels import write_teacher
from watched import InterruptAfter, RecordingProgress

from nst_data.errors import NstError
from nst_data.features.kept import list_features, remove_features
from nst_data.features.under_way import start_features
from nst_data.images import image_hash
from nst_data.inspection.similar import open_similarity_search
from nst_data.inspection.view import View
from nst_data.progress import Progress
from nst_data.sources import open_source
from nst_data.store.file_tree import FileTree
from nst_data.store.mirror import Mirror
from nst_data.store.ownership import InUseError
from nst_data.store.remote_run import RemoteRun
from nst_data.store.store import Store
from nst_train.features.embed import embed
from nst_train.labeling.label import label
from nst_train.settings import EmbedSettings, LabelRunSettings, LabelSettings, ReadSettings

SETTINGS, RUN = EmbedSettings(batch_size=4, rows_per_shard=4), ReadSettings(decode_threads=1)


@pytest.fixture
def teacher(tmp_path):
    return write_teacher(tmp_path / "teacher", ["ant", "bee", "cat"])


@pytest.fixture
def pool(tmp_path):
    return write_pool(tmp_path / "pool", 3, 5)  # 15 images in 4 shards


@pytest.fixture
def tree(tmp_path):
    return FileTree(f"file://{tmp_path}/address")


@pytest.fixture
def machine(tmp_path, tree):
    """The store as the machine of a number has it."""

    def store(number):
        mirror = Mirror.__new__(Mirror)  # which takes no folders, as nobody needs such a store
        mirror.tree, mirror.root = tree, tmp_path / f"mirror-{number}"
        found = Store(mirror.root)
        found.mirror = mirror
        return found

    return store


class Counted(RecordingProgress):
    """Counts the images that are computed, and has something done at the first."""

    def __init__(self, work=None):
        super().__init__()
        self.images, self._work = 0, work

    @contextmanager
    def task(self, name, total, unit, done=0):
        yield self

    def advance(self, amount, note=""):
        self.images += amount
        if self._work is not None:
            work, self._work = self._work, None
            work()


def names(tree, part=""):
    return [one.name for one in tree.files() if part in one.name]


def embed_pool(store, teacher, pool, progress=None):
    return embed(store, teacher, open_source(pool), SETTINGS, run=RUN, progress=progress or Progress())


def embed_interrupted(store, teacher, pool, images):
    with pytest.raises(KeyboardInterrupt):
        embed_pool(store, teacher, pool, InterruptAfter(images))


def hashes(features):
    return features.rows()["image_hash"].to_pylist()


def hashes_of(pool):
    source = open_source(pool)
    return [image_hash(row.read()) for row in source.rows(range(len(source)))]


def rewrite(path):
    """The same name and size with other content, which is still an image."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the checksum of its last chunk
    path.write_bytes(content)


def test_another_machine_finds_them_with_the_bytes_of_a_folder_and_brings_them_when_they_are_read(teacher, pool, machine, tree, tmp_path):
    local, first, said = embed_pool(Store(tmp_path / "local"), teacher, pool), embed_pool(machine(1), teacher, pool), Counted()
    found = embed_pool(machine(2), teacher, pool, said)
    assert (said.images, found.about) == (0, first.about)
    assert found.about.files == local.about.files
    assert said.lines[-1].endswith(f"features of 15 images are there already: {tree.address_of('features')}/{found.place.name}")
    assert not list(found.place.glob("features/*"))
    np.testing.assert_array_equal(found.matrix(), local.matrix())
    assert len(list(found.place.glob("features/*"))) == 4
    assert not names(tree, "runs/")


def test_the_review_page_of_another_machine_finds_and_brings_them_for_similar_images(teacher, pool, machine, tmp_path):
    embed_pool(machine(1), teacher, pool)
    version = label(
        Store(tmp_path / "local"), "bugs", teacher, open_source(pool), run=LabelRunSettings(decode_threads=1), progress=RecordingProgress()
    )
    similar = open_similarity_search(machine(2), View(Store(tmp_path / "local"), version, version.manifest.class_names))
    assert not list(machine(2).root.glob("features/*/features"))
    assert len(similar.find(0)) == 12


@pytest.mark.parametrize("harm", ["removed", "damaged"])
def test_the_review_page_shows_the_rest_where_features_are_lost_while_it_is_open(teacher, pool, machine, tree, tmp_path, caplog, harm):
    place = embed_pool(machine(1), teacher, pool).place
    version = label(
        Store(tmp_path / "local"), "bugs", teacher, open_source(pool), run=LabelRunSettings(decode_threads=1), progress=RecordingProgress()
    )
    similar = open_similarity_search(machine(2), View(Store(tmp_path / "local"), version, version.manifest.class_names))
    if harm == "removed":
        remove_features(machine(3), list_features(machine(3))[0].ref)
    else:
        tree.write(f"features/{place.name}/features/train-00001-of-00004.parquet", b"x")
    with caplog.at_level(logging.WARNING, "nst_data"):
        assert similar.find(0) == similar.find(1) == []
    (record,) = caplog.records
    assert place.name in record.getMessage()


def test_the_review_page_shows_the_rest_where_features_in_a_folder_are_damaged(teacher, pool, tmp_path, caplog):
    store = Store(tmp_path / "local")
    features = embed_pool(store, teacher, pool)
    version = label(store, "bugs", teacher, open_source(pool), run=LabelRunSettings(decode_threads=1), progress=RecordingProgress())
    similar = open_similarity_search(store, View(store, version, version.manifest.class_names))
    next(features.place.glob("features/*")).write_bytes(b"x" * 20)
    assert similar.find(0) == []
    assert len(caplog.records) == 1


def test_those_that_an_earlier_nst_kept_on_one_machine_are_not_deleted_and_go_to_the_address(teacher, pool, machine, tree, tmp_path):
    local = embed_pool(Store(tmp_path / "local"), teacher, pool)
    shutil.copytree(local.place, machine(1).root / "features" / local.place.name)
    assert list_features(machine(1)) == []
    said, again = Counted(), Counted()
    assert embed_pool(machine(1), teacher, pool, said).about == local.about
    assert embed_pool(machine(2), teacher, pool, again).matrix().tobytes() == local.matrix().tobytes()
    assert said.images == again.images == 0


def test_damaged_ones_that_an_earlier_nst_kept_are_computed_again(teacher, pool, machine, tmp_path):
    local = embed_pool(Store(tmp_path / "local"), teacher, pool)
    for number, name in enumerate(["features.json", "features/train-00001-of-00004.parquet"]):
        kept = machine(number).root / "features" / local.place.name
        shutil.copytree(local.place, kept)
        (kept / name).write_bytes(b"[]")
        said = Counted()
        assert hashes(embed_pool(machine(number), teacher, pool, said)) == hashes_of(pool)
        assert said.images == 15
        remove_features(machine(number), list_features(machine(number))[0].ref)


def test_removed_ones_do_not_come_back_where_the_removal_was_cut_short(teacher, pool, machine, tree, monkeypatch):
    embed_pool(machine(1), teacher, pool)
    ref = list_features(machine(1))[0].ref
    with monkeypatch.context() as patch:
        patch.setattr(RemoteRun, "discard", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            remove_features(machine(1), ref)
    said = Counted()
    embed_pool(machine(1), teacher, pool, said)
    assert said.images == 15


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe"])
def test_a_damaged_record_is_said_to_be_removed(teacher, pool, machine, tree, tmp_path, content):
    for store in (Store(tmp_path / "local"), machine(1)):
        place = embed_pool(store, teacher, pool).place
        (place / "features.json").write_bytes(content)
        if store.mirror is not None:
            tree.write(f"features/{place.name}/features.json", content)
        with pytest.raises(NstError, match=rf"damaged; `remove_features\(store, 'features@{place.name[:12]}'\)`"):
            embed_pool(store, teacher, pool)
        (kept,) = list_features(store)
        assert (kept.is_finished, kept.features) == (True, None)
        remove_features(store, kept.ref)
        assert list_features(store) == []


def test_what_one_machine_began_another_goes_on_with_and_the_first_finds_it_done(teacher, pool, machine, tree, tmp_path):
    embed_interrupted(machine(1), teacher, pool, 9)
    done = [3 if name.endswith("00003.json") else 4 for name in names(tree, "/shards/")]
    assert len(done) == 2
    (kept,) = list_features(machine(2))
    assert (kept.is_finished, kept.shards, kept.bytes > 0) == (False, 2, True)
    rest, again = Counted(), Counted()
    features = embed_pool(machine(2), teacher, pool, rest)
    assert features.about.files == embed_pool(Store(tmp_path / "local"), teacher, pool).about.files
    assert rest.images == 15 - sum(done)
    assert embed_pool(machine(1), teacher, pool, again) == embed_pool(machine(1), teacher, pool)
    assert again.images == 0
    assert not (machine(1).root / "runs" / "features" / features.place.name).exists()


def test_of_two_machines_at_once_one_finishes_and_both_have_the_result(teacher, pool, machine):
    others = []
    ours = embed_pool(machine(1), teacher, pool, Counted(lambda: others.append(embed_pool(machine(2), teacher, pool))))
    assert ours.about == others[0].about
    assert hashes(ours) == hashes(others[0])


def test_where_two_machines_wrote_one_shard_differently_it_is_written_again(teacher, pool, machine, tree, tmp_path, monkeypatch):
    create, tried = FileTree.create, []

    def create_late(tree, name, content, **options):
        if name.endswith("shards/00002.json") and not tried:
            tried.append(create(tree, name, content.replace(b'"errors": []', b'"errors": [] ')))  # another machine was first
        return create(tree, name, content, **options)

    monkeypatch.setattr(FileTree, "create", create_late)
    said = Counted()
    assert embed_pool(machine(1), teacher, pool, said).about.files == embed_pool(Store(tmp_path / "local"), teacher, pool).about.files
    assert (tried, said.images) == ([True], 15 + 4)


def test_a_slow_upload_that_ends_after_the_seal_overwrites_nothing(teacher, pool, machine, tree, tmp_path, monkeypatch):
    upload, sealed = FileTree.upload_new, []

    def upload_slowly(tree, path, name):
        if "train-00002-of-" in name and path.is_relative_to(machine(1).root):
            sealed.append(embed_pool(machine(2), teacher, pool))
            path.write_bytes(path.read_bytes()[:-1])  # the shard of a machine that computes other last bits
        return upload(tree, path, name)

    monkeypatch.setattr(FileTree, "upload_new", upload_slowly)
    embed_pool(machine(1), teacher, pool)
    assert len(sealed) == 1
    assert (
        embed_pool(machine(3), teacher, pool).matrix().tobytes() == embed_pool(Store(tmp_path / "local"), teacher, pool).matrix().tobytes()
    )


@pytest.mark.parametrize("left", [b"", b"half"])
def test_a_shard_that_a_killed_machine_left_without_a_note_is_replaced_or_kept(teacher, pool, machine, tree, tmp_path, monkeypatch, left):
    """Its bytes are the shard's, or those of a machine of another kind."""
    embed_interrupted(machine(1), teacher, pool, 9)
    (note, *_) = names(tree, "/shards/")
    (file,) = names(tree, f"/train-{note[-10:-5]}-of-")
    tree.remove([note])
    if left:
        tree.write(file, left)
    again = Counted()
    assert embed_pool(machine(2), teacher, pool, again).about.files == embed_pool(Store(tmp_path / "local"), teacher, pool).about.files
    assert (
        embed_pool(machine(3), teacher, pool).matrix().tobytes() == embed_pool(Store(tmp_path / "local"), teacher, pool).matrix().tobytes()
    )


@pytest.fixture
def late_writer(tree, monkeypatch):
    """A machine of another kind writes a shard again while the first one is about to seal."""
    publish, tried = Mirror.publish, []

    def publish_late(mirror, place, *rest):
        if not tried:
            (file,) = (name for name in names(tree, "/train-00002-of-") if name.startswith(mirror.name_of(place)))
            (note,) = names(tree, "shards/00002.json")
            tried.append(tree.write(file, bytes(len(tree.read(file)))))  # of the same size, with other last bits
            tree.remove([note])
        return publish(mirror, place, *rest)

    monkeypatch.setattr(Mirror, "publish", publish_late)
    return tried


def test_a_shard_that_another_machine_writes_again_at_the_last_moment_is_waited_for(teacher, pool, machine, late_writer, tmp_path):
    embed_pool(machine(1), teacher, pool)
    assert (
        embed_pool(machine(2), teacher, pool).matrix().tobytes() == embed_pool(Store(tmp_path / "local"), teacher, pool).matrix().tobytes()
    )
    assert late_writer


def test_so_is_a_shard_of_labels(teacher, pool, machine, late_writer, tmp_path):
    def labels(store):
        return label(
            store, "bugs", teacher, open_source(pool), LabelSettings(batch_size=4, rows_per_shard=4), run=LabelRunSettings(decode_threads=1)
        )

    labels(machine(1))
    there = machine(2)
    there.refresh("bugs")
    assert there.open("bugs@gen-1").verify() == []
    assert (
        there.open("bugs@gen-1").manifest.files["pseudo_labels/train-00002-of-00004.parquet"]
        == (labels(Store(tmp_path / "local")).manifest.files["pseudo_labels/train-00002-of-00004.parquet"])
    )
    assert late_writer


def test_they_are_not_removed_while_a_process_computes_them_and_then_by_any_machine(teacher, pool, machine, tree):
    def remove():
        ref = list_features(machine(2))[0].ref
        with pytest.raises(InUseError, match=rf"{ref}: in use by process"):
            remove_features(machine(2), ref)

    features = embed_pool(machine(1), teacher, pool, Counted(remove))
    assert features.matrix().shape[0] == 15
    assert [one.is_finished for one in list_features(machine(2))] == [True]
    remove_features(machine(2), list_features(machine(2))[0].ref)
    assert names(tree) == list_features(machine(1)) == []
    assert not features.place.exists()
    said = Counted()
    assert embed_pool(machine(1), teacher, pool, said).about.files == features.about.files
    assert said.images == 15


def test_a_worker_that_has_removed_ones_joins_those_that_are_begun_anew(teacher, pool, machine):
    about = embed_pool(machine(1), teacher, pool).about
    remove_features(machine(2), list_features(machine(2))[0].ref)
    for number in (2, 1):  # neither looks first whether they are finished
        assert start_features(machine(number), about.request, 15, 4, about.dimensions).shards.missing() == [0, 1, 2, 3]


def test_half_done_ones_that_were_removed_and_begun_anew_keep_nothing_of_the_first(teacher, pool, machine, tree):
    embed_interrupted(machine(1), teacher, pool, 9)
    remove_features(machine(2), list_features(machine(2))[0].ref)
    assert names(tree) == []
    for path in pool.iterdir():
        rewrite(path)
    embed_interrupted(machine(2), teacher, pool, 9)
    assert hashes(embed_pool(machine(1), teacher, pool)) == hashes_of(pool)


def test_images_rewritten_between_two_machines_are_noticed_as_in_a_folder(teacher, pool, machine):
    embed_interrupted(machine(1), teacher, pool, 14)
    for path in pool.iterdir():
        rewrite(path)
    embed_pool(machine(2), teacher, pool)
    with pytest.raises(NstError, match=r"different content than when these features were computed.*`remove_features\(store, 'features@"):
        embed_pool(machine(3), teacher, pool)


def test_a_process_whose_features_were_removed_meanwhile_says_so_and_leaves_the_new_ones_alone(teacher, pool, machine, monkeypatch):
    monkeypatch.setattr("nst_data.store.remote_run.check_not_in_use", lambda *_: None)  # it slept, and was taken for dead
    new = []

    def meanwhile():
        remove_features(machine(2), list_features(machine(2))[0].ref)
        embed_interrupted(machine(2), teacher, pool, 5)
        new.extend(list_features(machine(2)))

    with pytest.raises(NstError, match="removed by another process; rerun"):
        embed_pool(machine(1), teacher, pool, Counted(meanwhile))
    assert [one.shards for one in list_features(machine(3))] == [one.shards for one in new] == [1]


def test_a_process_notices_that_another_one_of_its_machine_has_begun_anew(teacher, pool, machine, monkeypatch):
    monkeypatch.setattr("nst_data.store.remote_run.check_not_in_use", lambda *_: None)  # it slept, and was taken for dead

    def meanwhile():
        remove_features(machine(2), list_features(machine(2))[0].ref)
        embed_interrupted(machine(1), teacher, pool, 5)

    with pytest.raises(NstError, match="removed by another process; rerun"):
        embed_pool(machine(1), teacher, pool, Counted(meanwhile))
    assert [(one.is_finished, one.shards) for one in list_features(machine(3))] == [(False, 1)]


def test_what_another_process_of_this_machine_is_writing_is_not_shared(teacher, pool, machine, tree):
    about = embed_pool(machine(1), teacher, pool).about
    remove_features(machine(1), list_features(machine(1))[0].ref)
    under_way = start_features(machine(1), about.request, 15, 4, about.dimensions)
    (under_way.build / "read").mkdir()
    (under_way.build / "read" / "source.json").write_bytes(b"{}")
    (under_way.build / "read" / ".source.stamps.npy.0.tmp").symlink_to("gone")  # it was there a moment ago
    under_way.share_source_notes()
    assert [name.rpartition("/")[2] for name in names(tree, "/work/")] == ["source.json"]


def test_too_many_unreadable_images_are_read_again_by_whichever_machine_comes_next(teacher, pool, machine):
    broken = sorted(pool.iterdir())[:10]
    good = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(NstError, match=r"10 of its 15 images.*restore"):
        embed_pool(machine(1), teacher, pool)
    for path, content in zip(broken, good, strict=True):
        path.write_bytes(content)
    features = embed_pool(machine(2), teacher, pool)
    assert (features.about.images, features.about.errors) == (15, 0)


def test_a_damaged_shard_is_not_used(teacher, pool, machine, tree):
    shard = f"features/{embed_pool(machine(1), teacher, pool).place.name}/features/train-00001-of-00004.parquet"
    tree.write(shard, b"x" * len(tree.read(shard)))
    with pytest.raises(NstError, match=r"features/train-00001-of-00004\.parquet does not match"):
        embed_pool(machine(2), teacher, pool).matrix()


def test_listing_them_asks_twice_however_many_there_are(teacher, pool, machine, monkeypatch):
    embed_pool(machine(1), teacher, pool)
    embed(machine(1), teacher, open_source(pool), SETTINGS.model_copy(update={"image_size": 24}), run=RUN)
    calls = Counter()
    for name in ("files", "children", "read", "download", "stat", "create", "write"):
        method = getattr(FileTree, name)
        monkeypatch.setattr(FileTree, name, lambda *args, _name=name, _method=method: calls.update([_name]) or _method(*args))
    list_features(machine(2))
    assert calls == {"files": 2, "download": 2}
    calls.clear()
    assert [one.features.about.images for one in list_features(machine(2))] == [15, 15]
    assert calls == {"files": 2}

"""`nst run --dry-run`: what a recipe would do, what of it is done, how long the rest takes; nothing is written."""

import json
import shutil

import pytest
import torch
import yaml
from conftest import TINY, write_class_folders, write_tiny_images, write_tiny_recipe
from labels import SETTINGS
from nst_cli.main import app
from test_network_noise import Patches
from test_teachers import write_transformer
from typer.testing import CliRunner
from watched import InterruptAfter
from wording import mentions

from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.sources import open_source
from nst_data.sources.listing import write_listing
from nst_data.store.manifest import content_digest
from nst_data.store.store import Store
from nst_train.classifiers.inference import Computation
from nst_train.networks.own_networks import register_network
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import load_recipe
from nst_train.settings import RunSettings, TrainSettings
from nst_train.starting import dry_run as module
from nst_train.starting import timing
from nst_train.starting.dry_run import dry_run
from nst_train.starting.timing import Speed
from nst_train.training.train import train

STUDENT = TINY | {"ratio": 2}
WITHOUT_WORKERS = RunSettings(workers=0)
PARTS = {"label": SETTINGS.model_dump(), "select": {"min_confidence": 0.0, "per_class": 8}, "run": {"workers": 0, "decode_threads": 1}}
TIMED = Speed(parameters=1000, features=10, seconds_per_step=2.0, seconds_per_label=0.5)


class RecordingProgress(Progress):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def timed(monkeypatch):
    """A machine that takes 2 s for a step and half a second to label an image."""
    monkeypatch.setattr(module, "measure_speed", lambda *_: TIMED)


def stages(store, path, progress=None):
    return dry_run(store, load_recipe(path), progress=progress or Progress())


def test_each_version_of_a_recipe_has_its_images_steps_time_and_disk(tmp_path, timed):
    write_tiny_images(tmp_path)
    path = write_tiny_recipe(tmp_path, generations=[TINY, STUDENT], control=True, **PARTS)
    found = stages(Store(tmp_path / "store"), path)
    assert [(one.ref, one.what, one.state, one.images, one.steps, one.seconds) for one in found.stages] == [
        ("bugs-teacher@gen-0", "train test_resnet", "to do", 12, 6, 6 * 2 + 6 * 0.5),  # 2 epochs of 12 images by 4; 6 test images
        ("bugs@gen-1", "label the pool", "to do", 15, None, 7.5),
        ("bugs@gen-1.1", "select", "to do", 15, None, 0.0),
        ("bugs-teacher@gen-1", "train test_resnet", "to do", 12, 6, 15.0),
        ("bugs-control@gen-0", "train test_resnet", "to do", 12, 6, 15.0),
    ]
    assert found.seconds == 52.5
    assert found.stages[0].bytes_on_disk == 4000
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("free", "told"), [(1000, "1,000 MB are free. Nothing"), (1, "1 MB are free, which is not enough. Nothing")])
def test_a_disk_without_room_for_the_work_is_told(tmp_path, timed, monkeypatch, free, told):
    write_tiny_images(tmp_path)
    path = write_tiny_recipe(tmp_path, generations=[TINY, STUDENT], **PARTS)
    monkeypatch.setattr(module, "_free_bytes", lambda _: free * 2**20 + 1)
    monkeypatch.setattr(
        module, "measure_speed", lambda *_: Speed(parameters=10**6, features=10, seconds_per_step=2.0, seconds_per_label=0.5)
    )
    said = CliRunner().invoke(app, ["run", str(path), "--dry-run", "--store", str(tmp_path / "store")]).stdout
    assert told in " ".join(said.split())


def test_what_is_in_the_store_is_done_and_other_settings_differ(tmp_path, timed):
    write_tiny_images(tmp_path)
    write_class_folders(tmp_path / "validation", ["ant", "bee", "cat"], 2, first=80)
    mixed = TINY | {"mixup": 0.2}
    store = Store(tmp_path / "store")
    self_training(store, load_recipe(write_tiny_recipe(tmp_path, generations=[mixed, STUDENT], **PARTS)), progress=Progress())
    files = sorted(store.root.rglob("*"))
    path = write_tiny_recipe(tmp_path, generations=[mixed, STUDENT, STUDENT], **PARTS)
    found = stages(store, path)
    assert [one.state for one in found.stages] == ["done"] * 4 + ["to do"] * 3
    assert found.seconds == 7.5 + 15
    other = write_tiny_recipe(tmp_path, generations=[mixed, STUDENT | {"epochs": 3}], **PARTS)
    assert [one.state for one in stages(store, other).stages] == ["done", "done", "done", "differs"]
    said = CliRunner().invoke(app, ["run", str(other), "--dry-run", "--store", str(store.root)]).stdout
    assert "nst run will refuse: bugs-teacher@gen-1 exists with other settings (epochs: 2.0 instead of 3.0)" in said
    assert "`nst remove bugs-teacher@gen-1`" in said
    assert "left to do" not in said

    def states(teacher=mixed, **parts):
        return [one.state for one in stages(store, write_tiny_recipe(tmp_path, generations=[teacher, STUDENT], **PARTS | parts)).stages]

    assert states(TINY) == ["differs", "done", "done", "done"]
    assert states(label=PARTS["label"] | {"temperature": 2.0}) == ["done", "differs", "done", "done"]
    assert states(select=PARTS["select"] | {"fraction": 0.5}) == ["done", "done", "differs", "done"]
    assert states(evaluate={"suite": "fgsm", "name": "more", "data": {"source": "validation"}}) == ["done"] * 4  # with a warning
    assert states(validation={"source": "validation"}) == ["differs", "done", "differs", "differs"]
    assert sorted(store.root.rglob("*")) == files


def test_a_network_whose_images_an_earlier_nst_prepared_otherwise_is_another_and_the_run_refuses_its_number(tmp_path, timed):
    write_tiny_images(tmp_path)
    network = {"model": write_transformer(tmp_path / "vit"), "image_size": None, "noise": {"stochastic_depth": 0}}
    path, store = write_tiny_recipe(tmp_path, generations=[TINY | network, STUDENT], **PARTS), Store(tmp_path / "store")
    self_training(store, load_recipe(path), progress=Progress())
    assert [one.state for one in stages(store, path).stages] == ["done"] * 4
    version = store.open("bugs-teacher@gen-0")
    request = version.manifest.request.model_copy(update={"settings": dict(version.manifest.request.settings)})
    assert request.settings.pop("preparation") == {"crop_mode": "squash"}
    earlier = {"request": request, "digest": content_digest(request, version.manifest.files, version.manifest.class_names)}
    (version.folder / "nst.json").write_text(version.manifest.model_copy(update=earlier).model_dump_json())
    stage, *others = stages(store, path).stages
    assert (stage.state, {one.state for one in others}) == ("differs", {"done"})
    with pytest.raises(NstError) as refused:
        self_training(store, load_recipe(path), progress=Progress())
    assert str(refused.value) == stage.refusal
    assert "(preparation: None instead of {'crop_mode': 'squash'})" in stage.refusal


def test_a_training_of_a_network_whose_noise_an_earlier_nst_drew_otherwise_is_refused_in_the_line_of_the_run(tmp_path, timed):
    write_tiny_images(tmp_path)
    register_network("own_patches", Patches, image_size=16)
    network = {"model": "own_patches", "noise": {"stochastic_depth": 0.5}}
    path, store = write_tiny_recipe(tmp_path, generations=[TINY | network, STUDENT], **PARTS), Store(tmp_path / "store")
    self_training(store, load_recipe(path), progress=Progress())
    assert store.open("bugs-teacher@gen-0").manifest.request.settings["network_noise"] == "each use"
    assert [one.state for one in stages(store, path).stages] == ["done"] * 4
    request, earlier = store.open("bugs-teacher@gen-0").manifest.request, Store(tmp_path / "earlier")
    settings = {name: value for name, value in request.settings.items() if name != "network_noise"}
    earlier.find_or_stage(request.model_copy(update={"settings": settings}), "bugs-teacher", 0, first_generation=0)
    first = stages(earlier, path).stages[0]
    assert first.state == "differs"
    with pytest.raises(NstError, match="network_noise: None instead of 'each use'") as error:
        self_training(earlier, load_recipe(path), progress=Progress())
    assert first.refusal == str(error.value)
    other = write_tiny_recipe(tmp_path, generations=[TINY | network | {"epochs": 3}, STUDENT], **PARTS)
    assert "with other settings (epochs: 2.0 instead of 3.0)" in stages(store, other).stages[0].refusal


@pytest.mark.parametrize(
    ("removed", "change"),
    [
        (["bugs-teacher@gen-1"], {"generations": [TINY, STUDENT | {"epochs": 3}]}),
        (["bugs-teacher@gen-1", "bugs@gen-1.1", "bugs@gen-1"], {"label": PARTS["label"] | {"temperature": 2.0}}),
    ],
)
def test_an_unfinished_version_of_other_settings_is_refused_in_the_line_of_the_run(tmp_path, timed, removed, change):
    write_tiny_images(tmp_path)
    store, asked = Store(tmp_path / "store"), PARTS | {"generations": [TINY, STUDENT]}
    self_training(store, load_recipe(write_tiny_recipe(tmp_path, **asked)), progress=Progress())
    request = store.open(removed[-1]).manifest.request
    for ref in removed:
        store.remove(ref)
    store.find_or_stage(request, removed[-1].partition("@")[0], 1)
    path = write_tiny_recipe(tmp_path, **asked)
    assert [one.state for one in stages(store, path).stages if one.ref == removed[-1]] == ["begun"]
    path = write_tiny_recipe(tmp_path, **asked | change)
    refused = next(one for one in stages(store, path).stages if one.ref == removed[-1])
    assert refused.state == "differs"
    with pytest.raises(NstError, match="is unfinished and was started with other settings") as error:
        self_training(store, load_recipe(path), progress=Progress())
    assert refused.refusal == str(error.value)
    said = CliRunner().invoke(app, ["run", str(path), "--dry-run", "--store", str(store.root)]).stdout
    assert f"`nst remove {removed[-1]}`" in said
    assert "left to do" not in said


def test_a_labeling_that_was_begun_on_a_pool_that_has_changed_is_refused_in_the_line_of_the_run(tmp_path, timed):
    write_tiny_images(tmp_path)
    store, path = Store(tmp_path / "store"), write_tiny_recipe(tmp_path, generations=[TINY, STUDENT], **PARTS)
    self_training(store, load_recipe(path), progress=Progress())
    request = store.open("bugs@gen-1").manifest.request
    for ref in ("bugs-teacher@gen-1", "bugs@gen-1.1", "bugs@gen-1"):
        store.remove(ref)
    staging, pool = store.find_or_stage(request, "bugs", 1), open_source(str(tmp_path / "pool"))
    write_listing(staging.work / "pool.arrow", pool.listing())
    next(iter(sorted((tmp_path / "pool").rglob("*.png")))).unlink()
    refused = next(one for one in stages(store, path).stages if one.ref == "bugs@gen-1")
    with pytest.raises(NstError, match="the pool has changed since bugs@gen-1 was started") as error:
        self_training(store, load_recipe(path), progress=Progress())
    assert refused.refusal == str(error.value)


def refusals(store, path):
    """The line in which the dry run says that the run refuses its first training, and the run's own."""
    files = {one: one.read_bytes() for one in store.root.rglob("*") if one.is_file()}
    stage = stages(store, path).stages[0]
    assert files == {one: one.read_bytes() for one in store.root.rglob("*") if one.is_file()}
    with pytest.raises(NstError) as error:
        self_training(store, load_recipe(path), progress=Progress())
    return (stage.state, stage.refusal), ("differs", str(error.value))


def test_a_training_begun_on_images_that_have_changed_is_refused_in_the_line_of_the_run(tmp_path, timed):
    write_tiny_images(tmp_path)
    store, path = Store(tmp_path / "store"), write_tiny_recipe(tmp_path, generations=[TINY, STUDENT], **PARTS)
    with pytest.raises(KeyboardInterrupt):
        self_training(store, load_recipe(path), progress=InterruptAfter(4))
    assert stages(store, path).stages[0].state == "begun"
    image = next(iter(sorted((tmp_path / "labeled").rglob("*.png"))))
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    dry, run = refusals(store, path)
    assert dry == run
    assert "1 image has different content than when bugs-teacher@gen-0 was begun" in run[1]


def test_a_training_begun_on_a_device_of_another_kind_is_refused_in_the_line_of_the_run(tmp_path, timed):
    write_tiny_images(tmp_path)
    store, path = Store(tmp_path / "store"), write_tiny_recipe(tmp_path, generations=[TINY, STUDENT], **PARTS)
    with pytest.raises(KeyboardInterrupt):
        self_training(store, load_recipe(path), progress=InterruptAfter(4))
    (staging,) = store.stagings("bugs-teacher")
    machine = staging.work / "machine.json"
    machine.write_text(json.dumps(json.loads(machine.read_text()) | {"device": "tpu"}))
    dry, run = refusals(store, path)
    assert dry == run
    assert "bugs-teacher@gen-0 was started on tpu, this process uses" in run[1]


@pytest.mark.parametrize("changed", ["start", "its weights", "the model's weights"])
def test_a_training_begun_from_other_weights_is_refused_in_the_line_of_the_run(tmp_path, timed, changed):
    write_tiny_images(tmp_path)
    store = Store(tmp_path / "store")
    source = open_source(tmp_path / "labeled", labeled=True)
    first, second = (
        train(store, name, source, TrainSettings(**TINY, seed=seed), run=RunSettings(workers=0), progress=Progress())
        for seed, name in enumerate(("first", "second"))
    )
    folder = f"local-dir:{shutil.copytree(first.folder, tmp_path / 'folder')}"
    weights = {"start": first.ref} if changed == "start" else {"start": folder}
    teacher = TINY | ({"model": folder, "pretrained": True} if changed == "the model's weights" else weights)
    path = write_tiny_recipe(tmp_path, generations=[teacher, STUDENT], **PARTS)
    with pytest.raises(KeyboardInterrupt):
        self_training(store, load_recipe(path), progress=InterruptAfter(4))
    assert stages(store, path).stages[0].state == "begun"
    shutil.copy(second.folder / "model.safetensors", tmp_path / "folder")
    if changed == "start":
        path = write_tiny_recipe(tmp_path, generations=[teacher | {"start": second.ref}, STUDENT], **PARTS)
    dry, run = refusals(store, path)
    assert dry == run
    assert "is unfinished and was started with other settings" in run[1]
    assert "initial_weights: " in run[1]


@pytest.mark.parametrize("start", [{"pretrained": True}, {"start": "local-dir:network"}])
def test_a_moved_project_with_its_network_in_a_folder_is_done_and_one_whose_network_prepares_images_otherwise_is_refused(tmp_path, start):
    project = tmp_path / "project"
    write_tiny_images(project)
    first = train(
        Store(tmp_path / "other"), "first", open_source(project / "labeled", labeled=True), TrainSettings(**TINY), run=WITHOUT_WORKERS
    )
    shutil.copytree(first.folder, project / "network")
    teacher = TINY | {"model": "local-dir:network"} | start
    path = write_tiny_recipe(project, generations=[teacher, STUDENT], **PARTS)
    self_training(Store(project / "store"), load_recipe(path), progress=Progress())
    project = project.rename(tmp_path / "moved")
    path, store = project / "bugs.yaml", Store(project / "store")
    files = sorted(store.root.rglob("*"))
    assert [one.state for one in stages(store, path).stages] == ["done"] * 4
    self_training(store, load_recipe(path), progress=RecordingProgress())
    assert sorted(store.root.rglob("*")) == files
    config = json.loads((project / "network/config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (project / "network/config.json").write_text(json.dumps(config))
    dry, run = refusals(store, path)
    assert dry == run
    assert "exists with other settings (folders: {" in run[1]


def test_a_training_on_a_network_in_a_folder_that_an_earlier_nst_knew_by_its_path_stays(tmp_path):
    write_tiny_images(tmp_path)
    labeled, store = open_source(tmp_path / "labeled", labeled=True), Store(tmp_path / "store")
    folder = shutil.copytree(train(store, "first", labeled, TrainSettings(**TINY), run=WITHOUT_WORKERS).folder, tmp_path / "network")
    path = write_tiny_recipe(tmp_path, generations=[TINY | {"model": "local-dir:network", "pretrained": True}, STUDENT], **PARTS)
    self_training(store, load_recipe(path), progress=Progress())
    version = store.open("bugs-teacher@gen-0")
    request = version.manifest.request.model_copy(update={"settings": dict(version.manifest.request.settings)})
    assert request.settings.pop("folders").keys() == {"model"}
    earlier = {"request": request, "digest": content_digest(request, version.manifest.files, version.manifest.class_names)}
    (version.folder / "nst.json").write_text(version.manifest.model_copy(update=earlier).model_dump_json())
    settings = TrainSettings(**TINY | {"model": f"local-dir:{folder}", "pretrained": True})
    assert [one.state for one in stages(store, path).stages] == ["done"] * 4
    assert train(store, "bugs-teacher", labeled, settings, run=WITHOUT_WORKERS, progress=InterruptAfter(0)).ref == "bugs-teacher@gen-0"


def test_a_network_that_starts_from_one_of_its_own_recipe_by_number_is_to_do(tmp_path, timed):
    write_tiny_images(tmp_path)
    path = write_tiny_recipe(tmp_path, generations=[TINY, STUDENT | {"start": "bugs-teacher@gen-0"}], **PARTS)
    assert {one.state for one in stages(Store(tmp_path / "store"), path).stages} == {"to do"}


def test_a_second_generation_of_one_selection_labels_the_selected_images_alone(tmp_path, timed):
    write_tiny_images(tmp_path)
    parts = PARTS | {"select": PARTS["select"] | {"when": "once", "per_class": 2}}
    found = stages(Store(tmp_path / "store"), write_tiny_recipe(tmp_path, generations=[TINY, STUDENT, STUDENT], **parts))
    assert [(one.ref, one.what, one.images) for one in found.stages if "train" not in one.what] == [
        ("bugs@gen-1", "label the pool", 15),
        ("bugs@gen-1.1", "select", 6),
        ("bugs@gen-2.1", "label again", 6),
    ]


def test_without_weights_the_steps_are_there_and_one_line_says_so(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("nst_train.networks.models.download", asked.append)
    write_tiny_images(tmp_path)
    probe = {"model": "owner/name", "pretrained": True, "probe": True}
    student = {"preset": "pretrained", "model": "owner/name", "start": "teacher", "batch_size": 4, "steps": 5}
    said = RecordingProgress()
    found = stages(Store(tmp_path / "store"), write_tiny_recipe(tmp_path, generations=[probe, student], **PARTS), said)
    assert [(one.what, one.steps, one.seconds) for one in found.stages if "@gen-1" not in one.ref or "teacher" in one.ref] == [
        ("probe owner/name", None, None),
        ("train owner/name", 5, None),
    ]
    assert found.seconds is None
    assert sum("its weights are not available now" in line for line in said.lines) == 1
    assert any(mentions(line, "owner/name: not timed: … not in the cache") for line in said.lines)
    assert not asked


def test_a_source_that_is_not_there_is_one_line(tmp_path):
    write_tiny_images(tmp_path)
    with pytest.raises(NstError, match=r"pool: .*nothing-here"):
        stages(Store(tmp_path / "store"), write_tiny_recipe(tmp_path, pool="/nothing-here", generations=[TINY, STUDENT], **PARTS))


def test_a_pool_that_is_another_source_too_is_refused_before_any_training(tmp_path):
    write_tiny_images(tmp_path)
    path = write_tiny_recipe(tmp_path, pool="test", generations=[TINY, STUDENT], **PARTS)
    for work in (stages, lambda store, path: self_training(store, load_recipe(path), progress=Progress())):
        with pytest.raises(UsageError, match=r"^pool: .*test is also `test`, so no image would be left .*; expected two sources$"):
            work(Store(tmp_path / "store"), path)


def test_a_class_of_which_no_image_can_be_read_is_one_line_unless_its_training_is_done(tmp_path, timed):
    write_tiny_images(tmp_path)
    store, path = Store(tmp_path / "store"), write_tiny_recipe(tmp_path, generations=[TINY, STUDENT], **PARTS)
    self_training(store, load_recipe(path), progress=Progress())
    for file in (tmp_path / "labeled" / "bee").iterdir():
        file.write_bytes(b"x" * file.stat().st_size)  # names and sizes stay
    assert {one.state for one in stages(store, path).stages} == {"done"}
    with pytest.raises(NstError, match=r"labeled: none of the 4 images of class 'bee' can be read; the first is bee/000\.png: "):
        stages(Store(tmp_path / "other"), path)


def test_the_command_times_a_few_steps_and_writes_nothing(tmp_path):
    write_tiny_images(tmp_path)
    probe = {"model": "test_resnet", "image_size": 16, "pretrained": False}
    path = write_tiny_recipe(tmp_path, generations=[probe | TINY, STUDENT], **PARTS | {"holdout": 0.5, "test": None})
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    words = ["run", str(path), "--dry-run", "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "bugs-teacher@gen-0  train test_resnet  to do       6" in done.stdout
    assert "Nothing was written." in done.stdout
    stages = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["stages"]
    assert all(0 < one["seconds"] < 60 for one in stages if one["steps"])
    assert not (tmp_path / "store").exists()


def test_validation_takes_time_and_embedded_images_take_disk(tmp_path, timed):
    write_tiny_images(tmp_path)
    write_class_folders(tmp_path / "validation", ["ant", "bee", "cat"], 2, first=80)
    first = TINY | {"validate_every": 1}
    parts = PARTS | {"select": PARTS["select"] | {"embed_images": True}, "validation": {"source": "validation"}}
    found = stages(Store(tmp_path / "store"), write_tiny_recipe(tmp_path, generations=[first, STUDENT], **parts))
    assert found.stages[0].seconds == 6 * 2 + 6 * 0.5 + 2 * 6 * 0.5
    bare = stages(Store(tmp_path / "store"), write_tiny_recipe(tmp_path, generations=[TINY, STUDENT], **PARTS))
    size = sum(file.stat().st_size for file in (tmp_path / "pool").rglob("*") if file.is_file()) // 15
    assert found.stages[2].bytes_on_disk - bare.stages[2].bytes_on_disk == 15 * size


def speed_with(folder, images, decode_threads=1, **settings):
    """The speed of a tiny network on this machine, in steps of so many images."""
    labeled, pool = open_source(str(folder / "labeled"), labeled=True), open_source(str(folder / "pool"))
    run = RunSettings(workers=0, decode_threads=decode_threads)
    return timing.measure_speed(TrainSettings(**TINY | settings), labeled, labeled.class_names, pool, images, SETTINGS, run)


def test_a_step_of_an_odd_size_is_timed_with_mixup_and_at_the_end_of_a_short_cosine(tmp_path):
    write_tiny_images(tmp_path)
    end = {"schedule": "cosine", "epochs": 350, "steps": 1, "warmup_epochs": 5, "warmup_steps": 1}  # as long as the training
    assert speed_with(tmp_path, 15, batch_size=5, ratio=2, mixup=0.2, **end).seconds_per_step > 0


@pytest.mark.parametrize(("threads", "seconds"), [(1, 0.1), (4, 0.05)])
def test_with_a_gpu_a_label_takes_the_longer_of_decoding_by_all_processes_and_the_network(tmp_path, monkeypatch, threads, seconds):
    write_tiny_images(tmp_path)
    times = iter([4 * 0.15, 8 * 0.1])  # of a batch from bytes to labels, and of decoding 8 images

    def timed(work):
        work()
        return next(times, 1.0)

    monkeypatch.setattr(timing, "choose_computation", lambda *_, **__: Computation(4, "fp32", "cuda"))
    monkeypatch.setattr(timing, "_shortest_seconds", timed)
    assert speed_with(tmp_path, 8, threads, batch_size=8).seconds_per_label == pytest.approx(seconds)


def test_a_step_in_parts_is_timed_by_a_part_and_one_that_does_not_fit_in_memory_is_not_timed(tmp_path, monkeypatch):
    write_tiny_images(tmp_path)
    timed = []

    def step(number, batch):
        timed.append(len(batch.images))
        return torch.zeros(1), torch.zeros(0)

    monkeypatch.setattr(timing, "create_step", lambda *_: step)
    monkeypatch.setattr(timing, "_shortest_seconds", lambda work: [work(), 1.0][1])
    monkeypatch.setattr(timing, "_seconds_to_prepare", lambda *_: 0.0)
    assert speed_with(tmp_path, 32, batch_size=16, accumulate=4).seconds_per_step == 4.0
    assert timed == [8]

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(timing, "create_step", lambda *_: full)
    said = RecordingProgress()
    found = stages(Store(tmp_path / "store"), write_tiny_recipe(tmp_path, generations=[TINY, STUDENT], **PARTS), said)
    assert found.seconds is None
    assert said.lines[0].startswith("test_resnet: not timed: out of memory")

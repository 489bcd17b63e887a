import json
import shutil
import signal

import pytest
import torch
from conftest import TINY, write_class_folders
from nst_cli.main import app
from safetensors.torch import load_file
from test_interruption import SignalAt
from typer.testing import CliRunner
from watched import RecordingProgress
from wording import mentions

from nst_data.errors import NstError
from nst_data.sources import open_source
from nst_data.store.metrics import Metrics
from nst_data.store.store import Store
from nst_train.evaluation.evaluate import evaluate, measure_and_record
from nst_train.interruption import Interrupted
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.schedule import Schedule
from nst_train.training.train import train
from nst_train.training.validation import default_interval_epochs

CLASSES = ["ant", "bee", "cat"]
RUN = RunSettings(workers=0, decode_threads=1)
# the learning rate rises to an absurd height, and no average softens it: the last epochs ruin what the first ones learned
RUINED = TINY | {
    "channels_last": False,
    "epochs": 12,
    "warmup_epochs": 12,
    "learning_rate": 20.0,
    "ema_decay": 0.0,
    "optimizer": "momentum",
    "validate_every": 1,
}


def sources(folder, validation_classes=CLASSES):
    labeled = write_class_folders(folder / "labeled", CLASSES, 16)
    validation = write_class_folders(folder / "validation", validation_classes, 6, first=50)
    return open_source(str(labeled), labeled=True), open_source(str(validation), labeled=True)


def scores_of(version):
    rows = [json.loads(line) for line in (version.folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["validation_top1"] for row in rows if "validation_top1" in row}


@pytest.fixture(scope="module")
def ruined(tmp_path_factory):
    """(store, version, validation images) of a training that was good only before its end."""
    top = tmp_path_factory.mktemp("ruined")
    labeled, validation = sources(top)
    store = Store(top / "store")
    return store, train(store, "net", labeled, TrainSettings(**RUINED), run=RUN, validation=validation), validation


def test_the_weights_that_did_best_on_the_validation_images_are_the_result(ruined):
    store, version, validation = ruined
    scores, best = scores_of(version), version.manifest.counts.best_step
    assert list(scores) == list(range(12, 145, 12))
    assert best == max(step for step, top1 in scores.items() if top1 == max(scores.values())) < 144
    assert scores[best] > scores[144] + 0.2
    result = evaluate(store, version, validation, run=RUN)
    assert result["top1"] == scores[best]


def test_the_size_of_evaluation_is_that_of_validation_and_of_the_sealed_teacher(tmp_path):
    labeled, validation = sources(tmp_path)
    store, settings = Store(tmp_path / "store"), TINY | {"epochs": 1, "image_size": 16}
    version = train(store, "net", labeled, TrainSettings(**settings, test_size=24), run=RUN, validation=validation)
    config = json.loads((version.folder / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 24, 24]
    assert evaluate(store, version, validation, run=RUN)["top1"] == Metrics.read(version.folder).model_dump()["validation"]["top1"]
    fixed = TINY | {"model": "test_vit", "epochs": 1, "image_size": 16, "test_size": 24}
    with pytest.raises(NstError, match=r"image size 24:.*test_vit.*`test_size`, or omit it"):
        train(store, "fixed", labeled, TrainSettings(**fixed), run=RUN)


@pytest.mark.slow
def test_a_training_that_stopped_after_its_best_step_still_knows_the_best_weights(ruined, tmp_path):
    _, version, validation = ruined
    labeled, _ = sources(tmp_path)
    store, stop = Store(tmp_path / "store"), version.manifest.counts.best_step + 3
    with pytest.raises(Interrupted, match=f"after step {stop + 1} of net@gen-0"):
        train(store, "net", labeled, TrainSettings(**RUINED), run=RUN, progress=SignalAt(stop, signal.SIGTERM), validation=validation)
    resumed = train(store, "net", labeled, TrainSettings(**RUINED), run=RUN, validation=validation)
    assert resumed.manifest.counts == version.manifest.counts
    assert resumed.manifest.files == version.manifest.files


def test_the_best_score_is_marked_in_metrics_card_and_summary(ruined):
    _, version, validation = ruined
    recorded = Metrics.read(version.folder).model_dump()["validation"]
    best = version.manifest.counts.best_step
    assert (recorded["step"], recorded["top1"], recorded["images"]) == (best, scores_of(version)[best], 18)
    assert recorded["fingerprint"] == validation.fingerprint
    card = (version.folder / "README.md").read_text()
    assert f"**validation**: top-1 {100 * recorded['top1']:.2f}% on 18 images" in card
    assert f"the weights are those after step {best}, the best on the validation images" in card
    assert "(training_curves.png)" in card
    assert (version.folder / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    assert f",{recorded['top1']}," in (version.folder / "summary.csv").read_text()


def test_measuring_it_again_finds_what_training_found(ruined):
    store, version, validation = ruined
    recorded = Metrics.read(version.folder).model_dump()["validation"]
    assert measure_and_record(store, version, validation, "validation", RUN) == recorded
    found = evaluate(store, version, validation, run=RUN)
    assert {name: found[name] for name in ("top1", "images", "errors")} == {name: recorded[name] for name in ("top1", "images", "errors")}
    assert found["nll"] == pytest.approx(recorded["nll"], rel=1e-6)  # summed in another order


@pytest.mark.slow
def test_without_validation_the_last_averaged_weights_are_the_result_whatever_they_score(ruined, tmp_path):
    store, version, _ = ruined
    labeled, _ = sources(tmp_path)
    last = train(store, "last", labeled, TrainSettings(**RUINED), run=RUN)
    assert "validation" not in last.manifest.request.inputs.by_role
    assert last.manifest.request.settings["validate_every"] is None
    assert last.manifest.counts.best_step is None
    assert Metrics.read(last.folder).model_dump() == {}
    here, there = (load_file(one.folder / "model.safetensors") for one in (version, last))
    assert any(not torch.equal(here[name], there[name]) for name in here)


def test_validation_images_that_are_trained_on_are_said(tmp_path):
    labeled, validation = sources(tmp_path)
    said, store = RecordingProgress(), Store(tmp_path / "store")
    train(store, "clean", labeled, TrainSettings(**TINY), run=RUN, validation=validation, progress=said)
    assert not any("validation images" in line for line in said.lines)
    for path in sorted((tmp_path / "labeled").rglob("*.png"))[:4]:
        shutil.copy(path, tmp_path / "validation" / path.parent.name / f"again-{path.name}")
    mixed = open_source(str(tmp_path / "validation"), labeled=True)
    train(store, "leak", labeled, TrainSettings(**TINY), run=RUN, validation=mixed, progress=said)
    (line,) = (line for line in said.lines if "validation images" in line)
    assert mentions(line, f"warning: {mixed.location}: 4 of 22 validation images are among the labeled ones, …; use others")


def test_validation_disturbs_no_step(tiny_store, tmp_path):
    """Where the last weights are the best, they are those of the training without validation."""
    _, validation = sources(tmp_path)
    store, labeled, _ = tiny_store
    settings = TrainSettings(**TINY, validate_every=1e9)
    version = train(store, "watched", open_source(str(labeled), labeled=True), settings, run=RUN, validation=validation)
    assert list(scores_of(version)) == [6]
    assert version.manifest.files == store.open("tiny-teacher@gen-0").manifest.files


def test_the_validation_images_are_part_of_what_a_version_is_made_from(ruined, tmp_path):
    store, _, _ = ruined
    labeled, other = sources(tmp_path, ["ant", "bee"])
    short = TrainSettings(**RUINED | {"epochs": 0.25})
    first, again, changed = (train(store, "made", labeled, short, run=RUN, validation=one) for one in (None, other, other))
    assert (first.ref, again.ref, changed.ref) == ("made@gen-0", "made@gen-1", "made@gen-1")
    assert again.manifest.request.inputs.validation.digest == other.fingerprint


def test_other_classes_are_one_line_before_any_work(ruined, tmp_path):
    store, _, _ = ruined
    labeled, other = sources(tmp_path, ["ant", "dog"])
    with pytest.raises(NstError, match=r"3 classes \(ant, bee, cat\), found 2 \(ant, dog\).*: dog\..*`class_names` FILE"):
        train(store, "never", labeled, TrainSettings(**RUINED), run=RUN, validation=other)
    assert store.stagings("never") == []


def test_images_that_cannot_be_read_are_counted_and_none_at_all_is_an_error(ruined, tmp_path):
    store, _, _ = ruined
    labeled, _ = sources(tmp_path)
    files = sorted((tmp_path / "validation").rglob("*.png"))
    files[0].write_text("no image")
    some = open_source(str(tmp_path / "validation"), labeled=True)
    short = TrainSettings(**RUINED | {"epochs": 0.25})
    version = train(store, "some", labeled, short, run=RUN, validation=some)
    recorded = Metrics.read(version.folder).model_dump()["validation"]
    assert (recorded["images"], recorded["errors"]) == (17, 1)
    for file in files:
        file.write_text("no image")
    none = open_source(str(tmp_path / "validation"), labeled=True)
    with pytest.raises(NstError, match=r"none of its 18 validation images.*restore"):
        train(store, "none", labeled, short, run=RUN, validation=none)


def test_validation_leaves_the_threads_of_training_as_they_were(tiny_store, tmp_path):
    _, validation = sources(tmp_path)
    store, labeled, _ = tiny_store
    before = torch.get_num_threads()
    try:
        settings = TrainSettings(**TINY | {"compute_threads": 2, "epochs": 0.3})
        train(store, "two-threads", open_source(str(labeled), labeled=True), settings, run=RUN, validation=validation)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("images", "per_epoch", "epochs"), [(50_000, 1_281_167 * 2, 1), (100, 1000, 1), (101, 1000, 2), (10_000, 1000, 100)]
)
def test_ten_images_are_trained_on_for_each_that_is_scored(images, per_epoch, epochs):
    assert default_interval_epochs(images, per_epoch) == epochs


@pytest.mark.parametrize(
    ("epochs", "due"), [(1.0, [3, 5, 8, 10, 13, 15]), (2.0, [5, 10, 15]), (0.4, list(range(1, 16))), (4.0, [10, 15]), (100.0, [15])]
)
def test_epochs_end_at_the_first_step_that_is_past_them_and_the_last_step_ends_all(epochs, due):
    schedule = Schedule.of(TrainSettings(model="x", epochs=6, batch_size=4), 10)  # 2.5 steps an epoch
    assert [done for done in range(1, 16) if schedule.ends_epoch(done, epochs)] == due


def test_an_interval_without_validation_images_is_wrong_use(tiny_store):
    store, labeled, _ = tiny_store
    words = ["train", "--labeled", labeled, "--name", "x", "--model", "test_resnet", "--validate-every", "2", "--store", store.root]
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 2
    assert mentions(result.stderr, "--validate-every …; add … --validation SOURCE")


def test_the_command_says_which_step_the_weights_are_of(tmp_path):
    sources(tmp_path)
    network = ["--model", "test_resnet", "--image-size", 16, "--epochs", 1, "--batch-size", 16, "--workers", 0]
    data = ["--labeled", tmp_path / "labeled", "--validation", tmp_path / "validation", "--name", "net", "--store", tmp_path / "store"]
    result = CliRunner().invoke(app, [str(word) for word in ("train", *data, *network)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "parameters after 3 steps, the weights of step 3, best on the validation images" in result.stdout

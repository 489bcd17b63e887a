import json
import math
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY, png, write_class_folders
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from watched import InterruptAfter, RecordingProgress
from wording import mentions

from nst_data.errors import NstError, UsageError
from nst_data.images import decode
from nst_data.sources import open_source
from nst_data.store.metrics import Metrics
from nst_data.store.store import Store
from nst_train.batches.batches import TrainingBatch
from nst_train.classifiers.teachers import load_classifier
from nst_train.evaluation.evaluate import evaluate, measure_and_record
from nst_train.networks.models import create_network
from nst_train.seeds import seed_network
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.schedule import Schedule
from nst_train.training.step import create_step
from nst_train.training.train import train

CONFIG = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}
RUN = RunSettings(workers=0, decode_threads=1)


def step_and_batch(**changes):
    settings = TrainSettings(**TINY | {"noise": {"operations": 0, "dropout": 0, "stochastic_depth": 0}} | changes)
    seed_network(0)
    step = create_step(create_network(settings, 3), settings, Schedule.of(settings, 16), CONFIG, 3)
    images = torch.randint(0, 255, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return step, TrainingBatch(images, torch.tensor([0, 2]), {"probs": torch.tensor([[0.1, 0.2, 0.7]] * 4, dtype=torch.float16)})


def test_frozen_batch_norm_keeps_its_statistics_and_is_trained_in_what_it_scales_by(tiny_store):
    store, labeled, _ = tiny_store
    settings = TrainSettings(**TINY | {"start": "tiny-teacher@gen-0", "freeze_batch_norm": True, "epochs": 1, "ema_decay": 0.0})
    version = train(store, "still", open_source(labeled, labeled=True), settings, run=RUN)
    before, after = (load_file(one.folder / "model.safetensors") for one in (store.open("tiny-teacher"), version))
    statistics = {name for name in before if "running" in name or "num_batches" in name}
    assert len(statistics) > 10
    assert {name for name in before if torch.equal(before[name], after[name])} == statistics
    with pytest.raises(UsageError, match=r"`freeze_batch_norm`.*trained network; add `start` or `pretrained`"):
        TrainSettings(**TINY | {"freeze_batch_norm": True})


@pytest.mark.parametrize(("settings", "kept"), [({}, 0.9), ({"batch_norm_decay": 0.99}, 0.99), ({"batch_norm_decay": 0.0}, 0.0)])
def test_batch_norms_statistics_keep_their_share_at_each_step(settings, kept):
    step, batch = step_and_batch(learning_rate=1e-30, **settings)
    layer = next(one for one in step.network.modules() if isinstance(one, torch.nn.BatchNorm2d))
    seen = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().mean((0, 2, 3))))
    before = layer.running_mean.clone()
    step(0, batch)
    assert torch.allclose(layer.running_mean, kept * before + (1 - kept) * seen[0], atol=1e-6)
    assert (seen[0] - before).abs().max() > 1e-3


def test_a_step_changes_weights_and_its_losses_are_the_cross_entropies_of_one_joint_forward_pass():
    step, batch = step_and_batch(label_smoothing=0.0)
    network = step.network
    with torch.no_grad():
        for layer in network.modules():  # timm begins with blocks that add nothing, and whose other weights get no gradient
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight.fill_(1.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        log_probs = network(step.normalize(batch.images)).log_softmax(dim=1)  # training mode: batch-norm sees both parts
    network.load_state_dict(before)
    labeled, pseudo = step(5, batch)
    assert labeled.tolist() == pytest.approx([-float(log_probs[0, 0]), -float(log_probs[1, 2])], rel=1e-5)
    soft = torch.tensor([0.1, 0.2, 0.7])
    assert pseudo.tolist() == pytest.approx((-(log_probs[2:] * soft).sum(dim=1)).tolist(), rel=1e-3)
    changed = [name for name, value in network.named_parameters() if not torch.equal(value, before[name])]
    assert len(changed) == len(list(network.parameters()))


def moved_by_one_step(loss, ratio):
    """How far the first step of SGD moves the classifier's weights, with 2 labeled and 2 x ratio pseudo-labeled images."""
    changes = {"optimizer": "momentum", "weight_decay": 0.0}
    step, batch = step_and_batch(loss=loss, ratio=ratio, **changes)
    batch = TrainingBatch(batch.images[: 2 + 2 * ratio], batch.labels, {"probs": batch.pseudo["probs"][: 2 * ratio]})
    before = step.network.fc.weight.detach().clone()
    step(0, batch)
    return step.network.fc.weight.detach() - before


@pytest.mark.parametrize(("loss", "ratio", "factor"), [("sum", 1, 2), ("code", 1, 2), ("code", 2, 3)])
def test_a_step_weighs_its_parts_as_the_loss_says(loss, ratio, factor):
    torch.testing.assert_close(moved_by_one_step(loss, ratio), factor * moved_by_one_step("concat", ratio), rtol=1e-3, atol=1e-7)


def test_the_sum_of_algorithm_1_weighs_a_pseudo_labeled_image_less_than_concat():
    assert not torch.allclose(moved_by_one_step("sum", 2), 2 * moved_by_one_step("concat", 2), rtol=1e-3, atol=1e-7)


def test_averaged_weights_warm_up_as_in_the_released_code():
    step, batch = step_and_batch(ema_decay=0.9999)
    averaged = dict(step.averaged.module.named_parameters())["fc.bias"].detach().clone()
    for t in range(4):
        decay = min(0.9999, (1 + t) / (10 + t))
        step(t, batch)
        now = dict(step.network.named_parameters())["fc.bias"].detach()
        averaged = decay * averaged + (1 - decay) * now
        assert torch.allclose(dict(step.averaged.module.named_parameters())["fc.bias"], averaged, atol=1e-7)


def test_training_twice_gives_equal_weights_and_another_seed_other_ones(tiny_store):
    store, labeled, _ = tiny_store
    source = open_source(str(labeled), labeled=True)
    first = store.open("tiny-teacher@gen-0")
    again = train(store, "again-teacher", source, TrainSettings(**TINY), run=RunSettings(workers=2, decode_threads=2))
    other = train(store, "again-teacher", source, TrainSettings(**TINY, seed=1), run=RUN)
    assert again.manifest.files == first.manifest.files
    assert other.ref == "again-teacher@gen-1"
    assert other.manifest.files["model.safetensors"] != first.manifest.files["model.safetensors"]


def test_a_training_that_is_there_says_so(tiny_store):
    store, labeled, _ = tiny_store
    settings, said = TrainSettings(**TINY | {"seed": 77}), RecordingProgress()
    made = [train(store, "once", open_source(labeled, labeled=True), settings, run=RUN, progress=said).ref for _ in range(2)]
    assert made == ["once@gen-0", "once@gen-0"]
    assert [line for line in said.lines if "already exists" in line] == ["once@gen-0 already exists: same images, labels and settings"]


def test_a_student_is_trained_on_both_parts_and_logs_both_losses(tiny_store):
    store, labeled, pool = tiny_store
    settings = TrainSettings(**TINY | {"epochs": 8, "ratio": 2})
    student = train(
        store,
        "student",
        open_source(str(labeled), labeled=True),
        settings,
        pseudo=store.open("tiny@gen-1.1"),
        pool=open_source(str(pool)),
        run=RUN,
    )
    line = json.loads((student.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert line["step"] == 20
    assert math.isfinite(line["loss_labeled"])
    assert math.isfinite(line["loss_pseudo"])
    counts = student.manifest.counts
    assert (counts.labeled, counts.pseudo_labeled, counts.steps) == (12, store.open("tiny@gen-1.1").manifest.counts.unique, 24)
    assert student.manifest.request.inputs.edition.ref == "tiny@gen-1.1"
    assert student.verify() == []


def test_the_averaged_weights_are_what_is_sealed(tiny_store):
    store, labeled, _ = tiny_store
    settings = TrainSettings(**TINY | {"ema_decay": 0.0})
    plain = train(store, "not-averaged", open_source(str(labeled), labeled=True), settings, run=RUN)
    averaged = load_file(store.open("tiny-teacher@gen-0").folder / "model.safetensors")
    assert not torch.equal(load_file(plain.folder / "model.safetensors")["fc.weight"], averaged["fc.weight"])


def test_a_student_smaller_than_its_teacher_gets_a_warning_with_both_sizes(tiny_store):
    store, labeled, pool = tiny_store
    said = RecordingProgress()
    settings = TrainSettings(**TINY | {"model": "test_efficientnet", "epochs": 0.1})
    edition = store.open("tiny@gen-1.1")
    train(
        store,
        "small",
        open_source(str(labeled), labeled=True),
        settings,
        pseudo=edition,
        pool=open_source(str(pool)),
        run=RUN,
        progress=said,
    )
    (warning,) = [line for line in said.lines if "warning" in line]
    teacher = store.open("tiny-teacher").manifest.counts.parameters
    small = store.open("small").manifest.counts.parameters
    assert small < teacher
    assert f"has {small:,} parameters, its teacher {teacher:,}" in warning


def test_unreadable_labeled_images_are_left_out_and_said(tiny_store, tmp_path):
    store, labeled, _ = tiny_store
    copy = tmp_path / "labeled"
    shutil.copytree(labeled, copy)
    (copy / "bee" / "broken.png").write_text("no image")
    said = RecordingProgress()
    version = train(store, "left-out", open_source(str(copy), labeled=True), TrainSettings(**TINY), run=RUN, progress=said)
    assert any(mentions(line, "skipped, unreadable: bee/broken.png: not an image …") for line in said.lines)
    assert (version.manifest.counts.labeled, version.manifest.counts.unreadable) == (12, 1)


def test_equal_bytes_in_two_classes_are_said_once_with_an_example(tiny_store, tmp_path):
    store, labeled, _ = tiny_store
    copy = shutil.copytree(labeled, tmp_path / "labeled")
    first, second = sorted((copy / "bee").iterdir())[:2]
    shutil.copy(first, copy / "ant" / "x.png")
    shutil.copy(first, copy / "cat" / "y.png")
    shutil.copy(second, copy / "bee" / "z.png")  # twice in one class
    said = RecordingProgress()
    train(store, "twice", open_source(str(copy), labeled=True), TrainSettings(**TINY), run=RUN, progress=said)
    assert [line for line in said.lines if "same bytes" in line] == [
        f"warning: {copy}: 1 image stands in two or more classes with the same bytes, such as 'ant/x.png' of 'ant' "
        f"and 'bee/{first.name}' of 'bee'; remove the wrong ones"
    ]


def test_going_on_does_not_decode_all_labeled_images_again(tiny_store, monkeypatch):
    store, labeled, _ = tiny_store
    settings, source = TrainSettings(**TINY, seed=77), open_source(str(labeled), labeled=True)
    with monkeypatch.context() as patched:
        patched.setattr("nst_train.training.loop.Training.run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(store, "stopped", source, settings, run=RUN)
    monkeypatch.setattr("nst_train.training.readable.find_unreadable", None)
    assert train(store, "stopped", source, settings, run=RUN).manifest.counts.labeled == 12


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"warmup_epochs": 0}, "Try a lower `learning_rate`, a longer `warmup_epochs`, or `clip_grad`"),
        (
            {"steps": 60, "warmup_steps": 1, "clip_grad": 1e9},
            "Try a lower `learning_rate`, a longer `warmup_steps`, or a smaller `clip_grad`",
        ),
    ],
)
def test_a_loss_that_is_no_number_stops_with_the_step_its_learning_rate_and_what_to_try(tiny_store, changes, remedy):
    store, labeled, _ = tiny_store
    values = TINY | {"learning_rate": 6.4e21, "optimizer": "sgd", "decay_rate": 1.0, "epochs": 20} | changes  # 1e20 for steps of 4
    settings = TrainSettings(**{name: value for name, value in values.items() if "steps" not in changes or "epochs" not in name})
    said = r"diverges@gen-0, step \d+: the loss is no longer finite, at a learning rate of 1e\+20; there is no checkpoint from before. "
    with pytest.raises(NstError, match=said + remedy):
        train(store, "diverges", open_source(str(labeled), labeled=True), settings, run=RUN)
    assert store.versions("diverges") == []
    store.remove("diverges@gen-0")


def test_a_training_goes_by_the_device_that_it_computes_on_whatever_else_the_machine_has(tiny_store, monkeypatch):
    store, labeled, _ = tiny_store
    gpu = lambda: torch.device("cuda")  # noqa: E731 - as under `accelerate launch --cpu` on a machine with a GPU
    monkeypatch.setattr("nst_train.device.this_device", gpu)
    monkeypatch.setattr("nst_train.training.train.this_device", gpu, raising=False)
    version = train(store, "on-the-cpu", open_source(str(labeled), labeled=True), TrainSettings(**TINY | {"epochs": 0.5}), run=RUN)
    assert version.manifest.machine["device"] == "cpu"


def test_accuracy_equals_a_count_by_hand(tiny_store):
    store, labeled, _ = tiny_store
    source = open_source(str(labeled), labeled=True)
    classifier, _ = load_classifier("tiny-teacher", store)
    transform = create_transform(**resolve_model_data_config(classifier.network), is_training=False)
    with torch.no_grad():
        logits = torch.stack([classifier.network(transform(decode(source.read(row)))[None])[0] for row in range(12)])
    labels = torch.from_numpy(source.labels)
    result = evaluate(store, "tiny-teacher", source, run=RUN)
    assert result["top1"] == int((logits.argmax(dim=1) == labels).sum()) / 12
    assert result["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert (result["images"], result["errors"]) == (12, 0)
    assert "top5" not in result  # three classes


def test_a_measurement_is_kept_and_not_made_twice(tiny_store, monkeypatch):
    store, labeled, _ = tiny_store
    teacher, source = store.open("tiny-teacher"), open_source(str(labeled), labeled=True)
    first = measure_and_record(store, teacher, source, "train", RUN)
    monkeypatch.setattr("nst_train.evaluation.evaluate.evaluate", None)
    assert measure_and_record(store, teacher, source, "train", RUN) == first
    assert Metrics.read(teacher.folder).model_dump()["train"] == first
    assert "**train**: top-1" in (teacher.folder / "README.md").read_text()
    assert teacher.verify() == []


def test_starting_from_saved_weights_puts_their_digest_into_the_lineage(tiny_store):
    store, labeled, _ = tiny_store
    teacher = store.open("tiny-teacher@gen-0")
    settings = TrainSettings(**TINY | {"model": f"local-dir:{teacher.folder}", "pretrained": True, "learning_rate": 1e-30, "epochs": 0.1})
    settings = settings.model_copy(update={"ema_decay": 0.0})
    warm = train(store, "warm", open_source(str(labeled), labeled=True), settings, run=RUN)
    assert warm.manifest.request.inputs.initial_weights.digest == teacher.manifest.files["model.safetensors"].sha256
    weights, initial = (load_file(version.folder / "model.safetensors")["fc.weight"] for version in (warm, teacher))
    assert torch.allclose(weights, initial)


def test_unreadable_rows_of_a_labeled_parquet_file_are_left_out(tiny_store, tmp_path):
    store, labeled, _ = tiny_store
    images = [path.read_bytes() for path in sorted(labeled.rglob("*.png"))]
    pq.write_table(pa.table({"image": [None, *images[1:]], "label": [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]}), tmp_path / "labeled.parquet")
    version = train(store, "nulls", open_source(str(tmp_path / "labeled.parquet"), labeled=True), TrainSettings(**TINY), run=RUN)
    assert (version.manifest.counts.labeled, version.manifest.counts.unreadable) == (11, 1)


@pytest.mark.parametrize("changes", [{"ratio": 9}, {"loss": "sum"}, {"hard": True}, {"pseudo_temperature": 0.5}])
def test_what_speaks_of_pseudo_labels_changes_nothing_without_them(tiny_store, changes):
    store, labeled, _ = tiny_store
    again = train(store, "tiny-teacher", open_source(str(labeled), labeled=True), TrainSettings(**TINY | changes), run=RUN)
    assert again.ref == "tiny-teacher@gen-0"


def test_a_temperature_on_hard_targets_is_refused():
    with pytest.raises(ValueError, match=r"`pseudo_temperature`.*soft labels.*`hard`.*one"):
        TrainSettings(**TINY, hard=True, pseudo_temperature=2.0)


@pytest.mark.parametrize("changes", [{"channels_last": True}, {"optimizer": "lamb", "learning_rate": 0.01}])
def test_a_training_is_checkpointed_resumed_and_sealed_whatever_its_memory_order_and_optimizer(tiny_store, changes):
    store, labeled, _ = tiny_store
    source, settings = open_source(str(labeled), labeled=True), TrainSettings(**TINY | changes)
    run = RunSettings(workers=0, decode_threads=1, checkpoint_minutes=0)
    version = train(store, "sealed", source, settings, run=run)
    assert version.verify() == []
    with pytest.raises(KeyboardInterrupt):
        train(store, "sealed-again", source, settings, run=run, progress=InterruptAfter(4))
    again = train(store, "sealed-again", source, settings, run=run)
    assert again.manifest.files["model.safetensors"] == version.manifest.files["model.safetensors"]


@pytest.mark.parametrize("optimizer", ["adafactorbv", "adahessian", "fusedadam"])
def test_an_optimizer_that_a_training_would_fail_with_is_refused_before_any_step(tiny_store, optimizer):
    store, labeled, _ = tiny_store
    with pytest.raises(NstError, match=f"optimizer {optimizer}: cannot be used here .*; choose another"):
        train(store, "odd", open_source(str(labeled), labeled=True), TrainSettings(**TINY | {"optimizer": optimizer}), run=RUN)
    assert "odd@gen-0" not in store.unfinished()


def test_the_order_in_memory_is_chosen_once_kept_over_a_resume_and_named_in_the_manifest(tiny_store, monkeypatch):
    store, labeled, _ = tiny_store
    source, settings = open_source(str(labeled), labeled=True), TrainSettings(**TINY)
    once = RunSettings(workers=0, decode_threads=1, checkpoint_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        train(store, "ordered", source, settings, run=once, progress=InterruptAfter(0))
    monkeypatch.setattr("nst_train.training.loop.resolve_channels_last", lambda *_: False)  # a later nst, another rule
    resumed = train(store, "ordered", source, settings, run=once)
    assert resumed.manifest.machine["channels_last"] is True
    changed = train(store, "unordered", source, settings.model_copy(update={"seed": 9}), run=once)
    assert changed.manifest.machine["channels_last"] is False


def test_a_version_that_a_start_leaves_open_is_settled_when_training_begins(tiny_store):
    store, labeled, _ = tiny_store
    settings = TrainSettings(**TINY | {"start": "tiny-teacher", "epochs": 0.5})
    version = train(store, "from-newest", open_source(str(labeled), labeled=True), settings, run=RUN)
    assert version.manifest.request.settings["start"] == "tiny-teacher@gen-0"


@pytest.mark.slow
def test_slow_reads_are_said_before_training(tmp_path):
    """Of a file with a damaged row group no copy can be made."""
    images = [png(row % 2, row) for row in range(8)]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": images, "label": [0, 1] * 4}), path, row_group_size=2)
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(3).column(0).data_page_offset
    content[start : start + 36] = bytes(36)
    path.write_bytes(content)
    said = RecordingProgress()
    train(Store(tmp_path / "store"), "slow", open_source(str(path), labeled=True), TrainSettings(**TINY), run=RUN, progress=said)
    (line,) = (line for line in said.lines if "reading single images is slow" in line)
    assert line.startswith(
        f"{path}: reading single images is slow: each read decodes a whole row group, because `datasets` could not make a copy"
    )


def test_class_weights_follow_the_readable_labeled_images_and_change_nothing_where_classes_are_equal(tiny_store, tmp_path):
    store, labeled, _ = tiny_store
    rare = write_class_folders(tmp_path / "rare", ["ant", "bee", "cat"], 2)
    write_class_folders(rare, ["ant"], 6, first=10)
    first_loss = {}
    for weights in (None, "balanced"):
        settings = TrainSettings(**TINY | {"learning_rate": 1e-30, "batch_size": 12, "epochs": 1, "class_weights": weights})
        equal, unequal = (
            train(store, f"{weights}-{name}", open_source(folder, labeled=True), settings, run=RUN)
            for name, folder in (("equal", labeled), ("rare", rare))
        )
        first_loss[weights] = [
            json.loads((one.folder / "metrics.jsonl").read_text().splitlines()[0])["loss_labeled"] for one in (equal, unequal)
        ]
    assert first_loss["balanced"][0] == first_loss[None][0]
    assert abs(first_loss["balanced"][1] - first_loss[None][1]) > 1e-3

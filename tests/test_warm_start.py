import json

import pytest
import torch
from conftest import TINY, write_class_folders, write_pool, write_tiny_recipe
from safetensors.torch import load_file
from torch import nn
from watched import RecordingProgress
from wording import mentions

from nst_data.errors import NstError
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.classifiers.teachers import load_classifier
from nst_train.networks.models import create_network
from nst_train.networks.own_networks import register_network
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import load_recipe
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.train import train
from nst_train.training.warm_start import load_start_weights

RUN = RunSettings(workers=0, decode_threads=1)
NO_STEP = {"learning_rate": 1e-30, "epochs": 0.1, "ema_decay": 0.0, "weight_decay": 0.0}


def weights_of(version):
    return load_file(version.folder / "model.safetensors")


def started(store, labeled, progress=None, **changes):
    settings = TrainSettings(**TINY | NO_STEP | {"start": "tiny-teacher@gen-0"} | changes)
    return train(store, "warm", open_source(str(labeled), labeled=True), settings, run=RUN, progress=progress)


def test_a_student_starts_from_its_teachers_weights_and_says_so_in_its_lineage(tiny_store):
    store, labeled, _ = tiny_store
    teacher = store.open("tiny-teacher@gen-0")
    warm = started(store, labeled)
    assert warm.manifest.request.inputs.initial_weights.digest == teacher.manifest.digest
    found, expected = weights_of(warm), weights_of(teacher)
    torch.testing.assert_close(
        {name: found[name] for name in dict.fromkeys(expected) if "running" not in name and "num_b" not in name},
        {name: expected[name] for name in expected if "running" not in name and "num_b" not in name},
    )


def test_classes_in_another_order_keep_their_weights(tiny_store, tmp_path):
    store, labeled, _ = tiny_store
    names = tmp_path / "names"
    names.write_text("cat\nant\nbee\n")
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [path.read_bytes() for path in sorted(labeled.rglob("*.png"))]
    pq.write_table(pa.table({"image": images, "label": [1] * 4 + [2] * 4 + [0] * 4}), tmp_path / "labeled.parquet")
    settings = TrainSettings(**TINY | NO_STEP | {"start": "tiny-teacher@gen-0"})
    source = open_source(str(tmp_path / "labeled.parquet"), labeled=True, class_names=str(names))
    warm = train(store, "reordered", source, settings, run=RUN)
    assert warm.manifest.class_names == ["cat", "ant", "bee"]
    torch.testing.assert_close(weights_of(warm)["fc.weight"], weights_of(store.open("tiny-teacher@gen-0"))["fc.weight"][[2, 0, 1]])


class Auxiliary(nn.Module):
    """Its logits are those of two layers, as VOLO's are, of which it names one as its last."""

    def __init__(self, classes):
        super().__init__()
        self.head, self.aux_head = nn.Linear(3 * 16**2, classes), nn.Linear(3 * 16**2, classes)

    def get_classifier(self):
        return self.head

    def forward(self, images):
        return self.head(images.flatten(1) + 1) + self.aux_head(images.flatten(1))


def test_classes_in_another_order_are_refused_where_more_than_the_last_layer_knows_them(tmp_path):
    register_network("own_auxiliary", Auxiliary, image_size=16)
    plain = TINY | NO_STEP | {"model": "own_auxiliary", "noise": {"operations": 0, "stochastic_depth": 0}}
    store, labeled = Store(tmp_path / "store"), write_class_folders(tmp_path / "labeled", ["ant", "bee"], 2)
    train(store, "two", open_source(str(labeled), labeled=True), TrainSettings(**plain), run=RUN)
    settings = TrainSettings(**plain, start="two@gen-0")
    load_start_weights(create_network(settings, 2), settings, store, ["ant", "bee"], RecordingProgress())
    with pytest.raises(NstError, match=r"start two@gen-0: has the classes in another order.*own_auxiliary.*another `model`"):
        load_start_weights(create_network(settings, 2), settings, store, ["bee", "ant"], RecordingProgress())


def test_other_classes_start_the_last_layer_anew_and_that_is_said(tiny_store, tmp_path):
    store, _, _ = tiny_store
    said = RecordingProgress()
    warm = started(store, write_class_folders(tmp_path / "labeled", ["one", "two"], 4), said)
    assert any(mentions(line, "tiny-teacher@gen-0 … other classes: the last layer … scratch") for line in said.lines)
    teacher = weights_of(store.open("tiny-teacher@gen-0"))
    assert weights_of(warm)["fc.weight"].shape == (2, 96)
    torch.testing.assert_close(weights_of(warm)["conv1.0.weight"], teacher["conv1.0.weight"])


def test_the_weights_of_another_network_are_refused_in_one_line_and_leave_nothing(tiny_store):
    store, labeled, _ = tiny_store
    before = store.versions()
    with pytest.raises(
        NstError,
        match=r"start tiny-teacher@gen-0:.*test_efficientnet:.*\(conv_stem\.weight,.*\(conv1\.0\.weight,.*\(bn1\.weight 32 instead of 24, ",
    ):
        started(store, labeled, model="test_efficientnet")
    assert store.versions() == before
    assert not [one for one in store.unfinished() if str(one).startswith("warm")]


@pytest.mark.parametrize("mean", [0.4465, 0.5])
def test_images_that_are_normalized_otherwise_than_the_start_knows_them_are_said(tiny_store, mean):
    for name, its_mean in (("own_start", 0.4465), ("own_next", mean)):
        register_network(name, lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(768, classes)), image_size=16, mean=(its_mean,) * 3)
    store, labeled, _ = tiny_store
    source, values, said = open_source(labeled, labeled=True), TINY | NO_STEP | {"noise": {"stochastic_depth": 0}}, RecordingProgress()
    first = train(store, "own-start", source, TrainSettings(**values | {"model": "own_start"}), run=RUN)
    settings = TrainSettings(**values | {"model": "own_next", "start": first.ref})
    train(store, f"own-next-{mean}", source, settings, run=RUN, progress=said)
    lines = [line for line in said.lines if mentions(line, f"warning: start {first.ref} … mean")]
    assert len(lines) == (mean != 0.4465)
    assert all(
        mentions(line, "by mean 0.447, 0.447, 0.447 and standard deviation 0.5, … own_next … with mean 0.5, … `model`") for line in lines
    )


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    """A recipe whose student is pretrained on pseudo-labels only and then finetuned: (store, its generations)."""
    top = tmp_path_factory.mktemp("stages")
    for folder, first in (("labeled", 0), ("test", 50)):
        write_class_folders(top / folder, ["ant", "bee", "cat"], 4, first)
    write_pool(top / "pool", 3, 5)
    finetune = {"epochs": 2, "image_size": 24, "freeze": 0.3, "transform": "evaluation"}
    student = TINY | {"ratio": 2, "start": "teacher", "epochs": 8, "pseudo_only": True, "finetune": finetune}
    path = write_tiny_recipe(
        top,
        label={"batch_size": 4, "rows_per_shard": 6},
        select={"min_confidence": 0.0, "per_class": 8},
        generations=[TINY, student],
        run={"workers": 0, "decode_threads": 1},
    )
    store = Store(top / "store")
    return store, self_training(store, load_recipe(path))


def test_a_recipe_pretrains_on_pseudo_labels_and_finetunes_on_labeled_images(two_stages):
    store, generations = two_stages
    assert [one.teacher.ref for one in generations] == ["bugs-teacher@gen-0", "bugs-teacher@gen-1"]
    before, after = (store.open(ref).manifest for ref in ("bugs-teacher-before-finetuning@gen-1", "bugs-teacher@gen-1"))
    assert (before.request.inputs.initial_weights.ref, before.request.inputs.edition.ref) == ("bugs-teacher@gen-0", "bugs@gen-1.1")
    assert before.request.settings["pseudo_only"]
    assert after.request.inputs.initial_weights.ref == "bugs-teacher-before-finetuning@gen-1"
    assert "edition" not in after.request.inputs.by_role
    assert "transform" not in before.request.settings
    assert after.request.settings["transform"] == "evaluation"


def test_its_learning_rate_is_the_end_of_the_first_ones(two_stages):
    """Eight epochs of three steps, with 350 / 2.4 steps down: the last step is the 24th."""
    store, _ = two_stages
    row = json.loads((store.open("bugs-teacher@gen-1").folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert (row["step"], row["learning_rate"]) == (6, pytest.approx(0.1 * 4 / 256 * 0.97 ** int(23 / 24 * 350 / 2.4)))


def test_a_network_finetuned_at_a_larger_size_evaluates_there_and_keeps_its_first_layers(two_stages):
    store, _ = two_stages
    classifier, _ = load_classifier("bugs-teacher@gen-1", store)
    assert classifier.preprocessing.input_size == (3, 24, 24)
    before, after = (weights_of(store.open(ref)) for ref in ("bugs-teacher-before-finetuning@gen-1", "bugs-teacher@gen-1"))
    assert torch.equal(before["conv1.0.weight"], after["conv1.0.weight"])
    assert not torch.equal(before["fc.weight"], after["fc.weight"])


def test_pretraining_logs_no_labeled_loss(two_stages):
    store, _ = two_stages
    log = store.open("bugs-teacher-before-finetuning@gen-1").folder / "metrics.jsonl"
    line = json.loads(log.read_text().splitlines()[0])
    assert line["loss_labeled"] is None
    assert 0 < line["loss_pseudo"] < 20

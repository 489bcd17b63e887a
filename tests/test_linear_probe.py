"""A network as it is, with a last layer fitted by logistic regression: a teacher in a minute."""

import numpy as np
import pytest
import timm
import torch
from conftest import TINY, write_class_folders, write_pool, write_tiny_recipe
from labels import write_teacher
from nst_cli.main import app
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from test_teachers import write_transformer
from threadpoolctl import threadpool_info, threadpool_limits
from transformers import AutoModelForImageClassification
from typer.testing import CliRunner
from wording import mentions

from nst_data.errors import NstError, UsageError
from nst_data.progress import LineProgress
from nst_data.sources import open_source
from nst_data.store.manifest import PROBE_SAMPLE
from nst_data.store.store import Store
from nst_train.evaluation.evaluate import evaluate
from nst_train.features.backbone import create_backbone, last_layer
from nst_train.features.embed import embed
from nst_train.features.linear_probe import DEFAULT_STRENGTH, STRENGTHS, fit
from nst_train.labeling.label import label
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import load_recipe
from nst_train.settings import EmbedSettings, LabelRunSettings, RunSettings, TrainSettings
from nst_train.training.train import train

CLASSES, RUN = ["ant", "bee", "cat"], RunSettings(workers=0, decode_threads=1)


def blobs(counts, dimensions=6, seed=0):
    """Features of classes that overlap, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centers = rng.normal(size=(len(counts), dimensions))
    features = (centers[labels] + rng.normal(size=(len(labels), dimensions))) * 100 + 3
    return features.astype(np.float32), labels.astype(np.int64)


def regression(strength):
    return LogisticRegression(C=strength, max_iter=1000)


@pytest.mark.parametrize("counts", [[30, 30, 30], [40, 7]])
def test_it_equals_scikit_learns_and_has_the_strength_of_the_best_likelihood(counts):
    features, labels = blobs(counts)
    probe = fit(features, labels, len(counts), seed=4)
    split = StratifiedKFold(5, shuffle=True, random_state=4)
    exact = features.astype(np.float64)
    scaled = (exact - exact.mean(0)) / np.sqrt(exact.var(0).mean())
    means = [cross_val_score(regression(one), scaled, labels, cv=split, scoring="neg_log_loss").mean() for one in STRENGTHS]
    assert (probe.strength, probe.folds) == (STRENGTHS[int(np.argmax(means))], 5)
    model = regression(probe.strength).fit(scaled, labels)
    logits = features.astype(np.float64) @ probe.weight.T.astype(np.float64) + probe.bias
    found = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), model.predict_proba(scaled), atol=2e-3)


def test_with_balanced_classes_it_equals_scikit_learns_and_classes_count_the_same_in_the_choice_of_strength(monkeypatch):
    strengths = STRENGTHS[3:9:2]
    monkeypatch.setattr("nst_train.features.linear_probe.STRENGTHS", strengths)
    features, labels = blobs([24, 8, 5], seed=1)
    probe, plain = (fit(features, labels, 3, seed=4, class_weights=weights) for weights in ("balanced", None))
    exact = features.astype(np.float64)
    scaled = (exact - exact.mean(0)) / np.sqrt(exact.var(0).mean())
    scores = []
    for strength in strengths:
        losses = []
        for train_rows, test_rows in StratifiedKFold(5, shuffle=True, random_state=4).split(scaled, labels):
            model = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced").fit(scaled[train_rows], labels[train_rows])
            own = np.log(model.predict_proba(scaled[test_rows])[np.arange(len(test_rows)), labels[test_rows]])
            losses.append(np.mean([own[labels[test_rows] == one].mean() for one in range(3)]))
        scores.append(np.mean(losses))
    assert probe.strength == strengths[int(np.argmax(scores))]
    model = LogisticRegression(C=probe.strength, max_iter=1000, class_weight="balanced").fit(scaled, labels)
    logits = features.astype(np.float64) @ probe.weight.T.astype(np.float64) + probe.bias
    found = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), model.predict_proba(scaled), atol=2e-3)
    assert not np.allclose(probe.weight, plain.weight, rtol=0.1)


def test_of_a_large_set_the_strength_is_sought_on_a_sample_without_classes_too_rare_for_folds():
    features, labels = blobs([100, 100, 100, 2], seed=2)
    probe, strengths = fit(features, labels, 4, seed=4, sample=90), list(STRENGTHS)
    scaled = (features - features.mean(0)) / np.sqrt(features.var(0).mean())
    drawn = np.sort(np.random.default_rng(4).choice(302, 90, replace=False))
    drawn = drawn[labels[drawn] < 3]
    split = StratifiedKFold(5, shuffle=True, random_state=4)
    means = [cross_val_score(regression(one), scaled[drawn], labels[drawn], cv=split, scoring="neg_log_loss").mean() for one in strengths]
    assert (probe.strength, probe.folds) == (strengths[int(np.argmax(means))], 5)
    exact = fit(features, labels, 4, strength=probe.strength)
    np.testing.assert_allclose(probe.probs(features), exact.probs(features), atol=2e-3)
    many = np.repeat(np.arange(30), 4)  # of which a sample has three images each, or fewer
    assert fit(blobs([4] * 30)[0], many, 30, seed=4, sample=90).folds in (2, 3)


class Tried:
    """A task that keeps how many threads BLAS had, and what it was told."""

    def __init__(self):
        self.threads, self.notes = [], []

    def advance(self, amount, note=""):
        self.threads += [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
        self.notes.append(note)


def test_each_strength_is_told_and_blas_has_one_thread_so_other_work_beside_it_does_not_slow_it_down():
    features, labels = blobs([8, 8])
    fit(features, labels, 2, strength=1.0)  # the libraries are loaded
    with threadpool_limits(2, user_api="blas"):
        fit(features, labels, 2, task=(task := Tried()))
        assert {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"} == {2}
    assert set(task.threads) == {1}
    assert [note.split(",")[0] for note in task.notes] == [f"strength {one:.2g}" for one in STRENGTHS]


def test_of_a_small_set_too_the_lines_say_how_far_the_search_is_and_nothing_where_none_is_made(tmp_path, capsys):
    settings = TrainSettings(model=write_teacher(tmp_path / "net", ["x", "y"]), pretrained=True, probe=True)
    for each, line in ((2, "fit probe@gen-0: 13/13 strengths, …"), (1, None)):
        images = open_source(write_class_folders(tmp_path / f"labeled-{each}", CLASSES, each), labeled=True)
        train(Store(tmp_path / f"store-{each}"), "probe", images, settings, run=RUN, progress=LineProgress())
        said = [one for one in capsys.readouterr().err.splitlines() if "strengths" in one]
        assert mentions(said[-1], line) if line else not said


def test_too_few_images_for_folds_have_a_stated_strength_and_a_class_without_images_never_wins():
    features, labels = blobs([3, 1, 3])
    labels[labels == 2] = 3
    probe = fit(features, labels, 4)
    assert (probe.strength, probe.folds, probe.weight.shape) == (DEFAULT_STRENGTH, 0, (4, 6))
    assert 2 not in (features @ probe.weight.T + probe.bias).argmax(1)
    assert probe.bias[2] < probe.bias[[0, 1, 3]].min() - 20


@pytest.fixture
def images(tmp_path):
    return open_source(write_class_folders(tmp_path / "labeled", CLASSES, 6), labeled=True)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_the_whole_network_is_sealed_and_only_its_last_layer_is_new(images, tmp_path, kind):
    name = write_teacher(tmp_path / "net", ["x", "y"]) if kind == "timm" else write_transformer(tmp_path / "net")
    store = Store(tmp_path / "store")
    version = train(store, "probe", images, TrainSettings(model=name, pretrained=True, probe=True), run=RUN)
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "net", version.folder))
    assert {key.split(".")[0] for key in after if key not in before or not torch.equal(after[key], before[key])} == {
        "fc" if kind == "timm" else "classifier"
    }
    features = embed(store, name, images, EmbedSettings(precision="fp32"), run=RUN)
    probe = fit(features.matrix(), np.repeat(np.arange(3), 6), 3)
    assert torch.equal(after["fc.weight" if kind == "timm" else "classifier.weight"], torch.from_numpy(probe.weight))
    assert (version.manifest.counts.steps, version.manifest.counts.labeled, version.manifest.counts.probe.folds) == (0, 18, 5)
    assert version.manifest.counts.probe.strength == probe.strength
    if kind == "timm":
        assert timm.create_model(f"local-dir:{version.folder}", pretrained=True).num_classes == 3
    assert AutoModelForImageClassification.from_pretrained(version.folder).config.num_labels == 3
    card = (version.folder / "README.md").read_text()
    assert "those of the network that it starts from but for the last layer, which was fitted by logistic regression (C = " in card
    corpus = label(store, "bugs", version, open_source(write_pool(tmp_path / "pool", 3, 2)), run=LabelRunSettings(decode_threads=1))
    assert corpus.manifest.counts.labeled == 6


def test_the_same_probe_is_found_whatever_does_not_shape_it_and_a_finetuned_student_may_start_from_it(images, tmp_path):
    store, name = Store(tmp_path / "store"), write_teacher(tmp_path / "net", ["x", "y"])
    settings = TrainSettings(model=name, pretrained=True, probe=True)
    version = train(store, "probe", images, settings, run=RUN)
    assert train(store, "probe", images, settings.model_copy(update={"epochs": 3, "learning_rate": 1.0}), run=RUN) == version
    still = TINY | {"learning_rate": 1e-30, "ema_decay": 0.0, "epochs": 0.5, "start": "probe@gen-0", "image_size": None}
    student = train(store, "student", images, TrainSettings(**still), run=RUN)
    first, second = (load_file(one.folder / "model.safetensors") for one in (version, student))
    torch.testing.assert_close(first["fc.weight"], second["fc.weight"])
    assert evaluate(store, version, images)["images"] == 18


def test_a_large_probe_names_its_sample_and_one_of_an_earlier_nst_is_found(images, tmp_path, monkeypatch, capsys):
    name = write_teacher(tmp_path / "net", ["x", "y"])
    settings, stores = TrainSettings(model=name, pretrained=True, probe=True), [Store(tmp_path / "earlier"), Store(tmp_path / "now")]
    before = train(stores[0], "probe", images, settings, run=RUN)
    assert PROBE_SAMPLE not in before.manifest.request.settings
    monkeypatch.setattr("nst_train.training.request.MAX_FOLDED", 17)
    assert train(stores[0], "probe", images, settings, run=RUN) == before
    version = train(stores[1], "probe", images, settings, run=RUN, progress=LineProgress())
    said = capsys.readouterr().err.splitlines()
    assert version.manifest.request.settings[PROBE_SAMPLE] == 17
    assert any(mentions(line, "fitting the last layer on 18 images, seeking its strength on 17 of them") for line in said)
    assert any(mentions(line, "fit probe@gen-0: …/13 strengths, …, strength …, log-likelihood -…") for line in said)
    features = embed(stores[1], name, images, EmbedSettings(precision="fp32"), run=RUN)
    probe = fit(features.matrix(), np.repeat(np.arange(3), 6), 3, sample=17)
    assert torch.equal(load_file(version.folder / "model.safetensors")["fc.weight"], torch.from_numpy(probe.weight))
    assert "probe-sample" not in (version.folder / "README.md").read_text()
    assert train(stores[1], "probe", images, settings, run=RUN) == version


def test_a_probe_without_weights_or_with_pseudo_labels_is_one_line(tiny_store):
    store, labeled, _ = tiny_store
    with pytest.raises(UsageError, match=r"`probe`.*trained network; add `pretrained` or `start`"):
        TrainSettings(model="test_resnet", probe=True)
    settings = TrainSettings(model="test_resnet", start="tiny-teacher@gen-0", probe=True, image_size=16)
    with pytest.raises(UsageError, match=r"`probe`.*labeled images only; remove.*`pseudo`"):
        train(store, "probe", open_source(labeled, labeled=True), settings, pseudo="tiny@gen-1.1")


def test_the_command_fits_one_and_refuses_options_that_do_nothing(tiny_store):
    store, labeled, _ = tiny_store
    words = ["train", "--labeled", str(labeled), "--name", "probed", "--model", "test_resnet", "--start-from", "tiny-teacher@gen-0"]
    words += ["--image-size", "16", "--probe", "--store", str(store.root)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert "parameters, the last layer fitted on 12 images (C = " in done.stdout
    shown = CliRunner().invoke(app, [*words, "--show-settings"], catch_exceptions=False).stdout
    assert "epochs" not in shown
    assert [line.split() for line in shown.splitlines() if line.startswith(("probe", "start"))] == [
        ["start", "tiny-teacher@gen-0", "--start-from"],
        ["probe", "true", "--probe"],
    ]
    done = CliRunner().invoke(app, [*words, "--epochs", "3"], catch_exceptions=False)
    assert (done.exit_code, done.stderr) == (
        2,
        "nst: --epochs has no effect with --probe, which fits only the last layer; remove it\n",
    )


def test_a_network_with_another_end_is_one_line(monkeypatch):
    network = timm.create_model("test_resnet", num_classes=2)
    monkeypatch.setattr(network, "get_classifier", lambda: torch.nn.Conv2d(1, 2, 1))
    with pytest.raises(NstError, match=r"net:.*one linear layer.*found Conv2d.*another model"):
        last_layer(network, 2, "net")


class Ending(torch.nn.Module):
    """A linear layer at its end, and what `more` makes of the features and the logits; takes images of 16 pixels."""

    def __init__(self, more):
        super().__init__()
        self.body, self.head, self.more = (
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16**2, 5)),
            torch.nn.Linear(5, 2),
            more,
        )

    def get_classifier(self):
        return self.head

    def forward(self, images):
        features = self.body(images)
        return self.more(features, self.head(features))


@pytest.mark.parametrize(
    ("more", "size_px", "why"),
    [
        (lambda features, logits: logits + features[:, :2], 16, "one linear layer.*not come from that layer.*another model"),  # as VOLO's
        (lambda features, logits: logits + 0.5 * torch.relu(features.mean(1, keepdim=True)) + 1, 16, "do not come from that layer"),
        (lambda features, logits: logits / 0, 16, "not finite; retrain it"),
        (lambda features, logits: logits, 24, "images of 24 px.*another `image_size`"),
    ],
)
def test_a_network_whose_logits_are_not_made_by_its_last_layer_alone_is_one_line(more, size_px, why):
    config = {"input_size": (3, size_px, size_px), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    with pytest.raises(NstError, match=f"net: .*{why}"):
        create_backbone(Ending(more), 2, "net", config)
    assert create_backbone(Ending(lambda _, logits: logits), 2, "net", config | {"input_size": (3, 16, 16)}).dimensions == 5


@pytest.mark.slow
def test_a_student_may_end_with_a_last_layer_fitted_anew(tmp_path):
    write_class_folders(tmp_path / "labeled", CLASSES, 6)
    write_class_folders(tmp_path / "test", CLASSES, 2, 50)
    write_pool(tmp_path / "pool", 3, 4)
    first = {"model": write_teacher(tmp_path / "net", ["x", "y"]), "pretrained": True, "probe": True}
    student = TINY | {"model": first["model"], "image_size": None, "start": "teacher", "finetune": {"probe": True}}
    recipe = load_recipe(write_tiny_recipe(tmp_path, generations=[first, student], run={"workers": 0}, select={"min_confidence": 0}))
    store = Store(tmp_path / "store")
    teacher, last = (one.teacher for one in self_training(store, recipe))
    assert last.manifest.counts.probe is not None
    assert last.manifest.request.inputs.initial_weights.ref == "bugs-teacher-before-finetuning@gen-1"
    assert store.open("bugs-teacher-before-finetuning@gen-1").manifest.counts.entries > 0
    assert teacher.manifest.counts.probe is not None


def test_a_recipe_begins_with_a_probe(tmp_path):
    name = write_teacher(tmp_path / "net", ["x", "y"])
    probe = {"model": name, "pretrained": True, "probe": True}
    path = write_tiny_recipe(tmp_path, generations=[probe, TINY | {"model": name, "image_size": None, "start": "teacher"}])
    assert load_recipe(path).generations[0].probe
    with pytest.raises(UsageError, match=r"generations.0.epochs: has no effect: .*`probe`"):
        load_recipe(write_tiny_recipe(tmp_path, generations=[probe | {"epochs": 3}, TINY]))
    with pytest.raises(UsageError, match=r"line 11: generations\.1\.finetune\.epochs:.*no effect: `probe`.*remove it"):
        load_recipe(write_tiny_recipe(tmp_path, generations=[probe, TINY | {"finetune": {"probe": True, "epochs": 3}}]))
    with pytest.raises(UsageError, match=r"`probe`.*labeled images only.*first generation.*`finetune`"):
        load_recipe(write_tiny_recipe(tmp_path, generations=[TINY, probe]))

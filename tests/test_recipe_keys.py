"""What is written in a recipe has an effect, or is refused with its place."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import write_pool
from wording import pattern

from nst_data.errors import UsageError
from nst_data.progress import Progress
from nst_data.settings import BalanceSettings
from nst_train.evaluation_settings import EvaluateSettings
from nst_train.noise_settings import Noise, PseudoNoise
from nst_train.recipes.checks import report_idle_settings
from nst_train.recipes.dead_keys import idle_first_keys
from nst_train.recipes.opened_sources import _open_source
from nst_train.recipes.reading import parse_recipe
from nst_train.recipes.recipe import GenerationSettings, Recipe, StudentSettings
from nst_train.recipes.sections import EvaluationSettings, PushToSettings, SelectSettings, SourceSettings
from nst_train.settings import PSEUDO_LABEL_SETTINGS, LabelSettings, RunSettings, TrainSettings

NETWORK = {"model": "test_resnet"}
BASE = {"name": "a", "labeled": {"source": "/l"}, "pool": {"source": "/p"}, "validation": {"source": "/v"}, "test": {"source": "/t"}}
# a value that is not the default, for each setting of a training; `also` is what it needs beside it
TRAINING = {
    **{"preset": "svhn", "model": "resnet10t", "pretrained": True, "image_size": 64, "epochs": 3, "batch_size": 8, "ratio": 3},
    **{"optimizer": "adamw", "learning_rate": 0.5, "warmup_epochs": 1, "decay_rate": 0.5, "decay_epochs": 2, "momentum": 0.5},
    **{"weight_decay": 0.5, "weight_decay_on": "weights"},
    **{"label_smoothing": 0.5, "loss": "sum", "hard": True, "pseudo_temperature": 2, "pseudo_only": True},
    **{"ema_decay": 0.5, "flip": 0, "crop_scale_min": 0.5, "crop_draw": "released", "crop_padding": 4},
    **{"batch_norm_decay": 0.5, "crop_pct": 0.5, "compute_threads": 1},
    **{"noise": {"magnitude": 3}, "pseudo_noise": {"magnitude": 3}, "start": "other@gen-1", "freeze": 0.5, "clip_grad": 1, "accumulate": 2},
    **{"freeze_by": "layers", "schedule_epochs": 700, "transform": "evaluation"},
    **{"precision": "fp32", "compile": True, "channels_last": True, "sync_batch_norm": True, "validate_every": 2, "seed": 9},
    **{"probe": True, "schedule": "cosine", "layer_decay": 0.7, "steps": 70, "freeze_batch_norm": True},
    **{"test_size": 96, "warmup_steps": 7, "head_init": "zero", "mixup": 0.2, "cutmix": 1.0, "class_weights": "balanced"},
    **{"fused_attention": False},
}
ALSO = {"freeze": {"start": "other@gen-1"}, "freeze_by": {"start": "other@gen-1", "freeze": 0.5}}
ALSO |= {"probe": {"pretrained": True}, "freeze_batch_norm": {"pretrained": True}, "layer_decay": {"weight_decay_on": "weights"}}
NOISE = {"magnitude": 3, "operations": 3, "amounts": "released", "augmentation": "v0", "cutout": 3, "dropout": 0.1, "stochastic_depth": 0.1}
PSEUDO_NOISE = NOISE | {"transform": "evaluation", "flip": 0, "crop_scale_min": 1}


def parse(**parts):
    return parse_recipe(yaml.safe_dump(BASE | {"generations": [NETWORK, NETWORK]} | parts), Path("/recipes/a.yaml"))


def outcome(place, **parts):
    """The recipe, or None where it is refused by a line that names the place."""
    try:
        return parse(**parts)
    except UsageError as error:
        message = str(error)
    says = rf"{place}(\.\w+)?: has no effect: " + (r"|the first generation has no teacher" if place.startswith("generations.0.") else "")
    assert re.search(says, message)
    return None


@pytest.mark.parametrize("setting", TrainSettings.model_fields)
def test_each_setting_of_a_training_changes_it_or_is_refused(setting):
    written = {**NETWORK, **ALSO.get(setting, {}), setting: TRAINING[setting]}
    plain = {**NETWORK, **ALSO.get(setting, {})}
    settings = outcome(f"generations.0.{setting}", generations=[written, NETWORK])
    if settings is not None and setting in PSEUDO_LABEL_SETTINGS:  # said, since an anchor may share it with the students
        assert idle_first_keys(settings) == [setting]
        settings = None
    before = parse(generations=[plain, NETWORK])
    if settings is not None:  # as `train` takes it where there are no pseudo-labels
        trained, other = (one.generations[0].first_training.for_labeled_only() for one in (settings, before))
        assert trained != other
    if setting == "probe":
        with pytest.raises(UsageError, match=r"`probe`.*labeled images only.*first generation.*`finetune`"):
            parse(generations=[NETWORK, written])
        return
    settings = outcome(f"generations.1.{setting}", generations=[NETWORK, written])
    assert settings is not None, "a student knows all of them"
    assert settings.generations[1].first_training != parse(generations=[NETWORK, plain]).generations[1].first_training


@pytest.mark.parametrize("setting", [name for name in TrainSettings.model_fields if name != "freeze"])
def test_each_setting_of_a_finetuning_changes_it_or_is_refused(setting):
    other = TRAINING | {"transform": "training"}  # which is not its default here
    also = {"freeze_by": {"freeze": 0.25}, "layer_decay": {"weight_decay_on": "weights"}}.get(setting, {})
    also |= {"transform": "training"} if setting in ("mixup", "cutmix") else {}
    parts = {"generations": [NETWORK, NETWORK | {"finetune": {setting: other[setting], **also}}]}
    if setting == "pretrained":
        with pytest.raises(UsageError, match=r"line 3: generations\.1\.finetune:.*`start` and `pretrained`.*remove"):
            parse(**parts)
        return
    after = outcome(f"generations.1.finetune.{setting}", **parts)
    if after is None:
        return
    settled = [
        one.generations[1].finetune.model_copy(update={"start": "before"}).for_labeled_only()
        for one in (after, parse(generations=[NETWORK, NETWORK | {"finetune": {"freeze": 0.25}}]))
    ]
    assert settled[0] != settled[1].model_copy(update={"freeze": 0})


@pytest.mark.parametrize(("model", "where"), [(Noise, "noise"), (PseudoNoise, "pseudo_noise")])
def test_each_setting_of_noise_changes_it_or_is_refused(model, where):
    for setting in model.model_fields:
        changed = parse(generations=[NETWORK, NETWORK | {where: {setting: PSEUDO_NOISE[setting]}}]).generations[1].first_training
        assert changed != parse().generations[1].first_training, setting


LABEL = {"batch_size": 3, "rows_per_shard": 3, "temperature": 2, "top_k": 2, "limit": 5, "noise": True, "exact_transform": True}
LABEL |= {"precision": "fp32", "compile": True, "noise_transform": "evaluation", "seed": 9}
SELECT = {"min_confidence": 0.1, "class_min_confidence": {"rose": 0.1}, "confidence_range": [0.1, 0.2], "exclude_class": ["rose"]}
SELECT |= {"fraction": 0.5, "per_class": 5, "auto_quantile": 0.1, "max_copies": 2, "method": "official", "exact_overlap_only": True}
SELECT |= {"at_threshold": "keep", "embed_images": True, "shard_mb": 5, "seed": 9, "by": "other@gen-1", "when": "once"}
SELECT_ALSO = {"by": {"when": "once"}, "auto_quantile": {"per_class": "auto"}, "shard_mb": {"embed_images": True}}


@pytest.mark.parametrize("setting", LabelSettings.model_fields)
def test_each_setting_of_labeling_changes_the_labels_or_is_refused(setting):
    found = outcome(f"label.{setting}", label={setting: LABEL[setting]})
    assert (found is None) == (setting in ("seed", "noise_transform"))
    assert found is None or found.label.for_request() != parse().label.for_request()
    assert parse(label={"noise": True, "seed": 9}).label.for_request()["seed"] == 9


@pytest.mark.parametrize("setting", SelectSettings.model_fields)
def test_each_setting_of_the_selection_changes_it(setting):
    assert set(SelectSettings.model_fields) == {*BalanceSettings.model_fields, "by", "when"}
    also = SELECT_ALSO.get(setting, {})
    assert parse(select={setting: SELECT[setting], **also}).select != parse(select=also).select


EVALUATE = {"suite": ["corruptions"], "relative_to": "other", "epsilon": 0.5, "steps": 3, "step_size": 0.5, "random_start": True}
EVALUATE |= {"partial": True, "seed": 9}
SUITES = {
    "relative_to": "corruptions",
    "epsilon": "fgsm",
    "steps": "pgd",
    "step_size": "pgd",
    "random_start": "pgd",
    "partial": "imagenet-a",
}


@pytest.mark.parametrize("setting", EvaluateSettings.model_fields)
def test_each_setting_of_an_evaluation_changes_what_is_measured_or_is_refused(setting):
    suite = SUITES.get(setting, "corruptions")
    data = {"data": "/a"} if setting == "partial" else {}
    found = parse(evaluate={"suite": suite, setting: EVALUATE[setting], **data}).evaluate[0]
    plain = parse(evaluate={"suite": "clean" if setting == "suite" else suite, "name": "x", **data}).evaluate[0]
    assert (found.suite_settings(found.suite[0]), found.relative_to, found.suite) != (
        plain.suite_settings(suite),
        plain.relative_to,
        plain.suite,
    )
    if setting not in ("suite", "seed"):
        with pytest.raises(UsageError, match=rf"evaluate.*`{setting}` applies to the suite"):
            parse(evaluate={"name": "x", setting: EVALUATE[setting]})


@pytest.mark.parametrize("suite", ["clean", "fgsm", "pgd"])
def test_a_seed_that_decides_nothing_of_an_evaluation_is_refused(suite):
    with pytest.raises(UsageError, match=r"line \d+: evaluate\.0\.seed: has no effect:.*corruptions.*remove it"):
        parse(evaluate=[{"suite": suite, "name": "x", "seed": 1}])
    assert parse(evaluate=[{"suite": "pgd", "random_start": True, "seed": 1}]).evaluate[0].seed == 1


PARTS = {
    "teacher": "other@gen-1",
    **{"name": "b", "labeled": {"source": "/x"}, "validation": {"source": "/x"}, "test": {"source": "/x"}, "pool": {"source": "/x"}},
    **{"holdout": 0.2, "seed": 5, "label": {"limit": 3}, "select": {"when": "once"}, "generations": [NETWORK] * 3, "control": True},
    "students": [NETWORK | {"name": "b"}],
    "reviews": {1: "b@review-1"},
    **{"evaluate": {"suite": "fgsm"}, "run": {"workers": 0}, "push_to": {"corpus": "me/a"}},
}


def test_each_key_of_a_recipe_is_known_here_and_reaches_it():
    assert Recipe.model_fields.keys() == PARTS.keys()
    for key, value in PARTS.items():
        also = {"test": None} if key == "holdout" else {}
        assert getattr(parse(**also, **{key: value}), key) != getattr(parse(), key), key
    assert set(GenerationSettings.model_fields) == {*TRAINING, "finetune"} == {*TrainSettings.model_fields, "finetune"}
    assert set(EvaluationSettings.model_fields) == {*EvaluateSettings.model_fields, "data", "name"}
    assert set(StudentSettings.model_fields) == {*GenerationSettings.model_fields, "name"}
    assert [one.settings.seed for one in parse(seed=5, students=PARTS["students"]).networks] == [5, 5, 5]
    assert (parse(seed=5).select.seed, parse(seed=5, evaluate={"suite": "corruptions"}).evaluate[0].seed) == (5, 5)


def test_each_key_of_a_source_a_run_and_a_push_reaches_the_recipe():
    source = {"image_column": "x", "class_names": "/names.txt", "label_column": "y"}
    assert source.keys() == SourceSettings.model_fields.keys() - {"source", "stream"}
    for name in source:
        assert getattr(parse(labeled={"source": "/l", name: source[name]}).labeled, name) == source[name]
    run = {"workers": 0, "checkpoint_minutes": 1, "keep_checkpoints": 3, "tracker": ["wandb"], "decode_threads": 1, "max_unreadable": 0.1}
    assert run.keys() == RunSettings.model_fields.keys()
    assert parse(run=run).run != parse().run
    to = {"corpus": "me/a", "teacher": "me/b", "public": True, "anonymous": True, "license": "mit", "pool_source": "the web"}
    assert to.keys() == PushToSettings.model_fields.keys()
    assert parse(push_to=to).push_to.model_dump() == to


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"pool": {"source": "/p", "class_names": "/n"}},
            r"line \d+: pool\.class_names: has no effect.*remove it",
        ),
        (
            {"push_to": {"teacher": "me/b", "pool_source": "web"}},
            r"push_to\.pool_source: has no effect.*`corpus:`.*remove it",
        ),
        (
            {"pool": {"source": "/p", "label_column": "y"}},
            r"line \d+: pool\.label_column: has no effect.*remove it",
        ),
        (
            {"generations": [NETWORK, NETWORK | {"finetune": {"model": "x"}}]},
            r"generations.1.finetune.model: .* preceding training, test_resnet",
        ),
        (
            {"generations": [NETWORK, NETWORK | {"finetune": {"freeze_by": "layers"}}]},
            r"generations\.1\.finetune\.freeze_by: has no effect.*\(set `freeze`\)",
        ),
    ],
)
def test_a_key_that_changes_nothing_is_refused_with_its_line_and_why(parts, message):
    with pytest.raises(UsageError, match=message):
        parse(**parts)


def test_what_only_a_default_or_a_preset_says_is_not_refused():
    default = {"ratio": 1, "hard": False, "pseudo_noise": {}}
    assert parse(label={"seed": 0}, generations=[NETWORK | default, NETWORK]) == parse()
    assert parse(generations=[{"preset": "svhn"}, {"preset": "svhn", "finetune": {"epochs": 1}}]).generations[0].ratio == 5


@pytest.mark.parametrize(
    "twice",
    ["seed: 1\nseed: 2\n", "select: {per_class: 1, fraction: 0.5, per_class: 2}\n", "run: &r {workers: 0}\nlabel: {seed: 1, seed: 1}\n"],
)
def test_a_key_that_stands_twice_is_refused(twice):
    with pytest.raises(UsageError, match=r"a\.yaml, line \d+: (seed|per_class): duplicate.*line \d+; remove"):
        parse_recipe(yaml.safe_dump(BASE | {"generations": [NETWORK] * 2}) + twice, Path("/recipes/a.yaml"))


def test_merged_mappings_may_be_written_over():
    text = "generations:\n- &net {model: test_resnet, epochs: 3}\n- {<<: *net, epochs: 4}\n- {<<: *net, ratio: 2}\n"
    recipe = parse_recipe(yaml.safe_dump(BASE) + text, Path("/recipes/a.yaml"))
    assert [(one.epochs, one.ratio) for one in recipe.generations] == [(3, 1), (4, 1), (3, 2)]


def test_a_recipe_that_refers_to_itself_is_one_line():
    with pytest.raises(UsageError, match=r"a.yaml"):
        parse_recipe("name: a\ngenerations: &g [*g, *g]\n", Path("/recipes/a.yaml"))


def test_what_an_anchor_shares_with_the_first_generation_is_taken_and_said():
    text = "generations: [&n {model: test_resnet, ratio: 3}, {<<: *n}]\n"
    recipe = parse_recipe(yaml.safe_dump(BASE) + text, Path("/recipes/a.yaml"))
    assert (idle_first_keys(recipe), recipe.generations[1].ratio) == (["ratio"], 3)
    assert idle_first_keys(parse(generations=[{"preset": "efficientnet-l2"}] * 2)) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pool: data/pool", "line 1: pool: … `{source: ...}`, found 'data/pool'"),
        ("generations: 5", "line 1: generations: … `[{model: ...}, {model: ...}]`, found 5"),
        ("students: a", "line 1: students: … `[{name: ..., model: ...}, {name: ..., model: ...}]`, found 'a'"),
        ("students: [{model: a}]", "line 1: students.0.name: missing"),
        ("students: [{name: a, model: a, ratoi: 3}]", "line 1: students.0.ratoi: … did you mean ratio?"),
        ("generations: [a, b]", "line 1: generations.0: … `{model: ...}`, found 'a'"),
        ("evaluate: corruptions", "line 1: evaluate: … `{suite: [corruptions]}`, … found 'corruptions'"),
        ("evaluate: {}", "`evaluate` … no suite, … add `suite: [corruptions]`"),
        ("label: []", "line 1: label: … `{batch_size: ...}`, found []"),
        ("pool: {source: [a, 3]}", "line 1: pool.source: … found ['a', 3]"),
        ("control: 2", "line 1: control: … true or false, found 2"),
        ("seed: true", "line 1: seed: … number, found true"),
        ("generations: [{model: a, epochs: true}, {model: a}]", "line 1: generations.0.epochs: … number, found true"),
        ("name: yes", "line 1: name: expected text, found yes; put it in quotes"),
        ("name: 0x10", "line 1: name: expected text, found 0x10; put it in quotes"),
        ("name: 2024-01-02", "line 1: name: expected text, found 2024-01-02; put it in quotes"),
        ("pool: {source: 2024}", "line 1: pool.source: expected text, or … texts, found 2024; put it in quotes"),
        ("name:", "line 1: name: expected text, found nothing"),
        ("name: ~", "line 1: name: expected text, found nothing"),
        ("name: [on, null, a, 2024-01-02]", "line 1: name: expected text, found [true, null, 'a', 2024-01-02]"),
        ("5: 2", "line 1: 5: … text, found 5"),
        ("~: 2", "line 1: None: … text, found nothing"),
        ("pool: {source: 'hf://datasets/alice/x'}", "OWNER/NAME; write alice/x"),
        ("pool: {source: 'https://huggingface.co/datasets/alice/x/tree/main'}", "as OWNER/NAME; write alice/x"),
        ("x: " + "[" * 20_000, "/recipes/a.yaml: … nested too deeply"),
    ],
)
def test_what_is_often_mistaken_in_a_recipe_is_said_plainly(text, says):
    rest = {key: value for key, value in (BASE | {"generations": [NETWORK] * 2}).items() if not text.startswith(key)}
    with pytest.raises(UsageError, match=pattern(says)):
        parse_recipe(f"{text}\n{yaml.safe_dump(rest)}", Path("/recipes/a.yaml"))


def test_an_empty_section_is_the_default():
    assert parse(label=None, select=None, run=None, evaluate=None) == parse()


def test_what_is_wrong_with_a_source_names_its_place_and_key_in_the_recipe(tmp_path):
    folder = write_pool(tmp_path / "pool", 1, 1)
    with pytest.raises(UsageError, match=r"^pool: `image_column` y:.*image files.*remove `image_column`$"):
        _open_source("pool", SourceSettings(source=str(folder), image_column="y"), Progress())


def test_a_momentum_that_the_optimizer_lacks_is_said():
    lines, progress = [], Progress()
    progress.say = lines.append
    report_idle_settings(parse(generations=[NETWORK, NETWORK | {"optimizer": "adamw", "momentum": 0.5}]), progress)
    assert lines == ["generations.1.momentum changes nothing: adamw has none"]

import math
from pathlib import Path

import pytest
from nst_cli.origins import derive_values

from nst_data.errors import UsageError
from nst_train.networks.models import check_model_and_optimizer, check_network_name, parameters_and_classes
from nst_train.noise_settings import Noise
from nst_train.presets import DEFAULT_SOURCES, PRESETS, PUBLISHED_ALTERNATIVES
from nst_train.recipes.reading import load_recipe, parse_recipe
from nst_train.recipes.recipe import GenerationSettings
from nst_train.recipes.sections import SelectSettings
from nst_train.settings import TrainSettings

# Written from the paper: sections 3.1, 3.2 and A.3, table 8; dropout and magnitude below B7, and all of svhn: the released code.
#                      network                size epochs ratio batch dropout depth magnitude
PAPER = {
    "efficientnet-b0": ("tf_efficientnet_b0", 224, 700, 1, 2048, 0.2, 0.2, 6),
    "efficientnet-b1": ("tf_efficientnet_b1", 240, 700, 3, 2048, 0.2, 0.2, 6),
    "efficientnet-b2": ("tf_efficientnet_b2", 260, 700, 3, 2048, 0.3, 0.2, 6),
    "efficientnet-b3": ("tf_efficientnet_b3", 300, 700, 3, 2048, 0.3, 0.2, 12),
    "efficientnet-b4": ("tf_efficientnet_b4", 380, 700, 3, 2048, 0.4, 0.2, 15),
    "efficientnet-b5": ("tf_efficientnet_b5", 456, 350, 3, 2048, 0.4, 0.2, 18),
    "efficientnet-b6": ("tf_efficientnet_b6", 528, 350, 3, 2048, 0.5, 0.2, 24),
    "efficientnet-b7": ("tf_efficientnet_b7", 600, 350, 3, 2048, 0.5, 0.2, 27),
    "efficientnet-l2": ("tf_efficientnet_l2", 475, 350, 14, 2048, 0.5, 0.2, 27),
    "resnet-50": ("resnet50", 224, 350, 3, 2048, 0.0, 0.0, 9),
    "svhn": ("tf_efficientnet_b0_32", 32, 202.3286, 5, 128, 0.2, 0.2, 5),
}
FLAT = ("model", "image_size", "epochs", "ratio", "batch_size")


def settings(preset, **given):
    return TrainSettings(preset=preset, **given)


@pytest.mark.parametrize("preset", PAPER)
def test_a_preset_has_the_published_figures(preset):
    found = settings(preset)
    noise = found.noise
    assert (*(getattr(found, name) for name in FLAT), noise.dropout, noise.stochastic_depth, noise.magnitude) == PAPER[preset]
    assert (found.optimizer, found.momentum, found.learning_rate, found.warmup_epochs) == ("rmsproptf", 0.9, 0.016, 5)
    assert (found.decay_rate, found.label_smoothing, found.ema_decay, found.noise.operations) == (0.97, 0.1, 0.9999, 2)
    assert (found.loss, found.hard, found.pretrained) == ("concat", False, False)
    assert found.weight_decay == (1e-4 if preset == "svhn" else 1e-5)
    assert found.batch_norm_decay == (None if preset == "resnet-50" else 0.99)
    assert (noise.amounts, found.crop_draw) == ("released", "torchvision" if preset == "svhn" else "released")  # svhn pads
    assert found.flip == (0 if preset == "svhn" else 0.5)
    assert (found.crop_padding, noise.cutout) == ((4, 16) if preset == "svhn" else (0, 0))


@pytest.mark.parametrize("preset", ["efficientnet-b0", "efficientnet-b4", "efficientnet-b5", "efficientnet-l2"])
def test_the_learning_rate_starts_at_0128_and_falls_every_2_4_epochs_of_350_or_4_8_of_700(preset):
    comes_to = derive_values(settings(preset), 1_281_167, None, student=True)
    assert comes_to["peak_learning_rate"] == pytest.approx(0.128)
    assert comes_to["epochs_between_decays"] == pytest.approx(4.8 if preset in ("efficientnet-b0", "efficientnet-b4") else 2.4)


@pytest.mark.parametrize("preset", ["svhn", "svhn-code"])
def test_svhns_schedule_is_the_released_codes(preset):
    """main.py: 109,474 steps of 128; 0.97 as often as makes the final rate of 0.0002 of 0.016 in all epochs but 5."""
    found, images = settings(preset), 73_257 - 4_000
    epochs = 109_474 * 128 / images
    comes_to = derive_values(found, images, None, student=True)
    assert comes_to["steps"] == 109_474
    assert comes_to["epochs_between_decays"] == pytest.approx(1.372, abs=0.0005)
    assert comes_to["epochs_between_decays"] == pytest.approx((epochs - 5) * math.log(0.97) / math.log(0.0002 / 0.016), rel=1e-5)


def test_with_other_epochs_svhns_learning_rate_falls_in_proportion():
    assert settings("svhn", epochs=35).staircase_epochs == pytest.approx(0.24)
    assert settings("svhn", epochs=35, decay_epochs=2).staircase_epochs == 2
    assert settings("svhn", epochs=2, schedule_epochs=202.3286).staircase_epochs == pytest.approx(1.372, abs=0.0005)  # its end


def test_the_released_codes_steps_are_350_epochs_of_its_batch():
    assert derive_values(settings("efficientnet-b7-code"), 1_281_167, None, student=True)["steps"] == 109_474 + 1  # as docs say


CODE = {"loss": "code", "batch_size": 4096}
NO_RANDAUGMENT = {"noise": {"operations": 0, "magnitude": 0}}


@pytest.mark.parametrize(
    ("preset", "differs"),
    [("svhn", {"loss": "code"})] + [(f"efficientnet-b{number}", CODE | (NO_RANDAUGMENT if number < 2 else {})) for number in range(8)],
)
def test_the_released_code_differs_from_the_text_in_these_settings_alone(preset, differs):
    assert settings(f"{preset}-code").for_request() == settings(preset, **differs).for_request()


def test_there_is_a_preset_for_each_published_network():
    of_code = {f"efficientnet-b{number}-code" for number in range(8)} | {"svhn-code"}
    assert PRESETS.keys() == PAPER.keys() | of_code | {"pretrained", "pretrained-vit"}


def test_each_network_exists_and_has_the_papers_number_of_parameters():
    millions = {"efficientnet-b0": 5.3, "efficientnet-b2": 9.2, "efficientnet-b7": 66, "efficientnet-l2": 480, "resnet-50": 26}
    for preset in PRESETS.keys() - {"pretrained", "pretrained-vit"}:
        check_model_and_optimizer(settings(preset))
    for preset, expected in millions.items():
        parameters, classes = parameters_and_classes(settings(preset))
        assert classes == 1000
        assert parameters / 1e6 == pytest.approx(expected, rel=0.02)


UNLIKE_B7 = {
    "ratio": 3,
    "batch_norm_decay": 0.99,
    "crop_draw": "released",
    "noise": {"amounts": "released"},
}  # and the table of docs/paper-settings.md names them


def test_the_defaults_are_b7s_where_they_are_published():
    default = TrainSettings(model="x", image_size=600, **UNLIKE_B7).for_request()
    assert default == settings("efficientnet-b7", model="x").for_request()
    flat = default | {f"noise.{name}": value for name, value in default["noise"].items()}
    assert DEFAULT_SOURCES.keys() <= flat.keys() | select_places()


def select_places():
    return {f"select.{name}" for name in SelectSettings.model_fields}


def test_the_docs_name_each_default_that_is_not_the_papers():
    """Beside the presets: what a network has by default and by its preset differs only in what the table names."""
    rows = {}
    for place, (value, where) in PUBLISHED_ALTERNATIVES.items():
        inside: object = SelectSettings() if place.startswith("select.") else TrainSettings(model="x")
        for name in place.removeprefix("select.").split("."):
            inside = getattr(inside, name)
        rows[place] = f"| `{place}` | {inside} | {value} ({where}) |"
    page = (Path(__file__).parent.parent / "docs" / "paper-settings.md").read_text("utf-8")
    table = page.partition("\n## Defaults that are not the paper's\n")[2].partition("\n## ")[0]
    assert [line for line in table.splitlines() if line.startswith("| `")] == list(rows.values())
    kinds = [f"efficientnet-{kind}" for kind in ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "l2")]
    default = flat_settings(TrainSettings(model="x"))
    differs = {
        place
        for kind in kinds
        for place, value in flat_settings(settings(kind, model="x", image_size=None)).items()
        if value != default[place]
    }
    assert differs == {place for place in rows if not place.startswith("select.")}


def flat_settings(found):
    flat = found.model_dump(exclude={"preset"})
    return {name: value for name, value in flat.items() if name != "noise"} | {
        f"noise.{name}": value for name, value in flat["noise"].items()
    }


def test_what_is_given_wins_over_the_preset_and_the_preset_over_the_default():
    found = settings("efficientnet-b2", ratio=14, noise={"magnitude": 9})
    assert (found.ratio, found.noise.magnitude) == (14, 9)
    assert (found.epochs, found.noise.dropout) == (700, 0.3)
    assert found.seed == 0


def test_an_augmentation_of_timm_takes_the_place_of_a_presets_randaugment():
    noise = settings("efficientnet-b2", noise={"augmentation": "augmix-m3-w3"}).noise
    assert noise == Noise(augmentation="augmix-m3-w3", dropout=0.3)


def test_a_padded_crop_takes_the_place_of_a_presets_random_resized_crop():
    found = settings("efficientnet-b2", crop_padding=4)
    assert (found.crop_padding, found.crop_draw) == (4, "torchvision")


def test_a_default_that_is_given_wins_too():
    assert settings("efficientnet-b7", ratio=1, noise={"dropout": 0.5}).ratio == 1
    assert settings("efficientnet-b2", noise={"dropout": 0.5}).noise.dropout == 0.5
    assert settings("efficientnet-b2", noise=Noise.none()).noise == Noise.none().model_copy(update={"amounts": "released"})


def test_a_preset_and_its_values_spelled_out_are_one_training():
    preset = settings("svhn", ratio=3)
    spelled_out = TrainSettings.model_validate(PRESETS["svhn"].values | {"ratio": 3})
    assert preset.for_request() == spelled_out.for_request()
    assert "preset" not in preset.for_request()


def test_other_epochs_keep_the_proportion_of_the_staircase():
    assert settings("efficientnet-b0", epochs=70).staircase_epochs == pytest.approx(0.48)


def test_a_misspelled_preset_is_suggested_and_any_other_answered_with_the_list():
    with pytest.raises(UsageError, match=r"did you mean efficientnet-b7"):
        settings("efficientnet_b7")
    with pytest.raises(UsageError, match=r"`preset`:.*pretrained.*efficientnet-b0.*svhn.*-code, found 'xyzzy'"):
        settings("xyzzy")


RECIPE = """\
name: flowers
labeled: {source: photos/labeled}
pool: {source: photos/pool}
seed: 3
generations:
  - {preset: efficientnet-b0}
  - {preset: efficientnet-b7, ratio: 14, noise: {magnitude: 9}}
"""


def test_a_recipe_takes_presets_and_its_own_values_win(tmp_path):
    teacher, student = parse_recipe(RECIPE, tmp_path / "flowers.yaml").generations
    assert (teacher.model, teacher.epochs, teacher.seed) == ("tf_efficientnet_b0", 700, 3)
    assert (student.model, student.ratio, student.noise.magnitude, student.noise.dropout) == ("tf_efficientnet_b7", 14, 9, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("efficientnet-b7", "efficientnet-b9"),
            r"line 7: generations\.1\.preset:.*did you mean efficientnet-b7.*, found 'efficientnet-b9'",
        ),
        (("{preset: efficientnet-b0}", "{prest: efficientnet-b0, model: m}"), r"line 6: generations.0.prest: .*did you mean preset\?"),
        (("ratio: 14", "ratio: 0"), r"line 7: generations\.1\.ratio:.*at least 1, found 0"),
        (("{preset: efficientnet-b0}", "{epochs: 3}"), r"line 6: generations.0.model: missing"),
    ],
)
def test_a_wrong_preset_is_named_with_its_line(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        parse_recipe(RECIPE.replace(*change), tmp_path / "flowers.yaml")


def test_the_example_for_imagenet_is_the_papers_iteration_from_b7_to_l2():
    recipe = Path(__file__).parent.parent / "examples" / "imagenet.yaml"
    generations = load_recipe(recipe).generations
    finetuned = [one.finetune is not None for one in generations[1:]]
    assert finetuned == [False, False, True]
    assert [one.model for one in generations] == ["tf_efficientnet_b7"] + 3 * ["tf_efficientnet_l2"]
    assert [one.ratio for one in generations[1:]] == [14, 14, 28]
    select = load_recipe(recipe).select
    assert (select.by, select.when) == ("tf_efficientnet_b0.aa_in1k", "once")
    check_network_name(select.by)


def test_the_example_for_study_1_is_table_9():
    """L2 of 88.4% teaches B0 to B7: standard augmentation on unlabeled images; 700 epochs below B5; three of them a labeled one, B0 one."""
    recipe = load_recipe(Path(__file__).parent.parent / "examples" / "study_1.yaml")
    for name in (recipe.teacher.model, recipe.select.by):
        check_network_name(name)
    assert [one.model for one in recipe.students] == [f"tf_efficientnet_b{number}" for number in range(8)]
    assert {network.generation for network in recipe.networks} == {1}
    assert [one.epochs for one in recipe.students] == 5 * [700] + 3 * [350]
    assert [one.ratio for one in recipe.students] == [1] + 7 * [3]
    for student in recipe.students:
        own, of_pseudo = student.noise, student.for_pseudo_images.noise
        assert (own.operations, of_pseudo) == (2, own.model_copy(update={"operations": 0}))


def test_the_example_for_svhn_trains_its_network():
    recipe = load_recipe(Path(__file__).parent.parent / "examples" / "svhn.yaml")
    assert {one.model for one in recipe.generations} == {"tf_efficientnet_b0_32"}
    assert recipe.select.per_class == 53_113


def test_a_noise_object_changes_only_what_it_was_made_with():
    assert settings("efficientnet-b0", noise=Noise(dropout=0.3)).noise == settings("efficientnet-b0", noise={"dropout": 0.3}).noise


def test_presets_cite_where_their_figures_stand():
    assert PRESETS["efficientnet-b7-code"].summary == "released code, `imagenet/train.sh`"
    assert PRESETS["svhn-code"].summary.startswith("released code, `svhn/run.sh`; ")
    assert PRESETS["resnet-50"].published["image_size"] == (224, "tables 4 and 5")


def test_pretrained_finetunes_published_weights_or_those_of_a_start():
    found = settings("pretrained", model="x")
    assert (found.pretrained, found.freeze_batch_norm, found.schedule, found.steps, found.batch_size) == (True, True, "cosine", 130, 16)
    assert found.learning_rate * found.batch_size / 256 == pytest.approx(0.002)
    student = settings("pretrained", model="x", start="teacher")
    assert student.for_request() == found.for_request() | {"pretrained": False, "start": "teacher"}
    vit = settings("pretrained-vit", model="x")
    assert (vit.pretrained, vit.freeze_batch_norm, vit.layer_decay, vit.noise.dropout) == (True, False, 0.75, 0)
    with pytest.raises(UsageError, match=r"`start` and `pretrained` both.*remove one"):
        settings("pretrained", model="x", start="teacher", pretrained=True)
    with pytest.raises(UsageError, match="`model`: missing"):
        settings("pretrained")


@pytest.mark.parametrize("preset", ["pretrained", "pretrained-vit"])
def test_what_finetunes_does_not_hang_on_the_papers_defaults(preset):
    """Whatever of them changes, each setting that shapes a training of photographs is the preset's, or off, or the network's own."""
    left = flat_settings(settings(preset, model="x")).keys() - PRESETS[preset].published.keys()
    of_staircase = {"epochs", "warmup_epochs", "decay_rate", "decay_epochs", "schedule_epochs"}
    of_network = {"model", "image_size", "test_size", "crop_pct"}
    of_machine = {"compute_threads", "precision", "compile", "channels_last", "fused_attention"}
    for place in left - of_staircase - of_network - of_machine - {"pseudo_noise", "transform", "freeze_by", "accumulate"}:
        inside: object = settings(preset, model="x")
        for name in place.split("."):
            inside = getattr(inside, name)
        assert not inside, place


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"epochs": 20}, {"epochs": 20, "steps": None}),
        ({"schedule_epochs": 400}, {"epochs": 350, "schedule_epochs": 400, "steps": None}),
        ({"steps": 700}, {"epochs": 350, "steps": 700}),
        ({"warmup_epochs": 0}, {"warmup_epochs": 0, "warmup_steps": None}),
        ({"hard": True}, {"hard": True, "pseudo_temperature": 1.0}),
        ({"batch_norm_decay": 0.9}, {"batch_norm_decay": 0.9, "freeze_batch_norm": False}),
        ({"weight_decay_on": "all"}, {"weight_decay_on": "all", "layer_decay": None}),
        ({"crop_padding": 4}, {"crop_padding": 4, "crop_scale_min": 0.08}),
        ({"schedule": "staircase"}, {"schedule": "staircase", "steps": 130}),
    ],
)
def test_what_is_given_drops_what_of_pretrained_it_replaces(given, expected):
    found = settings("pretrained", model="x", **given)
    assert {name: getattr(found, name) for name in expected} == expected
    assert (found.ratio, found.ema_decay) == (3, 0.98)


def test_a_finetuning_of_a_pretrained_generation_has_a_schedule_of_its_own():
    """Its preset counts steps; a length in epochs, of the generation or of the finetuning, takes their place."""
    first = {"preset": "pretrained", "model": "x", "start": "teacher"}

    def finetune(first_has, **second):
        generation = GenerationSettings.model_validate(first | first_has | {"finetune": second})
        assert generation.first_training.for_request() == settings(**first | first_has).for_request()
        second = generation.finetune
        assert (second.start, second.pretrained, second.learning_rate) == ("the first training", False, 0.032)
        warmup = second.warmup_epochs if second.warmup_steps is None else second.warmup_steps
        return second.steps, second.epochs, second.schedule_epochs, warmup

    assert finetune({}, image_size=224) == (130, 350, None, 0)
    assert finetune({}, epochs=2) == (None, 2, None, 0)
    assert finetune({}, steps=9) == (9, 350, None, 0)
    assert finetune({"steps": 70}, image_size=224) == (70, 350, None, 0)
    assert finetune({"epochs": 20}, epochs=2) == (None, 2, 20, 12)  # the end of the first one's cosine


def test_each_value_of_pretrained_says_that_it_is_not_the_papers():
    assert {where for _, where in PRESETS["pretrained"].published.values()} == {"measured on photographs", "usual in finetuning"}
    of_vit = {where for _, where in PRESETS["pretrained-vit"].published.values()}
    assert of_vit == {"as preset pretrained", "usual in finetuning", "as BEiT is finetuned"}
    assert PRESETS["pretrained"].summary.startswith("nst's own, not the paper's")


def test_a_decay_of_batch_norm_even_of_0_replaces_the_presets_frozen_one_and_class_weights_need_labeled_images():
    settings = TrainSettings(preset="pretrained", model="x", batch_norm_decay=0)
    assert (settings.batch_norm_decay, settings.freeze_batch_norm) == (0, False)
    with pytest.raises(UsageError, match=r"`class_weights`.*labeled images.*`pseudo_only`.*remove one"):
        TrainSettings(model="x", class_weights="balanced", pseudo_only=True)


def test_the_example_for_photographs_has_the_students_that_were_measured():
    """benchmarks/results/image_folder.md; since then a warm-up in steps, whole squares of 192 px in testing, a new last layer of zeros."""
    measured = {"learning_rate": 0.032, "optimizer": "adamw", "schedule": "cosine", "layer_decay": 0.9, "weight_decay": 0.05}
    measured |= {
        "weight_decay_on": "weights",
        "ema_decay": 0.98,
        "freeze_batch_norm": True,
        "label_smoothing": 0,
        "pseudo_temperature": 0.7,
    }
    measured |= {"crop_scale_min": 0.4, "steps": 130, "batch_size": 16, "ratio": 3, "image_size": 160}
    measured |= {"noise": {"magnitude": 7, "operations": 1, "dropout": 0.2, "stochastic_depth": 0.1}}
    since = {"warmup_steps": 12, "test_size": 192, "crop_pct": 1.0, "head_init": "zero"}
    first, *students = load_recipe(Path(__file__).parent.parent / "examples" / "image_folder.yaml").generations
    assert (first.probe, first.pretrained) == (True, True)
    expected = TrainSettings(model="tf_efficientnet_lite0", start="teacher", **measured, **since)
    assert [one.first_training.for_request() for one in students] == 2 * [expected.for_request()]

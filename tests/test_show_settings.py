import json
from pathlib import Path

import polars as pl
import pytest
import yaml
from conftest import TINY, write_class_folders, write_pool, write_tiny_recipe
from nst_cli.main import app
from typer.testing import CliRunner
from wording import mentions

from nst_train.settings import RunSettings, TrainSettings


def output_of(*arguments):
    result = CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def settings_of(*arguments):
    return json.loads(output_of("train", *arguments, "--show-settings", "--json"))


def test_each_value_comes_from_an_option_a_preset_or_the_defaults():
    found = settings_of("--preset", "efficientnet-b7", "--ratio", "14", "--dropout", "0.4", "--workers", "2")["settings"]
    assert found["ratio"] == {"value": 14, "source": "--ratio"}
    assert found["noise.dropout"] == {"value": 0.4, "source": "--dropout"}
    assert found["workers"] == {"value": 2, "source": "--workers"}  # the default, but given
    assert found["noise.magnitude"] == {"value": 27, "source": "preset efficientnet-b7 (section 3.1)"}
    assert found["weight_decay"] == {"value": 1e-5, "source": "preset efficientnet-b7 (released code)"}
    assert found["seed"] == {"value": 0, "source": "default"}


def test_a_value_of_a_preset_that_another_setting_replaced_is_not_shown_as_the_presets():
    found = settings_of("--preset", "pretrained", "--model", "test_resnet", "--start-from", "x@gen-0", "--epochs", "9")["settings"]
    assert found["ema_decay"] == {"value": 0.98, "source": "preset pretrained (measured on photographs)"}
    assert found["schedule"] == {"value": "cosine", "source": "preset pretrained (usual in finetuning)"}
    assert (found["pretrained"], found["steps"]) == ({"value": False, "source": "default"}, {"value": None, "source": "default"})
    assert found["epochs"]["source"] == "--epochs"


def test_what_steps_and_a_cosine_replace_is_not_shown_as_read():
    found = settings_of("--preset", "pretrained", "--model", "test_resnet")["settings"]
    assert {found[name]["source"] for name in ("epochs", "schedule_epochs")} == {"not used with steps"}
    assert {found[name]["source"] for name in ("decay_rate", "decay_epochs")} == {"not used with schedule cosine"}
    assert found["warmup_epochs"]["source"] == "not used with warmup_steps"


def flattened(settings):
    """Settings inside settings by their place, such as noise.dropout."""
    inside = {f"{name}.{one}": value for name, part in settings.items() if isinstance(part, dict) for one, value in part.items()}
    return {name: value for name, value in settings.items() if not isinstance(value, dict)} | inside


def test_without_a_preset_the_defaults_name_their_section():
    found = settings_of("--model", "test_resnet")["settings"]
    assert found["model"]["source"] == "--model"
    assert found["epochs"] == {"value": 350, "source": "default (section 3.1 has 350; 700 for EfficientNet-B0 to B4)"}
    assert found["decay_rate"] == {"value": 0.97, "source": "default (section 3.1)"}
    assert found["label_smoothing"]["source"] == "default (released code)"
    assert found["compute_threads"] == {"value": None, "source": "default"}


def test_every_setting_is_there():
    flat = flattened(TrainSettings(model="x").model_dump()).keys() | {"preset"}
    assert settings_of("--model", "test_resnet")["settings"].keys() == flat | set(RunSettings.model_fields)


def test_what_follows_from_the_settings_is_said_without_any_images():
    derived = settings_of("--preset", "efficientnet-l2", "--batch-size", "512")["derived"]
    assert derived["images_per_step"] == 512 * 15
    assert derived["peak_learning_rate"] == pytest.approx(0.032)
    assert (derived["steps"], derived["labeled_images"]) == (None, None)
    assert (derived["parameters"] // 1_000_000, derived["classes"]) == (480, 1000)


def test_labeled_images_give_steps_and_a_teacher_reads_nothing_of_pseudo_labels(labeled_folder):
    found = settings_of("--labeled", labeled_folder, "--preset", "efficientnet-b2", "--epochs", "5", "--batch-size", "4")
    assert (found["derived"]["steps"], found["derived"]["labeled_images"]) == (15, 12)
    assert found["derived"]["images_per_step"] == 4
    assert found["derived"]["classes"] == 3
    assert found["settings"]["ratio"]["source"] == "unused without pseudo-labels"


def test_an_edition_gives_the_passes_over_its_entries(tiny_store):
    store, labeled, _ = tiny_store
    words = ["--labeled", labeled, "--pseudo", "tiny@gen-1.1", "--store", store.root, "--model", "test_resnet", "--batch-size", "4"]
    derived = settings_of(*words, "--epochs", "10", "--ratio", "3")["derived"]
    entries = pl.read_parquet(store.open("tiny@gen-1.1", "edition").folder / "balanced" / "*.parquet")["copies"].sum()
    assert (derived["steps"], derived["pseudo_labeled_entries"]) == (30, entries)
    assert derived["passes_over_entries"] == pytest.approx(30 * 12 / entries)


def test_columns_are_aligned_and_nothing_is_trained(labeled_folder, tmp_path):
    words = ["--labeled", labeled_folder, "--name", "bugs", "--preset", "svhn", "--store", tmp_path / "store", "--show-settings"]
    lines = output_of("train", *words).splitlines()
    assert lines[0] == "preset svhn: section A.3; SVHN accuracy 98.6%, its teacher 98.1% (table 17)"
    header, *rows = lines[2 : lines.index("", 2)]
    column = header.index("value")
    assert all(row[column - 1] == " " and row[column] != " " for row in rows)
    assert any(row.split() == ["noise.magnitude", "5", "preset", "svhn", "(released", "code)"] for row in rows)
    steps = next(line for line in lines[lines.index("", 2) :] if line.startswith("steps"))
    assert steps.split(maxsplit=1)[1] == "19 over 12 labeled images"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--show-settings"], "--model is missing: expected a timm model name"),
        (["--preset", "efficientnet-b77", "--show-settings"], "--preset: expected a preset (did you mean efficientnet-b7"),
        (["--preset", "svhn", "--model", "resnet55", "--show-settings"], "resnet55: no network of timm"),
        (["--preset", "svhn", "--name", "n"], "--labeled SOURCE …; see `nst train --help`"),
        (["--preset", "svhn", "--labeled", "x"], "--name TEACHER …; see `nst train --help`"),
        (["--preset", "svhn", "--labeled", "x", "--name", "n", "--loss", "sum"], "add an edition with --pseudo"),
    ],
)
def test_wrong_use_is_one_line(words, message, tmp_path):
    result = CliRunner().invoke(app, ["train", *words, "--store", str(tmp_path)], catch_exceptions=False)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert mentions(result.stderr, message)


@pytest.fixture
def recipe(tmp_path):
    """A tiny recipe on presets: the last student has as many steps as the teacher and a ratio of its preset."""
    write_class_folders(tmp_path / "labeled", ["ant", "bee", "cat"], 4)
    write_class_folders(tmp_path / "test", ["ant", "bee", "cat"], 2, first=50)
    write_pool(tmp_path / "pool", 3, 5)
    tiny = {name: value for name, value in TINY.items() if name != "noise"} | {"preset": "efficientnet-b2"}
    generations = [tiny, tiny | {"noise": {"magnitude": 5, "stochastic_depth": 0.1}}]
    parts = {"select": {"min_confidence": 0, "per_class": 5}, "run": {"workers": 0}}
    return write_tiny_recipe(tmp_path, generations=generations, seed=3, **parts)


def test_a_recipes_settings_are_shown_for_each_generation(recipe):
    teacher, student = json.loads(output_of("run", recipe, "--show-settings", "--json"))
    assert teacher["settings"]["seed"] == {"value": 3, "source": "recipe"}
    assert teacher["settings"]["ratio"]["source"] == "unused without pseudo-labels"
    assert student["settings"]["ratio"] == {"value": 3, "source": "preset efficientnet-b2 (section 3.2)"}
    assert student["settings"]["noise.magnitude"] == {"value": 5, "source": "recipe"}
    assert student["settings"]["noise.dropout"] == {"value": 0.3, "source": "preset efficientnet-b2 (released code)"}
    assert student["settings"]["workers"] == {"value": 0, "source": "recipe"}
    assert student["derived"]["steps"] == 6
    assert student["settings"]["select.per_class"] == {"value": 5, "source": "recipe"}
    assert student["settings"]["select.when"] == {"value": "every_generation", "source": "default (section 3.1 has once)"}
    assert student["settings"]["select.by"] == {"value": None, "source": "default (section 3.1 has EfficientNet-B0)"}
    assert "select.when" not in teacher["settings"]
    assert "generation 1, a student" in output_of("run", recipe, "--show-settings")


@pytest.mark.slow  # it makes the largest networks, without weights
def test_a_recipe_is_shown_before_its_images_are_there():
    recipe = Path(__file__).parent.parent / "examples" / "imagenet.yaml"
    result = CliRunner().invoke(app, ["run", str(recipe), "--show-settings", "--json"], catch_exceptions=False)
    assert [one["derived"]["images_per_step"] for one in json.loads(result.stdout)] == [2048, *(2048 * one for one in (15, 15, 29)), 2048]
    assert "no steps: " in result.stderr
    assert "no such file or folder" in result.stderr


def test_a_recipe_with_presets_trains_what_it_shows(recipe, tmp_path):
    output_of("run", recipe, "--store", tmp_path / "store")
    student = json.loads((tmp_path / "store" / "teachers" / "bugs-teacher" / "gen-1" / "nst.json").read_text())
    trained = student["request"]["settings"]
    found = json.loads(output_of("run", recipe, "--show-settings", "--json"))[1]["settings"]
    assert "preset" not in trained
    flat = flattened(trained)
    assert flat == {name: found[name]["value"] for name in flat}


def test_a_finetuning_is_shown_as_a_training_of_its_own(recipe):
    content = yaml.safe_load(recipe.read_text())
    content["generations"][1]["finetune"] = {"epochs": 1.5, "image_size": 24}
    recipe.write_text(yaml.safe_dump(content))
    shown_text = output_of("run", recipe, "--show-settings")
    assert "generation 1, finetuned" in shown_text
    found = json.loads(output_of("run", recipe, "--show-settings", "--json"))
    assert [one["settings"]["image_size"]["value"] for one in found][-1] == 24
    assert found[-1]["derived"]["pseudo_labeled_images_per_step"] == 0


def test_a_finetunings_values_are_named_with_their_true_origin(recipe):
    content = yaml.safe_load(recipe.read_text())
    content["generations"][1] |= {"pretrained": True, "warmup_epochs": 2, "finetune": {"epochs": 1.5, "noise": {"operations": 0}}}
    recipe.write_text(yaml.safe_dump(content))
    first, finetuned = (one["settings"] for one in json.loads(output_of("run", recipe, "--show-settings", "--json"))[1:])
    assert first["warmup_epochs"] == {"value": 2, "source": "recipe"}
    assert finetuned["warmup_epochs"] == {"value": 2, "source": "recipe"}
    assert finetuned["schedule_epochs"] == {"value": 2, "source": "default of finetune"}
    assert finetuned["transform"] == {"value": "evaluation", "source": "default of finetune"}
    assert finetuned["start"]["source"] == "default of finetune"
    assert {finetuned[name]["source"] for name in ("flip", "crop_scale_min", "noise.cutout")} == {"not used with transform evaluation"}
    assert (first["pretrained"], finetuned["pretrained"]) == (
        {"value": True, "source": "recipe"},
        {"value": False, "source": "default"},
    )
    assert [finetuned[name]["source"] for name in ("epochs", "noise.stochastic_depth")] == ["recipe"] * 2
    assert finetuned["noise.dropout"] == {"value": 0.3, "source": "preset efficientnet-b2 (released code)"}
    content["generations"][1]["finetune"]["warmup_epochs"] = 1
    recipe.write_text(yaml.safe_dump(content))
    found = json.loads(output_of("run", recipe, "--show-settings", "--json"))[-1]["settings"]
    assert found["warmup_epochs"] == {"value": 1, "source": "recipe"}
    assert found["schedule_epochs"]["value"] is None


def test_randaugment_is_not_named_as_the_presets_where_another_augmentation_replaces_it():
    found = settings_of("--preset", "efficientnet-b2", "--augmentation", "augmix-m3-w3")["settings"]
    assert {found[name]["source"] for name in ("noise.magnitude", "noise.operations")} == {"not used with noise.augmentation"}

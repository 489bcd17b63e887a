from pathlib import Path

import pytest

from nst_data.errors import UsageError
from nst_train.recipes.reading import load_recipe, parse_recipe

RECIPE = """\
name: flowers
labeled: {source: photos/labeled}
pool: {source: /data/pool}
seed: 3
generations:
  - {model: efficientnet_b0}
  - {model: efficientnet_b0, ratio: 3, seed: 7, noise: {magnitude: 15}}
"""
PLACE = Path("/recipes/flowers.yaml")


def parse(*change):
    return parse_recipe(RECIPE.replace(*change) if change else RECIPE, PLACE)


def test_relative_sources_start_at_the_recipes_folder(tmp_path):
    (tmp_path / "photos" / "labeled").mkdir(parents=True)
    recipe = parse_recipe(RECIPE, tmp_path / "flowers.yaml")
    assert recipe.labeled.source == str(tmp_path / "photos" / "labeled")
    assert recipe.pool.source == "/data/pool"


def test_a_source_with_labels_may_name_their_column():
    recipe = parse("labeled: {source: photos/labeled}", "labeled: {source: x.parquet, label_column: kind}")
    assert recipe.labeled.label_column == "kind"
    assert recipe.pool.label_column is None


def test_each_part_takes_the_recipes_seed_unless_it_names_its_own():
    recipe = parse()
    assert [settings.seed for settings in recipe.generations] == [3, 7]
    assert recipe.select.seed == 3


def test_what_a_recipe_leaves_out_has_the_papers_value():
    student = parse().generations[1]
    assert (student.epochs, student.batch_size, student.noise.magnitude, student.noise.dropout) == (350, 2048, 15, 0.5)
    assert (parse().select.min_confidence, parse().select.per_class) == (0.3, 130_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ratio: 3", "ration: 3"), r"flowers\.yaml, line 7: generations\.1\.ration:.*did you mean ratio\?"),
        (("magnitude: 15", "magnitud: 15"), r"line 7: generations\.1\.noise\.magnitud:.*did you mean magnitude\?"),
        (("seed: 3", "xyzzy: 3"), r"line 4: xyzzy:.*one of name, labeled"),
        (("ratio: 3", "ratio: 0"), r"line 7: generations\.1\.ratio:.*at least 1, found 0"),
        (("{model: efficientnet_b0}", "{epochs: 3}"), r"line 6: generations.0.model: missing"),
        (("name: flowers", "name: ../flowers"), r"line 1: name: .*expected ASCII letters, digits"),
        (("labeled: {", "labelled: {"), r"labelled: unknown key; did you mean labeled\?"),
        (("seed: 3", "seed: [3"), r"flowers\.yaml, line 5: expected YAML; a bracket is not closed, .* at 'generations:'"),
        (("name:", "  name: x\nname:"), r"flowers\.yaml, line 2: expected YAML; indentation or punctuation is wrong at 'name: flowers'$"),
        (("name: flowers", "name: 'flowers"), r"flowers\.yaml, line 1: expected YAML; a quote is not closed at"),
        (("name: flowers", "name: @flowers"), r"line 1: expected YAML; text that begins with .* needs quotes at 'name: @flowers'$"),
        (("name: flowers", "\tname: flowers"), r"line 1: expected YAML; a tab where blanks are expected at 'name: flowers'$"),
        (
            ("name: flowers", "name: 2024-13-45"),
            r"flowers\.yaml: expected YAML; a value in it .* \(month must be in 1\.\.12\); put text in quotes$",
        ),
        (
            ("generations:", "generationes:"),
            r"generationes:.*did you mean generations\?|generations: list.*at least 2",
        ),
        (("ratio: 3", "finetune: {epoch: 1}"), r"line 7: generations\.1\.finetune\.epoch:.*did you mean epochs\?"),
        ((RECIPE, "just text"), r"flowers\.yaml:.*keys name, labeled.*, found text$"),
        ((RECIPE, "[a, b]"), r"flowers\.yaml:.*keys name, labeled.*, found a list$"),
        ((RECIPE, "yes"), r"flowers\.yaml:.*keys name, labeled.*, found true$"),
    ],
)
def test_a_wrong_recipe_names_the_key_and_its_line(change, message):
    with pytest.raises(UsageError, match=message):
        parse(*change)


def finetuned(of_first, own):
    recipe = parse("noise: {magnitude: 15}}", f"{of_first}, noise: {{magnitude: 15}}, finetune: {own}}}")
    return recipe.generations[1].first_training, recipe.generations[1].finetune


def test_a_finetuning_names_what_is_different_and_is_the_end_of_the_schedule():
    first, second = finetuned("pseudo_only: true", "{epochs: 1.5, noise: {operations: 0}}")
    assert (first.epochs, first.pseudo_only, first.warmup_epochs, first.noise.magnitude, first.noise.operations) == (350, True, 5, 15, 2)
    assert (second.epochs, second.pseudo_only, second.schedule_epochs) == (1.5, False, 350)
    assert (second.warmup_epochs, second.staircase_epochs, second.noise.magnitude, second.noise.operations) == (5, 2.4, 15, 0)
    assert (second.model, second.seed, second.start) == ("efficientnet_b0", 7, "the first training")
    assert parse().generations[0].finetune is None


@pytest.mark.parametrize(
    ("of_first", "epochs", "whole"),
    [
        ("warmup_epochs: 5", 1.5, 350),  # the default
        ("epochs: 100", 1.5, 100),
        ("preset: efficientnet-b0", 1.5, 700),
        ("epochs: 140, schedule_epochs: 350", 1.5, 350),
        ("epochs: 8", 8, 8),
    ],
)
def test_the_schedule_that_a_finetuning_ends_is_that_of_its_first_training(of_first, epochs, whole):
    first, second = finetuned(of_first, f"{{epochs: {epochs}}}")
    assert (second.schedule_epochs, second.decay_rate) == (whole, 0.97)
    assert second.staircase_epochs == first.staircase_epochs == pytest.approx(2.4 * whole / 350)


@pytest.mark.parametrize("own", ["learning_rate: 0.001", "warmup_epochs: 0", "decay_epochs: 1", "epochs: 9"])
def test_a_finetuning_with_a_rate_of_its_own_or_more_epochs_than_the_first_is_no_end_of_that_schedule(own):
    _, second = finetuned("epochs: 8, schedule_epochs: 8, warmup_epochs: 2", f"{{{own}}}")
    assert (second.schedule_epochs, second.warmup_epochs) == (None, 0)


def test_a_finetuning_is_on_un_augmented_images_but_after_pretraining_on_pseudo_labels():
    assert [one.transform for one in finetuned("epochs: 8", "{image_size: 800}")] == ["training", "evaluation"]
    assert finetuned("epochs: 8", "{transform: training, flip: 0.5}")[1].transform == "training"
    assert finetuned("pseudo_only: true", "{epochs: 8}")[1].transform == "training"  # study 6
    with pytest.raises(UsageError, match=r"line 7: generations\.1\.finetune\.crop_scale_min: has no effect:.*`transform: training`"):
        finetuned("epochs: 8", "{crop_scale_min: 0.5}")
    with pytest.raises(UsageError, match=r"finetune.noise.magnitude: has no effect"):
        finetuned("epochs: 8", "{noise: {magnitude: 9, operations: 0}}")


def test_a_schedule_is_no_shorter_than_its_end():
    with pytest.raises(UsageError, match=r"line 7: generations\.1\.finetune: `schedule_epochs`:.*8 `epochs`.*found 7"):
        finetuned("epochs: 8", "{schedule_epochs: 7}")


@pytest.mark.parametrize("setting", ["start: teacher", "pseudo_only: true"])
def test_the_first_generation_has_no_teacher(setting):
    with pytest.raises(UsageError, match=r"first generation.*no teacher.*`start: teacher`.*`pseudo_only`"):
        parse("{model: efficientnet_b0}", f"{{model: efficientnet_b0, {setting}}}")


def test_a_recipe_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.yaml: No such file.*examples/image_folder\.yaml"):
        load_recipe(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("name", ["digits", "image_folder", "cifar10"])
def test_the_examples_are_valid_recipes(name):
    recipe = load_recipe(Path(__file__).parent.parent / "examples" / f"{name}.yaml")
    assert len(recipe.generations) == 3


def test_a_finetuning_without_randaugment_leaves_another_augmentation_out_too():
    recipe = parse("noise: {magnitude: 15}}", "noise: {augmentation: v0}, finetune: {noise: {operations: 0}}}")
    assert recipe.generations[1].first_training.noise.augmentation == "v0"
    assert (recipe.generations[1].finetune.noise.augmentation, recipe.generations[1].finetune.noise.operations) == (None, 0)

from pathlib import Path

import pytest

from nst_data.errors import UsageError
from nst_train.recipe import load_recipe, parse_recipe

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


def parsed(*change):
    return parse_recipe(RECIPE.replace(*change) if change else RECIPE, PLACE)


def test_relative_sources_start_at_the_recipes_folder(tmp_path):
    (tmp_path / "photos" / "labeled").mkdir(parents=True)
    recipe = parse_recipe(RECIPE, tmp_path / "flowers.yaml")
    assert recipe.labeled.source == str(tmp_path / "photos" / "labeled")
    assert recipe.pool.source == "/data/pool"


def test_a_source_with_labels_may_name_their_column():
    recipe = parsed("labeled: {source: photos/labeled}", "labeled: {source: x.parquet, label_column: kind}")
    assert recipe.labeled.label_column == "kind"
    assert recipe.pool.label_column is None


def test_each_part_takes_the_recipes_seed_unless_it_names_its_own():
    recipe = parsed()
    assert [settings.seed for settings in recipe.generations] == [3, 7]
    assert recipe.select.seed == 3


def test_what_a_recipe_leaves_out_has_the_papers_value():
    student = parsed().generations[1]
    assert (student.epochs, student.batch_size, student.noise.magnitude, student.noise.dropout) == (350, 2048, 15, 0.5)
    assert (parsed().select.min_confidence, parsed().select.per_class) == (0.3, 130_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ratio: 3", "ration: 3"), r"flowers.yaml, line 7: generations.1.ration: unknown key; did you mean ratio\?"),
        (("magnitude: 15", "magnitud: 15"), r"line 7: generations.1.noise.magnitud: unknown key; did you mean magnitude\?"),
        (("seed: 3", "xyzzy: 3"), r"line 4: xyzzy: unknown key; expected one of name, labeled"),
        (("ratio: 3", "ratio: 0"), r"line 7: generations.1.ratio: input should be greater than or equal to 1, found 0"),
        (("{model: efficientnet_b0}", "{epochs: 3}"), r"line 6: generations.0.model: missing"),
        (("name: flowers", "name: ../flowers"), r"line 1: name: .*expected letters, digits"),
        (("labeled: {", "labelled: {"), r"labeled: missing"),
        (("seed: 3", "seed: [3"), r"flowers.yaml: expected YAML"),
        (
            ("generations:", "generationes:"),
            r"generationes: unknown key; did you mean generations\?|generations: list should have at least 2",
        ),
        (("ratio: 3", "finetune: {epoch: 1}"), r"line 7: generations.1.finetune.epoch: unknown key; did you mean epochs\?"),
        ((RECIPE, "just text"), r"expected a recipe with the keys name, labeled"),
    ],
)
def test_a_wrong_recipe_names_the_key_and_its_line(change, message):
    with pytest.raises(UsageError, match=message):
        parsed(*change)


def test_a_finetuning_names_what_is_different_and_starts_at_its_full_learning_rate():
    recipe = parsed(
        "noise: {magnitude: 15}}", "pseudo_only: true, noise: {magnitude: 15}, finetune: {epochs: 1.5, noise: {operations: 0}}}"
    )
    first, second = recipe.generations[1].first, recipe.generations[1].finetune
    assert (first.epochs, first.pseudo_only, first.warmup_epochs, first.noise.magnitude, first.noise.operations) == (350, True, 5, 15, 2)
    assert (second.epochs, second.pseudo_only, second.warmup_epochs, second.noise.magnitude, second.noise.operations) == (
        1.5,
        False,
        0,
        15,
        0,
    )
    assert (second.model, second.seed, second.start) == ("efficientnet_b0", 7, "the first training")
    assert recipe.generations[0].finetune is None


@pytest.mark.parametrize("setting", ["start: teacher", "pseudo_only: true"])
def test_the_first_generation_has_no_teacher(setting):
    with pytest.raises(UsageError, match="the first generation has no teacher and no pseudo-labels"):
        parsed("{model: efficientnet_b0}", f"{{model: efficientnet_b0, {setting}}}")


def test_a_recipe_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"nothing.yaml: No such file or directory; expected a recipe"):
        load_recipe(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("name", ["digits", "image_folder", "cifar10"])
def test_the_examples_are_valid_recipes(name):
    recipe = load_recipe(Path(__file__).parent.parent / "examples" / f"{name}.yaml")
    assert len(recipe.generations) == 3


def test_a_finetuning_without_randaugment_leaves_another_augmentation_out_too():
    recipe = parsed("noise: {magnitude: 15}}", "noise: {augmentation: v0}, finetune: {noise: {operations: 0}}}")
    assert recipe.generations[1].first.noise.augmentation == "v0"
    assert (recipe.generations[1].finetune.noise.augmentation, recipe.generations[1].finetune.noise.operations) == (None, 0)

"""Settings that come later leave the digests of what was made before as they are."""

import json
import zipfile
from pathlib import Path
from typing import Annotated

import pytest
from earlier_store import ZIP

from nst_data.settings import AdoptSettings, BalanceSettings, Later, Settings, later_fields
from nst_data.store.manifest import EARLIER_NOISED_LABEL_DEFAULTS, EARLIER_TRAINING_DEFAULTS, json_digest
from nst_train.noise_settings import Noise, PseudoNoise
from nst_train.recipes.reading import load_recipe
from nst_train.settings import LabelSettings, TrainSettings

EXAMPLES = Path(__file__).parent.parent / "examples"


def digest(settings):
    return json_digest(settings.for_request())[:16]


ALL_RELEASED = {"weight_decay_on": "all", "batch_norm_decay": 0.99, "amounts": "released"}  # in presets
LATER = {"imagenet": ALL_RELEASED | {"crop_draw": "released"}, "svhn": ALL_RELEASED}


def taken_apart(settings):
    """(what settings ask for by names that were there at first, what by later ones)."""
    first, later = {}, {}
    for name, value in settings.for_request().items():
        own = getattr(settings, name)
        if isinstance(own, Settings):
            first[name], inside = taken_apart(own)
            later |= inside
        else:
            (later if name in later_fields(type(settings)) else first)[name] = value
    return first, later


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (TrainSettings(model="x", weight_decay_on="weights", channels_last=False), "9e20100d3f2e209c"),
        (LabelSettings(), "0e48e70d87dea88b"),
        (LabelSettings(noise=True, noise_transform="evaluation"), "c93212c1da56f99f"),
        (BalanceSettings(), "f27e29d319a9f28e"),
        (AdoptSettings(probs="p"), "1dd763454e4253ea"),
    ],
)
def test_the_requests_of_default_settings_are_those_of_before(settings, expected):
    assert digest(settings) == expected


@pytest.mark.parametrize(
    ("recipe", "label", "select", "trainings"),
    [
        ("cifar10", "0e48e70d87dea88b", "df4f3eb4fc3e20d7", ["2f602bef322d4247", "60dae52767c0d8ed", "60dae52767c0d8ed"]),
        ("digits", "0e48e70d87dea88b", "59bb3afda09fd146", ["b711bd72772d3d0f", "24358db7ac4c3e9f", "24358db7ac4c3e9f"]),
        (
            "imagenet",
            "0e48e70d87dea88b",
            "f27e29d319a9f28e",
            ["ad5d21ca702d147c", "565d57ac3ad98c28", "565d57ac3ad98c28", "a2194b84644e6dfd"],
        ),
        ("svhn", "0e48e70d87dea88b", "dce5c69a5b6a2c74", ["15c7bcc76ea811ea", "15c7bcc76ea811ea"]),
    ],
)
def test_our_recipes_ask_for_what_they_asked_for_before(recipe, label, select, trainings):
    """Where a default that one relies on changes, its value of before is written into the recipe. Presets follow what is published."""
    read = load_recipe(EXAMPLES / f"{recipe}.yaml")
    stages = [stage for generation in read.generations for stage in (generation.first_training, generation.finetune) if stage]
    if recipe == "imagenet":  # how L2 is finetuned is not as before; in svhn the preset's epochs between steps down are not
        stages = [generation.first_training for generation in read.generations]
    assert all(taken_apart(stage)[1] == LATER.get(recipe, {}) for stage in stages)
    asked = [json_digest(taken_apart(stage)[0])[:16] for stage in stages]
    assert (digest(read.label), digest(read.select.balance_settings), asked) == (label, select, trainings)


def test_a_selection_by_the_released_method_is_another_than_the_one_of_before():
    """That one dropped images exactly as sure as the threshold."""
    before = BalanceSettings().for_request() | {"method": "official"}
    assert BalanceSettings.from_request(before).at_threshold == "drop"
    assert BalanceSettings.from_request(before).for_request() == before
    assert BalanceSettings(method="official").for_request() == before | {"at_threshold": "keep"}
    of_range = BalanceSettings(method="official", confidence_range=(0.2, 0.5))
    assert of_range.for_request() == before | {"confidence_range": [0.2, 0.5]}


def test_an_earlier_request_is_spelled_out_where_todays_default_is_another():
    """For the commands of cards, and to say what is different: the table of them lies below the settings of training."""
    for before, settings in ((EARLIER_TRAINING_DEFAULTS, TrainSettings), (EARLIER_NOISED_LABEL_DEFAULTS, LabelSettings)):
        default = {name: field.default for name, field in settings.model_fields.items()}
        assert before == {name: value for name, value in later_fields(settings).items() if value != default[name]}


def test_a_later_setting_is_left_out_while_it_has_its_value_of_before():
    class Grown(BalanceSettings):
        rounds: Annotated[int, Later(1)] = 3

    assert Grown(rounds=1).for_request() == BalanceSettings().for_request()
    assert Grown().for_request() == BalanceSettings().for_request() | {"rounds": 3}
    assert Grown.from_request(BalanceSettings(per_class=7).for_request()) == Grown(per_class=7, rounds=1)
    assert Grown.from_request(Grown(rounds=2).for_request()).rounds == 2


def test_a_later_setting_of_the_noise_is_left_out_of_the_training():
    class GrownNoise(Noise):
        blur: Annotated[float, Later(0.0)] = 0.0

    class Grown(TrainSettings):
        noise: GrownNoise = GrownNoise()

    assert Grown(model="x").for_request() == TrainSettings(model="x").for_request()
    assert Grown(model="x", noise=GrownNoise(blur=0.5)).for_request()["noise"]["blur"] == 0.5


def earlier(version):
    """The settings of a version that the commit before these rules made."""
    with zipfile.ZipFile(ZIP) as store:
        return json.loads(store.read(f"store/{version}/nst.json"))["request"]["settings"]


TRAINED = earlier("teachers/bugs-teacher/gen-0")


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        (TrainSettings, TRAINED),
        (Noise, TRAINED["noise"]),
        (PseudoNoise, TRAINED["pseudo_noise"]),
        (LabelSettings, [*earlier("corpora/bugs/gen-1"), "seed"]),  # which stands in no request without noise
        (BalanceSettings, earlier("corpora/bugs/gen-1.1")),
        (AdoptSettings, ["probs", "key", "top_k", "rows_per_shard"]),
    ],
)
def test_a_setting_that_was_not_there_at_first_is_marked_as_later(settings, first):
    fields = {name for name, field in settings.model_fields.items() if not field.exclude}
    assert fields - later_fields(settings).keys() == set(first)

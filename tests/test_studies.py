"""benchmarks/studies.py: the arms that a study compares differ in the one switch that it is about."""

import importlib.util
import sys
from pathlib import Path

import pytest

SHORT = {"epochs": 4, "min_confidence": 0}
FILE = Path(__file__).parent.parent / "benchmarks" / "studies.py"


@pytest.fixture(scope="module")
def studies():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("studies", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["studies"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["studies"]


@pytest.fixture(scope="module")
def made(studies, tmp_path_factory):
    """(folder, the networks of two studies) of a short run."""
    folder = tmp_path_factory.mktemp("studies")
    return folder, studies.versions(folder, 0, ["noise", "iterations"], **SHORT)


def difference(first, second):
    """The settings in which two trainings differ, inside `noise` and `pseudo_noise` too."""

    def flat(settings, prefix=""):
        for name, value in settings.items():
            yield from flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]

    left, right = (dict(flat(version.manifest.request.settings)) for version in (first, second))
    return {name for name in left.keys() | right.keys() if left.get(name) != right.get(name)}


def edition_of(version):
    return version.manifest.request.inputs.edition.ref


@pytest.mark.slow
def test_arms_differ_in_their_one_switch_alone(studies, made):
    folder, arms = made
    student = arms["student"]
    augmentation = {"pseudo_noise.operations", "pseudo_noise.crop_scale_min"}
    assert difference(student, arms["student, unlabeled images not augmented"]) == augmentation
    assert difference(student, arms["student, no noise on unlabeled images"]) == augmentation | {"pseudo_noise.dropout"}
    noised = ("student of a teacher trained with noise", "student of the same, noised while it labels")
    same_training = (*noised, "second student", "third student")
    assert [difference(student, arms[name]) for name in same_training] == [set()] * 4
    assert edition_of(student) == edition_of(arms["student, no noise on unlabeled images"]) == "by-teacher@gen-1.1"
    taught_by = ("by-noised-teacher", "by-noised-teacher-noised", "by-student", "by-student-2")
    assert [edition_of(arms[name]) for name in same_training] == [f"{corpus}@gen-1.1" for corpus in taught_by]
    labels = [studies.Store(folder / "store-0").open(f"{corpus}@gen-1") for corpus in taught_by[:2]]
    assert [one.manifest.request.settings.get("noise", False) for one in labels] == [False, True]
    assert labels[0].manifest.digest != labels[1].manifest.digest
    assert set(arms) == {arm for one in studies.COMPARISONS[:6] for arm in (one.arm, one.other)}


@pytest.mark.slow
def test_a_second_call_finds_all_and_counts_the_right_answers(studies, made):
    folder, arms = made
    found = studies.right(folder, 0, ["noise", "iterations"], **SHORT)
    assert studies.versions(folder, 0, ["noise", "iterations"], **SHORT) == arms
    assert {arm: set(right) <= {0.0, 1.0} and len(right) == 500 for arm, right in found.items()} == dict.fromkeys(arms, True)


def test_an_interval_is_over_seeds_and_images(studies):
    import numpy as np

    apart = [np.repeat(mean, 400) for mean in (0.0, 0.1)]
    low, high = studies.interval(apart)
    assert (low, high) == pytest.approx((0, 10))  # the two seeds alone: their images agree
    draw = np.random.default_rng(0)
    noisy = [draw.choice([-1.0, 0.0, 1.0], 500, p=(0.1, 0.8, 0.1)) for _ in range(5)]
    low, high = studies.interval(noisy)
    assert low < 0 < high
    assert studies.verdict(1.0, low, high) == "undecided"
    assert (studies.verdict(None, 1, 2), studies.verdict(1.0, -2, -1), studies.verdict(0.0, 1, 2)) == (
        "same sign",
        "**other sign**",
        "the paper: about equal",
    )

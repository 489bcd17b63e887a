import itertools

import polars as pl
import pytest
from timm.data import ImageNetInfo

from nst_data.errors import NstError
from nst_data.inspection.churn import match_labels_by_name
from nst_data.sources import match_classes
from nst_data.sources.imagenet_names import imagenet_wnids, wnids_of

INFO = ImageNetInfo("imagenet-1k")
WNIDS = INFO.label_names()
FULL = [INFO.index_to_description(index) for index in range(1000)]
SHORT = [name.split(",")[0] for name in FULL]
TOLD_APART = [f"{name} ({index})" if SHORT.count(name) > 1 else name for index, name in enumerate(SHORT)]


def test_the_ids_are_those_that_timm_names():
    assert imagenet_wnids() == WNIDS


@pytest.mark.parametrize("names", [WNIDS, FULL, SHORT, TOLD_APART, [name.upper().replace(" ", "_") for name in FULL]])
def test_all_thousand_are_known_by_ids_full_names_and_single_words_in_their_order(names):
    assert wnids_of(names) == WNIDS


def test_in_another_order_full_names_match_but_for_the_one_that_two_classes_have():
    turned = [name for name in reversed(FULL) if name != "crane"]
    assert wnids_of(turned) == [wnid for wnid, name in zip(reversed(WNIDS), reversed(FULL), strict=True) if name != "crane"]
    assert wnids_of(FULL[::-1]) is None


@pytest.mark.parametrize("names", [FULL, SHORT, TOLD_APART], ids=["full", "short", "told apart"])
def test_of_two_exchanged_names_none_means_its_place(names):
    twofold = [index for index, name in enumerate(SHORT) if SHORT.count(name) > 1]
    for one, other in [(10, 11), (0, 999), *itertools.combinations([10, 657, 744, 836, *twofold], 2)]:
        order = list(range(1000))
        order[one], order[other] = other, one
        found, right = wnids_of([names[index] for index in order]), [WNIDS[index] for index in order]
        assert found == right or (found is None and {one, other} & set(twofold)) or names[one] == names[other]


def test_a_stretch_that_is_moved_by_one_is_known_by_name_and_one_with_a_name_of_two_classes_refused():
    assert wnids_of([*FULL[:200], *FULL[201:240], FULL[200], *FULL[240:]]) == [*WNIDS[:200], *WNIDS[201:240], WNIDS[200], *WNIDS[240:]]
    assert wnids_of([*FULL[:120], *FULL[121:150], FULL[120], *FULL[150:]]) is None


def test_a_name_that_means_nothing_is_known_by_its_place():
    assert wnids_of(["a fish", *FULL[1:10], FULL[11], FULL[10], *FULL[12:]]) == [*WNIDS[:10], WNIDS[11], WNIDS[10], *WNIDS[12:]]
    assert wnids_of([*SHORT[:10], "brambling, a bird", "goldfinch, too", *SHORT[12:]])[10] == WNIDS[SHORT.index("brambling")]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("tench", 0),
        ("Tinca tinca", 0),
        ("great_white_shark", 2),
        ("missile", 657),
        ("projectile", 744),
        ("projectile, missile", 744),
        ("sunglass", 836),
        ("sunglasses", 837),
        ("crane (134)", 134),
        ("crane (517)", 517),
        ("maillot, tank suit", FULL.index("maillot, tank suit")),
    ],
)
def test_a_name_beside_a_short_one_means_its_class(name, index):
    assert wnids_of(["goldfish", name]) == [WNIDS[1], WNIDS[index]]


@pytest.mark.parametrize("name", ["crane", "maillot", "cardigan", "panther", "crane (0)", "crane (1000)", "person", "n00000000", ""])
def test_a_name_of_several_classes_or_of_none_is_not_guessed(name):
    assert wnids_of(["goldfish", name]) is None


def test_among_full_names_one_that_others_begin_with_is_itself():
    assert wnids_of(["tench, Tinca tinca", "cardigan"]) == [WNIDS[0], WNIDS[474]]


def test_two_names_of_one_class_are_no_list_of_classes():
    assert wnids_of(["tench", "Tinca tinca"]) is None


def test_folders_named_by_ids_are_classes_of_a_classifier_named_by_words():
    assert match_classes([WNIDS[517], WNIDS[0]], FULL, "val", subset=True).tolist() == [517, 0]
    assert match_classes(["goldfish", "tench, Tinca tinca"], WNIDS, "val", subset=True).tolist() == [1, 0]
    assert match_classes(TOLD_APART[::-1], TOLD_APART, "test").tolist() == list(range(999, -1, -1))
    assert match_classes(WNIDS[::-1], FULL, "test").tolist() == list(range(999, -1, -1))


def test_classes_that_are_missing_are_an_error_by_either_name():
    with pytest.raises(
        NstError,
        match=r"test:.*1000 classes \(tench, Tinca tinca.*, \.\.\.\), found 999.*missing: toilet",
    ):
        match_classes(WNIDS[:-1], FULL, "test")


def test_a_few_words_alone_are_not_taken_for_imagenets():
    with pytest.raises(NstError, match=r"test:.*2 classes \(cab, hen\), found 2 \(taxi, hen\).*: taxi"):
        match_classes(["taxi", "hen"], ["cab", "hen"], "test")


def test_a_classifier_of_other_classes_is_an_error_that_shows_both():
    others = [f"class {index}" for index in range(1000)]
    with pytest.raises(NstError, match=r"val:.*1000 classes \(class 0.*found 2 \(n01440764, n01443537\).*: n01440764"):
        match_classes(WNIDS[:2], others, "val", subset=True)
    with pytest.raises(NstError, match=r"unknown: n01440764, yeti\. Rename one$"):
        match_classes([WNIDS[0], "yeti"], FULL, "val", subset=True, advice="Rename one")


def test_labels_of_two_teachers_are_compared_class_by_class():
    labels = pl.LazyFrame({"label": [0, 999, 134]})
    assert match_labels_by_name(labels, WNIDS, FULL[::-1][::-1], "diff").collect()["label"].to_list() == [0, 999, 134]
    assert match_labels_by_name(labels, WNIDS[::-1], FULL, "diff").collect()["label"].to_list() == [999, 0, 865]

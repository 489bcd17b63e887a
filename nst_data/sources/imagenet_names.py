"""Map class names to ImageNet's 1,000 classes, by WordNet ids or words, and match lists that use one with lists that use the other.

The reference lists are timm's, read as files because importing timm would import torch.
"""

import importlib.util
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

N_CLASSES = 1000
_MIN_SAME_NAMES = 950  # of 1,000 at the same index: versions of the list differ in a few words, unrelated lists in nearly all
_WNID = re.compile(r"n\d{8}")
_CLASS_NUMBER = re.compile(r"\d{1,3}")
_NUMBERED = re.compile(r"(.*\S) \((\d+)\)")  # `nst_train.classifiers.teachers` appends the class number to a name shared by several classes


def imagenet_wnids() -> list[str]:
    """The WordNet ids of ImageNet's 1,000 classes, in the order of its labels."""
    return list(read_timm_list("imagenet_synsets.txt"))


@cache
def read_timm_list(file: str) -> tuple[str, ...]:
    """The lines of one of timm's lists about ImageNet."""
    timm = importlib.util.find_spec("timm")
    assert timm is not None, "timm is installed with nst"
    assert timm.origin is not None, "timm is a package with files"
    return tuple((Path(timm.origin).parent / "data" / "_info" / file).read_text("utf-8").splitlines())


def wnids_of(names: Sequence[str]) -> list[str] | None:
    """The WordNet id of each name, all distinct; None if some names are not ImageNet's, or could mean several of its classes.

    Names may be WordNet ids; ImageNet's 1,000 names in label order, with a few spelled differently or out of place; full names such as
    "tench, Tinca tinca"; or single words of full names, such as "tench", that identify one class.
    """
    all_wnids = set(imagenet_wnids())
    if names and all(name in all_wnids for name in names):
        candidates: list[str | None] = list(names)
    elif _are_in_order(names):
        candidates = [_wnid_at_index(name, wnid) for name, wnid in zip(names, imagenet_wnids(), strict=True)]
    else:
        candidates = [_unique_wnid(_class_lookup().by_full_name, name) for name in names]
        if None in candidates:
            candidates = [_wnid_by_number(name) or _wnid_by_word(name) for name in names]
    wnids = [wnid for wnid in candidates if wnid is not None]
    return wnids if len(set(wnids)) == len(names) else None


def match_imagenet_classes(class_names: Sequence[str], expected: Sequence[str]) -> list[int | None] | None:
    """For each of the `class_names` its index among the expected ones (None if absent), if both lists are ImageNet's classes.

    Returns None if they are not, or if there is no evidence that they are: WordNet ids, or all 1,000 names, on one side. If one side holds
    at least 950 numbers and the other all 1,000 names, the numbers are label indices in ImageNet's order.
    """
    class_names, expected = _with_wnids(class_names, expected), _with_wnids(expected, class_names)
    if not any(len(names) == N_CLASSES or (names and all(map(_WNID.fullmatch, names))) for names in (class_names, expected)):
        return None
    found_wnids, expected_wnids = wnids_of(class_names), wnids_of(expected)
    if found_wnids is None or expected_wnids is None:
        return None
    index_of = {wnid: index for index, wnid in enumerate(expected_wnids)}
    return [index_of.get(wnid) for wnid in found_wnids]


def _with_wnids(names: Sequence[str], other_names: Sequence[str]) -> Sequence[str]:
    """Replace numbers by WordNet ids if `other_names` are all of ImageNet's names."""
    if not _MIN_SAME_NAMES <= len(names) <= N_CLASSES or len(other_names) != N_CLASSES or not all(map(_CLASS_NUMBER.fullmatch, names)):
        return names
    return names if wnids_of(other_names) is None else [imagenet_wnids()[int(name)] for name in names]


class _ClassLookup:
    """ImageNet's classes by lower-case name: by full name, by its first synonym, and by any of its synonyms."""

    def __init__(self) -> None:
        lemmas = dict(line.split("\t", 1) for line in read_timm_list("imagenet_synset_to_lemma.txt"))
        self.names = [_normalize(lemmas[wnid]) for wnid in imagenet_wnids()]
        self.by_full_name, self.by_first_synonym, self.by_synonym = (defaultdict[str, set[str]](set) for _ in range(3))
        for wnid, name in zip(imagenet_wnids(), self.names, strict=True):
            synonyms = name.split(", ")
            self.by_full_name[name].add(wnid)
            self.by_first_synonym[synonyms[0]].add(wnid)
            for synonym in synonyms:
                self.by_synonym[synonym].add(wnid)


@cache
def _class_lookup() -> _ClassLookup:
    return _ClassLookup()


def _normalize(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _unique_wnid(classes: dict[str, set[str]], name: str) -> str | None:
    wnids = classes.get(_normalize(name), set())
    return next(iter(wnids)) if len(wnids) == 1 else None


def _wnid_by_word(name: str) -> str | None:
    lookup = _class_lookup()
    if _normalize(name) in lookup.by_first_synonym:
        return _unique_wnid(lookup.by_first_synonym, name)
    return _unique_wnid(lookup.by_full_name, name) or _unique_wnid(lookup.by_synonym, name)


def _wnid_by_number(name: str) -> str | None:
    """The class of a name such as "crane (517)", if that is the number of a class with this name."""
    match = _NUMBERED.fullmatch(name)
    if match is None or int(match[2]) >= N_CLASSES:
        return None
    wnid = imagenet_wnids()[int(match[2])]
    return wnid if wnid in _class_lookup().by_synonym.get(_first_synonym(match[1]), set()) else None


def _wnid_at_index(name: str, wnid: str) -> str | None:
    """The class of a name at the index of `wnid`: `wnid` itself, unless the name can only mean other classes."""
    lookup = _class_lookup()
    numbered = _wnid_by_number(name)
    full = (
        lookup.by_full_name.get(_normalize(name), set()) if "," in name else set()
    )  # "cardigan" is one class, and the first word of another
    first = _first_synonym(name)
    candidates = {numbered} if numbered else full or lookup.by_first_synonym.get(first) or lookup.by_synonym.get(first) or {wnid}
    if wnid in candidates:
        return wnid
    return next(iter(candidates)) if len(candidates) == 1 else None


def _are_in_order(names: Sequence[str]) -> bool:
    if len(names) != N_CLASSES:
        return False
    return (
        sum(_first_synonym(name) == _first_synonym(expected) for name, expected in zip(names, _class_lookup().names, strict=True))
        >= _MIN_SAME_NAMES
    )


def _first_synonym(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    return _normalize(match[1] if match else name).split(",")[0].strip()

"""Map class names to ImageNet's 1,000 classes, by WordNet ids or words, and match lists that use one with lists that use the other.

The reference lists are timm's, read as files because importing timm would import torch.
"""

import importlib.util
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

CLASSES = 1000
_SAME_NAMES = 950  # of 1,000 at the same index: versions of the list differ in a few words, unrelated lists in nearly all
_WNID = re.compile(r"n\d{8}")
_PLACE = re.compile(r"\d{1,3}")
_NUMBERED = re.compile(r"(.*\S) \((\d+)\)")  # `nst_train.classifiers.teachers` appends the class number to a name shared by several classes


def imagenet_wnids() -> list[str]:
    """The WordNet ids of ImageNet's 1,000 classes, in the order of its labels."""
    return list(timms_list("imagenet_synsets.txt"))


@cache
def timms_list(file: str) -> tuple[str, ...]:
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
        candidates = [_at_place(name, wnid) for name, wnid in zip(names, imagenet_wnids(), strict=True)]
    else:
        candidates = [_one_of(_words().full, name) for name in names]
        if None in candidates:
            candidates = [_numbered(name) or _by_word(name) for name in names]
    wnids = [wnid for wnid in candidates if wnid is not None]
    return wnids if len(set(wnids)) == len(names) else None


def places_of(found: Sequence[str], expected: Sequence[str]) -> list[int | None] | None:
    """For each found class its index among the expected ones (None if absent), if both lists are ImageNet's classes.

    Returns None if they are not, or if there is no evidence that they are: WordNet ids, or all 1,000 names, on one side. If one side holds
    at least 950 numbers and the other all 1,000 names, the numbers are label indices in ImageNet's order.
    """
    found, expected = _with_wnids(found, expected), _with_wnids(expected, found)
    if not any(len(names) == CLASSES or (names and all(map(_WNID.fullmatch, names))) for names in (found, expected)):
        return None
    of_found, of_expected = wnids_of(found), wnids_of(expected)
    if of_found is None or of_expected is None:
        return None
    index_of = {wnid: index for index, wnid in enumerate(of_expected)}
    return [index_of.get(wnid) for wnid in of_found]


def _with_wnids(names: Sequence[str], others: Sequence[str]) -> Sequence[str]:
    """Replace numbers by WordNet ids if `others` are all of ImageNet's names."""
    if not _SAME_NAMES <= len(names) <= CLASSES or len(others) != CLASSES or not all(map(_PLACE.fullmatch, names)):
        return names
    return names if wnids_of(others) is None else [imagenet_wnids()[int(name)] for name in names]


class _Words:
    """ImageNet's classes by lower-case name: by full name, by its first synonym, and by any of its synonyms."""

    def __init__(self) -> None:
        lemmas = dict(line.split("\t", 1) for line in timms_list("imagenet_synset_to_lemma.txt"))
        self.names = [_plain(lemmas[wnid]) for wnid in imagenet_wnids()]
        self.full, self.first, self.any = (defaultdict[str, set[str]](set) for _ in range(3))
        for wnid, name in zip(imagenet_wnids(), self.names, strict=True):
            words = name.split(", ")
            self.full[name].add(wnid)
            self.first[words[0]].add(wnid)
            for word in words:
                self.any[word].add(wnid)


@cache
def _words() -> _Words:
    return _Words()


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _one_of(classes: dict[str, set[str]], name: str) -> str | None:
    wnids = classes.get(_plain(name), set())
    return next(iter(wnids)) if len(wnids) == 1 else None


def _by_word(name: str) -> str | None:
    words = _words()
    if _plain(name) in words.first:
        return _one_of(words.first, name)
    return _one_of(words.full, name) or _one_of(words.any, name)


def _numbered(name: str) -> str | None:
    """The class of a name such as "crane (517)", if that is the number of a class with this name."""
    match = _NUMBERED.fullmatch(name)
    if match is None or int(match[2]) >= CLASSES:
        return None
    wnid = imagenet_wnids()[int(match[2])]
    return wnid if wnid in _words().any.get(_first(match[1]), set()) else None


def _at_place(name: str, wnid: str) -> str | None:
    """The class of a name at the index of `wnid`: `wnid` itself, unless the name can only mean other classes."""
    words = _words()
    numbered = _numbered(name)
    full = words.full.get(_plain(name), set()) if "," in name else set()  # "cardigan" is one class, and the first word of another
    first = _first(name)
    meant = {numbered} if numbered else full or words.first.get(first) or words.any.get(first) or {wnid}
    if wnid in meant:
        return wnid
    return next(iter(meant)) if len(meant) == 1 else None


def _are_in_order(names: Sequence[str]) -> bool:
    if len(names) != CLASSES:
        return False
    return sum(_first(name) == _first(expected) for name, expected in zip(names, _words().names, strict=True)) >= _SAME_NAMES


def _first(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    return _plain(match[1] if match else name).split(",")[0].strip()

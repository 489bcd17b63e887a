"""ImageNet's classes: which of a classifier's outputs they are, and the 200 of ImageNet-A and of ImageNet-R."""

import importlib.resources
import re
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from timm.data import ImageNetInfo

from nst_data.errors import NstError

_TOLD_APART = re.compile(r" \(\d+\)$")  # what `nst_train.teachers` adds to names that stand for several classes
_SAME_NAMES = 950  # of 1,000 at the same place: versions of the list differ in a word here and there, other lists in nearly all


def imagenet_wnids() -> list[str]:
    """The WordNet ids of ImageNet's 1,000 classes, in the order of its labels."""
    return list(_info().label_names())


def subset_wnids(subset: str) -> list[str]:
    """The 200 classes of `imagenet_a` or `imagenet_r`, by timm's index list, which is the authors'."""
    indices = importlib.resources.files("timm.data").joinpath("_info", f"{subset}_indices.txt").read_text("utf-8")
    wnids = imagenet_wnids()
    return [wnids[int(line)] for line in indices.split()]


def columns_of(class_names: Sequence[str], wnids: Sequence[str], what: str) -> NDArray[np.int64]:
    """The outputs of a classifier for some of ImageNet's classes, shape (wnids,).

    Its class names are WordNet ids, or ImageNet's own names in the order of its labels, as transformers models have them. Raises
    NstError for a classifier of other classes.
    """
    where = _places(class_names)
    if missing := [wnid for wnid in wnids if wnid not in where]:
        shown, lacking = (", ".join(names[:3]) + (", ..." if names[3:] else "") for names in (class_names, missing))
        raise NstError(
            f"{what}: expected a classifier of ImageNet's classes, by WordNet ids or ImageNet's names, "
            f"found {len(class_names)} ({shown}) without {len(missing)} of the {len(wnids)} ({lacking})"
        )
    return np.array([where[wnid] for wnid in wnids], dtype=np.int64)


def known_wnids(class_names: Sequence[str], wnids: Sequence[str]) -> list[str]:
    """Those that a classifier knows, as `columns_of` finds them."""
    where = _places(class_names)
    return [wnid for wnid in wnids if wnid in where]


def _places(class_names: Sequence[str]) -> dict[str, int]:
    names = imagenet_wnids() if _are_imagenets_names(class_names) else class_names
    return {name: index for index, name in enumerate(names)}


def _are_imagenets_names(class_names: Sequence[str]) -> bool:
    if len(class_names) != _info().num_classes():
        return False
    same = sum(_first(name) == _first(_info().index_to_description(index)) for index, name in enumerate(class_names))
    return same >= _SAME_NAMES


@cache
def _info() -> ImageNetInfo:
    return ImageNetInfo("imagenet-1k")


def _first(name: str) -> str:
    return _TOLD_APART.sub("", name).split(",")[0].strip().lower()

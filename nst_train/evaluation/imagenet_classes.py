"""ImageNet's classes: a classifier's outputs for them, and the 200 classes of ImageNet-A and of ImageNet-R."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.sources.imagenet_names import imagenet_wnids, read_timm_list, wnids_of


def subset_wnids(subset: str) -> list[str]:
    """The 200 classes of `imagenet_a` or `imagenet_r`, from timm's index list, which is that of the authors."""
    return [imagenet_wnids()[int(line)] for line in read_timm_list(f"{subset}_indices.txt")]


def output_columns(class_names: Sequence[str], wnids: Sequence[str], subject: str) -> NDArray[np.int64]:
    """Indices of a classifier's outputs for some of ImageNet's classes, shape (wnids,).

    Its class names are WordNet ids, or ImageNet's own names, as in transformers models (`nst_data.sources.imagenet_names`). Raises NstError
    for a classifier that lacks one of these classes.
    """
    places = _output_indices(class_names)
    if missing := [wnid for wnid in wnids if wnid not in places]:
        shown, lacking = (", ".join(names[:3]) + (", ..." if names[3:] else "") for names in (class_names, missing))
        raise NstError(
            f"{subject}: expected a classifier of ImageNet's classes, by WordNet ids or ImageNet's names, "
            f"found {len(class_names)} ({shown}) without {len(missing)} of the {len(wnids)} ({lacking})"
        )
    return np.array([places[wnid] for wnid in wnids], dtype=np.int64)


def known_wnids(class_names: Sequence[str], wnids: Sequence[str]) -> list[str]:
    """Those of ImageNet's classes in `wnids` that a classifier has, matched as in `output_columns`."""
    places = _output_indices(class_names)
    return [wnid for wnid in wnids if wnid in places]


def _output_indices(class_names: Sequence[str]) -> dict[str, int]:
    names = wnids_of(class_names) or class_names
    return {name: index for index, name in enumerate(names)}

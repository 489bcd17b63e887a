"""Limit how many images of a source may be unreadable before work on it stops."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import NstError


def are_too_many(images: int, unreadable: int, max_unreadable: float) -> bool:
    """Whether all images are unreadable, or more than the fraction `max_unreadable` of them."""
    return unreadable > 0 and (unreadable == images or unreadable / images > max_unreadable)


def check_readable(what: str, images: int, unreadable: int, max_unreadable: float, first: str, noun: str = "images") -> None:
    """Raise NstError if none of the images could be read, or more than the fraction `max_unreadable` could not.

    In the error, `what` names their source, and `first` is a line about the first image that could not be read.
    """
    if not are_too_many(images, unreadable, max_unreadable):
        return
    advice = f"the first is {first}; restore them (unmounted disk? moved folder?) and run the same command again"
    if unreadable == images:
        raise NstError(f"{what}: none of its {images:,} {noun} could be read; {advice}")
    share = unreadable / images
    digits = next((digits for digits in range(10) if f"{share:.{digits}%}" != f"{max_unreadable:.{digits}%}"), 10)
    problem = f"{unreadable:,} of its {images:,} {noun} ({share:.{digits}%}) could not be read (limit {max_unreadable:.{digits}%})"
    new_limit = _rounded_up(share)
    option = f"`max_unreadable` {new_limit}"
    raise NstError(f"{what}: {problem}; {advice}, or continue without them with {option}")


def _rounded_up(share: float) -> str:
    """A share in (0, 1] rounded up to two significant digits: 0.11 for 0.101, 0.0003 for 0.0003."""
    digits = 1 - math.floor(math.log10(share))
    exact = Fraction(repr(share))
    return f"{float(Fraction(math.ceil(exact * 10**digits), 10**digits)):.{digits}f}".rstrip("0").rstrip(".")


def lost_class(what: str, images: int, class_name: str, first: str) -> NstError:
    """The error for a class none of whose labeled images can be read; `first` is a line about the first of them."""
    none = f"none of the {images:,} images" if images > 1 else "the only image"
    verb = "can" if images > 1 else "cannot"
    return NstError(
        f"{what}: {none} of class {class_name!r} {verb} be read; "
        f"{'the first is ' if images > 1 else ''}{first}; restore {'them' if images > 1 else 'it'}, or remove the class"
    )


def lost_classes(labels: NDArray[np.int64], class_names: Sequence[str], lost: NDArray[np.int64]) -> dict[str, int]:
    """Classes whose images are all among the rows `lost`, with their number of images; `labels` has the class of every row."""
    images, unread = (np.bincount(group, minlength=len(class_names)) for group in (labels, labels[lost]))
    return {class_names[label]: int(images[label]) for label in np.flatnonzero((images > 0) & (images == unread)).tolist()}


def phrase(classes: dict[str, int]) -> str:
    """A phrase about one or more lost classes."""
    shown = [f"{name!r}" for name in classes][:5]
    if len(classes) == 1:
        (images,) = classes.values()
        return f"{f'none of the {images:,} images' if images > 1 else 'no image'} of class {shown[0]} can be read"
    return f"no image of {len(classes):,} classes can be read: {', '.join(shown)}{', ...' * (len(classes) > 5)}"

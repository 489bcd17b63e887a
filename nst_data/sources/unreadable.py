"""Limit how many images of a source may be unreadable before work on it stops."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import NstError


def is_over_limit(n_images: int, n_unreadable: int, max_unreadable: float) -> bool:
    """Whether all images are unreadable, or more than the fraction `max_unreadable` of them."""
    return n_unreadable > 0 and (n_unreadable == n_images or n_unreadable / n_images > max_unreadable)


def check_readable(subject: str, n_images: int, n_unreadable: int, max_unreadable: float, first_error: str, noun: str = "images") -> None:
    """Raise NstError if none of the images could be read, or more than the fraction `max_unreadable` could not.

    In the error, `subject` names their source, and `first_error` is a line about the first image that could not be read.
    """
    if not is_over_limit(n_images, n_unreadable, max_unreadable):
        return
    advice = f"the first is {first_error}; restore them (unmounted disk? moved folder?) and run the same command again"
    if n_unreadable == n_images:
        raise NstError(f"{subject}: none of its {n_images:,} {noun} could be read; {advice}")
    share = n_unreadable / n_images
    digits = next((digits for digits in range(10) if f"{share:.{digits}%}" != f"{max_unreadable:.{digits}%}"), 10)
    problem = f"{n_unreadable:,} of its {n_images:,} {noun} ({share:.{digits}%}) could not be read (limit {max_unreadable:.{digits}%})"
    new_limit = _rounded_up(share)
    option = f"`max_unreadable` {new_limit}"
    raise NstError(f"{subject}: {problem}; {advice}, or continue without them with {option}")


def _rounded_up(share: float) -> str:
    """A share in (0, 1] rounded up to two significant digits: 0.11 for 0.101, 0.0003 for 0.0003."""
    digits = 1 - math.floor(math.log10(share))
    exact = Fraction(repr(share))
    return f"{float(Fraction(math.ceil(exact * 10**digits), 10**digits)):.{digits}f}".rstrip("0").rstrip(".")


def lost_class_error(subject: str, n_images: int, class_name: str, first_error: str) -> NstError:
    """The error for a class none of whose labeled images can be read; `first_error` is a line about the first of them."""
    images_text = f"none of the {n_images:,} images" if n_images > 1 else "the only image"
    verb = "can" if n_images > 1 else "cannot"
    return NstError(
        f"{subject}: {images_text} of class {class_name!r} {verb} be read; "
        f"{'the first is ' if n_images > 1 else ''}{first_error}; restore {'them' if n_images > 1 else 'it'}, or remove the class"
    )


def lost_classes(labels: NDArray[np.int64], class_names: Sequence[str], lost_rows: NDArray[np.int64]) -> dict[str, int]:
    """Classes whose images are all among the rows `lost_rows`, with their number of images; `labels` has the class of every row."""
    images, unreadable = (np.bincount(group, minlength=len(class_names)) for group in (labels, labels[lost_rows]))
    return {class_names[label]: int(images[label]) for label in np.flatnonzero((images > 0) & (images == unreadable)).tolist()}


def describe_lost_classes(classes: dict[str, int]) -> str:
    """A phrase about one or more lost classes."""
    examples = [f"{name!r}" for name in classes][:5]
    if len(classes) == 1:
        (images,) = classes.values()
        return f"{f'none of the {images:,} images' if images > 1 else 'no image'} of class {examples[0]} can be read"
    return f"no image of {len(classes):,} classes can be read: {', '.join(examples)}{', ...' * (len(classes) > 5)}"

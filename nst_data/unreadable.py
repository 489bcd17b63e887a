"""How many images of a source may be unreadable before work on it stops."""

import math
from fractions import Fraction

from nst_data.errors import NstError


def are_too_many(images: int, unreadable: int, max_unreadable: float) -> bool:
    """Whether all of some images are unreadable, or more than the share `max_unreadable` of them."""
    return unreadable > 0 and (unreadable == images or unreadable / images > max_unreadable)


def check_readable(what: str, images: int, unreadable: int, max_unreadable: float, first: str, noun: str = "images") -> None:
    """Raises NstError where none of so many `images` could be read, or more than the share `max_unreadable` of them could not.

    `what` says in the error whose they are, `first` is a line about the first that could not be read.
    """
    if not are_too_many(images, unreadable, max_unreadable):
        return
    back = f"the first is {first}; put them back (is a disk not mounted, has a folder moved?) and run the same command again"
    if unreadable == images:
        raise NstError(f"{what}: none of its {images:,} {noun} could be read; {back}")
    share = unreadable / images
    digits = next((digits for digits in range(10) if f"{share:.{digits}%}" != f"{max_unreadable:.{digits}%}"), 10)
    found = (
        f"{unreadable:,} of its {images:,} {noun} ({share:.{digits}%}) could not be read, more than the {max_unreadable:.{digits}%} allowed"
    )
    allow = f"--max-unreadable {_rounded_up(share)} (in a recipe `max_unreadable` under `run`)"
    raise NstError(f"{what}: {found}; {back}, or go on without them: {allow}")


def _rounded_up(share: float) -> str:
    """Two significant digits that are at least a share above 0 and up to 1: 0.11 for 0.101, 0.0003 for 0.0003."""
    digits = 1 - math.floor(math.log10(share))
    exact = Fraction(repr(share))
    return f"{float(Fraction(math.ceil(exact * 10**digits), 10**digits)):.{digits}f}".rstrip("0").rstrip(".")

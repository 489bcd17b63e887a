"""Match the images in a tar file with their classes by WebDataset samples: adjacent members with the same key."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from nst_data.errors import NstError

CLASS_SUFFIX = ".cls"


def sample_key(name: str) -> str:
    """The WebDataset key of a member: its path up to the first dot in the file name."""
    folders, slash, last = name.rpartition("/")
    return folders + slash + last.partition(".")[0]


def is_class_member(name: str) -> bool:
    """Whether a member holds a class, by its name."""
    return name.lower().endswith(CLASS_SUFFIX)


class SampleMember(NamedTuple):
    """A member of a sample: an image, the text of a class, or a skipped image, which may have a class all the same."""

    name: str
    text: str | None = None
    is_skipped: bool = False


@dataclass
class _Sample:
    """Adjacent members with one key: names of images and of skipped images, and class texts by member name without `.cls`."""

    images: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)

    def stem_for(self, image: str) -> str | None:
        """The stem of the class member for an image: for `a.1.png`, that of `a.1.cls` or else of `a.cls`."""
        return next((stem for stem in _stems(image) if stem in self.classes), None)


def classes_of_members(members: Sequence[SampleMember], location: str) -> list[str]:
    """The class of each image of a tar file, in order, without skipped images.

    An image takes the class in its own sample. If that has none, as in a tar file sorted by suffix, it takes the unpaired class with
    its name, provided that neither name is repeated in the file. Raises NstError naming the member for an image without a class, and
    if repeated names make the class ambiguous.
    """
    members = [member._replace(name=member.name.removeprefix("./")) for member in members]
    samples = [_build_sample(list(run), location) for _, run in groupby(members, key=lambda member: sample_key(member.name))]
    unused_classes: dict[str, list[str]] = {}  # by stem, texts of the classes that no image of their sample takes
    n_without_class = Counter[str]()  # by key, the number of samples in which images lack a class
    for sample in samples:
        all_images = [*sample.images, *sample.skipped]
        used_stems = {sample.stem_for(image) for image in all_images}
        for unused_stem in sample.classes.keys() - used_stems:
            unused_classes.setdefault(unused_stem, []).append(sample.classes[unused_stem])
        n_without_class.update({sample_key(image) for image in all_images if sample.stem_for(image) is None})
    classes = []
    for sample in samples:
        for image in sample.images:
            stem = sample.stem_for(image)
            chosen = _unpaired_class(image, unused_classes, n_without_class, location) if stem is None else sample.classes[stem]
            if stem is not None:
                _check_unambiguous(image, stem, chosen, unused_classes, location)
            if not chosen:
                raise NstError(f"{location}: {image} has no class, its .cls member is empty")
            classes.append(chosen)
    return classes


def _check_unambiguous(image: str, stem: str, class_text: str, unpaired: dict[str, list[str]], location: str) -> None:
    """Raise NstError if an unpaired class member whose name is the same, or closer to the image's, holds a different class."""
    stems = _stems(image)
    for name in stems[: stems.index(stem) + 1]:
        if any(text != class_text for text in unpaired.get(name, [])):
            raise _ambiguity_error(location, name + CLASS_SUFFIX, "with different classes")


def _build_sample(members: list[SampleMember], location: str) -> _Sample:
    sample, names = _Sample(), set[str]()
    for name, text, is_skipped in members:
        if is_skipped:
            sample.skipped.append(name)
            continue
        if text is not None:
            name = name[: -len(CLASS_SUFFIX)] + CLASS_SUFFIX  # the suffix may be in upper case
        if name in names:
            raise _ambiguity_error(location, name, "in one sample")
        names.add(name)
        if text is None:
            sample.images.append(name)
        else:
            sample.classes[name.removesuffix(CLASS_SUFFIX)] = text
    return sample


def _unpaired_class(image: str, unpaired: dict[str, list[str]], unlabeled_counts: Counter[str], location: str) -> str:
    stem = next((stem for stem in _stems(image) if stem in unpaired), None)
    if stem is None:
        raise NstError(f"{location}: {image} has no class; expected a neighboring member {sample_key(image)}{CLASS_SUFFIX}")
    if len(unpaired[stem]) > 1 or unlabeled_counts[sample_key(image)] > 1:
        raise _ambiguity_error(location, image if unlabeled_counts[sample_key(image)] > 1 else stem + CLASS_SUFFIX, "not adjacent")
    return unpaired[stem][0]


def _stems(image: str) -> tuple[str, str]:
    return os.path.splitext(image)[0], sample_key(image)


def _ambiguity_error(location: str, name: str, detail: str) -> NstError:
    return NstError(
        f"{location}: {name} occurs several times {detail}, so labels are ambiguous; keep each image next to its .cls member, or use "
        "unique names"
    )

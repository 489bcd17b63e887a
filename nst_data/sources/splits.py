"""Detect splits of a labeled set next to each other: reading them as one set, or as classes, would mean training on test images."""

import os
import re
from collections.abc import Iterable, Sequence

from nst_data.errors import UsageError

_TRAINING = frozenset(("train", "training"))
_SCORED = frozenset(("val", "valid", "validation", "dev", "test", "testing", "eval"))
_FOLDERS_TRAINING = _TRAINING | {"trainset", "trainval"}  # used only if they match every folder
_FOLDERS_SCORED = _SCORED | {"testset", "valset", "evaluation", "holdout", "heldout", "extra"}
_LABELED, _UNLABELED = frozenset(("labeled", "labelled")), frozenset(("unlabeled", "unlabelled"))  # as `nst init` interprets them
_WORDS = re.compile(r"[a-z]+")


def check_splits(location: str, class_folders: Sequence[str]) -> None:
    """Raise UsageError if class folders of a labeled source look like splits: some by their exact name, or all by a word in their name.

    Folders of labeled and of unlabeled images are not classes either.
    """
    labeled, unlabeled = ([name for name in class_folders if name.lower() in kind] for kind in (_LABELED, _UNLABELED))
    if labeled and unlabeled:
        raise UsageError(
            f"{location}: expected a folder for each class, found {labeled[0]} and {unlabeled[0]}; "
            f"choose one, e.g. `labeled` {os.path.join(location, labeled[0])}; if they are classes, rename them, e.g. {labeled[0]}_"
        )
    training, scored = ([name for name in class_folders if name.lower() in kind] for kind in (_TRAINING, _SCORED))
    if not (training and scored) and len(training + scored) < len(class_folders):
        training, scored = _names_by_split(class_folders, _FOLDERS_TRAINING, _FOLDERS_SCORED)
        if not (training and scored) or len(training + scored) < len(class_folders):
            return
    first = (training or scored)[0]
    example = f"`labeled` {os.path.join(location, first)}"
    if training and scored:
        example += f" `validation` {os.path.join(location, scored[0])}"
    raise UsageError(
        f"{location}: expected a folder for each class, found {', '.join((*training, *scored))}, which look like splits; "
        f"choose one, e.g. {example}; if they are classes, rename them, e.g. {first}_"
    )


def check_split_files(location: str, names: Iterable[str]) -> None:
    """Raise UsageError if the tar or parquet files of a labeled source belong to several splits."""
    training, scored = (next(iter(group), None) for group in _names_by_split(names, _TRAINING, _SCORED))
    if training and scored:
        raise UsageError(
            f"{location}: expected one labeled set, found {training} and {scored}, which look like files of two splits; "
            f"choose one, e.g. '{_split_pattern(location, training)}', or rename them"
        )


def _names_by_split(names: Iterable[str], training: frozenset[str], scored: frozenset[str]) -> tuple[list[str], list[str]]:
    """The names that contain a word for training, and those that contain one for scoring; names with both are in neither list."""
    tokenized = [(name, set(_WORDS.findall(name.lower()))) for name in names]
    for_training = [name for name, tokens in tokenized if tokens & training and not tokens & scored]
    return for_training, [name for name, tokens in tokenized if tokens & scored and not tokens & training]


def _split_pattern(location: str, name: str) -> str:
    """A pattern for all files of a split, from the name of its first file."""
    folder, base = os.path.split(name)
    match = re.match(r"[A-Za-z]+", base)
    start = match[0] if match and match[0].lower() in _TRAINING else ""
    return os.path.join(location, folder, f"{start}*{os.path.splitext(base)[1]}")

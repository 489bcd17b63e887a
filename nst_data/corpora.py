"""The labels of a corpus across generations, and the classes they have."""

from collections.abc import Iterable

from nst_data.errors import NstError
from nst_data.store.store import Store, Version


def label_versions(store: Store, corpus: str) -> list[Version]:
    """The generations and editions of a corpus, newest last."""
    return [version for version in store.versions(corpus) if version.is_readable and version.manifest.kind in ("generation", "edition")]


def newest_labels(store: Store, corpus: str) -> Version | None:
    """The newest generation of a corpus or, if there are none in the store, the newest edition; None if it has no labels."""
    labels = label_versions(store, corpus)
    generations = [version for version in labels if version.manifest.kind == "generation"]
    return next(reversed(generations or labels), None)


def labels_with_classes(store: Store, corpus: str, answered_classes: Iterable[str]) -> Version | None:
    """The newest labels of a corpus whose classes include all that people answered, ignoring classes unknown to all versions.

    Returns None if the corpus has no labels. Raises NstError if no version has all of these classes.
    """
    labels = label_versions(store, corpus)
    if not labels:
        return None
    required = set(answered_classes) & {name for version in labels for name in version.manifest.class_names}
    fitting = [version for version in labels if required <= set(version.manifest.class_names)]
    if fitting:
        return fitting[-1]
    newest = labels[-1]
    missing = min(required - set(newest.manifest.class_names))
    other = next(version for version in reversed(labels) if missing in version.manifest.class_names)
    raise NstError(
        f"{corpus}: expected labels with all classes that were answered, but {newest.ref} has other classes than {other.ref}: "
        f"it lacks {missing!r}; `store.remove({newest.ref!r})` if it does not belong to {corpus}"
    )

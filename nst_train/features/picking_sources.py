"""What picking from a version needs in addition: a model for features, the pool, and the labeled images that its teacher knows."""

from nst_data.errors import UsageError
from nst_data.sources import Source, open_source
from nst_data.sources.labeled_pool import open_labeled_pool
from nst_data.store.inputs import Input
from nst_data.store.parent import parent_of
from nst_data.store.store import Store, Version

_POOL_HINT = "needs features of its images; pass their current location with `pool`, or `by` margin and `spread` classes, which need none"


def open_pool(version: Version, store: Store) -> Source:
    """The pool that a version was labeled from. Raises UsageError if it must not be opened."""
    return open_labeled_pool(version, store.indexes, _POOL_HINT)


def features_model(version: Version, store: Store, model: str | None) -> str:
    """The model whose features tell the images of a version apart: the requested one, or else the (first) teacher of the labels."""
    if model is not None:
        return model
    teacher = _find_teacher(version, store)
    if teacher is None:
        raise UsageError(f"{version.ref}: the teacher of its labels is not known; pass the name of a network as `model`")
    if of_store := _find_in_store(teacher, store):
        return of_store.ref
    if teacher.pulled:
        raise UsageError(
            f"{version.ref}: its teacher {teacher.ref!r} comes from a downloaded manifest, which nst does not open; "
            "pass the name of a network as `model`"
        )
    return teacher.ref


def open_labeled_images(version: Version, store: Store) -> Source:
    """The labeled images that the teacher of a version was trained on. Raises UsageError if they are not known."""
    teacher = _find_teacher(version, store)
    trained = _find_in_store(teacher, store) if teacher else None
    entry = trained.manifest.request.inputs.by_role.get("labeled") if trained else None
    if entry is None or entry.pulled:
        raise UsageError(f"{version.ref}: the images its teacher was trained on are unknown; pass them as `labeled`")
    return open_source(
        entry.sources or entry.ref, labeled=entry.sources is not None, image_column=entry.image_column, indexes=store.indexes
    )


def _find_teacher(version: Version, store: Store) -> Input | None:
    labels: Version | None = version
    while labels is not None:
        if teachers := list(labels.manifest.request.inputs.by_role.items()):
            for role, entry in teachers:
                if role in ("teacher", "teacher_1"):
                    return entry
        labels = parent_of(labels, store)
    return None


def _find_in_store(teacher: Input, store: Store) -> Version | None:
    """The teacher of a lineage entry, or None if it is not in the store."""
    versions = store.versions(teacher.ref.partition("@")[0])
    return next((version for version in versions if version.is_readable and version.manifest.digest == teacher.digest), None)

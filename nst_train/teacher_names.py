"""Names of teachers: a version in the store, a name of a network elsewhere, or an image-text model. Imports no torch."""

from typing import TypeVar

from nst_data.store.store import Store
from nst_train.zero_shot_settings import ZeroShot

TeacherName = str | ZeroShot
N = TypeVar("N", bound=TeacherName)


def is_in_store(name: str, store: Store) -> bool:
    """Whether a model name refers to a teacher in the store."""
    return not {":", "/"} & set(name) and ("@" in name or bool(store.versions(name)))


def pin_version(name: N, store: Store) -> N | str:
    """Pin a name in the store to its current version: another one may be the newest when it is loaded."""
    return store.open(name, "teacher").ref if isinstance(name, str) and is_in_store(name, store) else name

"""Lineage entries for teachers in the store and for the images they are calibrated on. Does not import torch."""

from collections.abc import Mapping, Sequence

from nst_data.errors import UsageError
from nst_data.sources import Source
from nst_data.store.inputs import Input, TeacherInputs, by_numbered_role
from nst_data.store.store import Store
from nst_train.networks.weights import WEIGHTS
from nst_train.settings import LabelSettings
from nst_train.teacher_names import TeacherName, is_in_store


def teacher_entries(names: Sequence[TeacherName], store: Store) -> dict[str, Input] | None:
    """The lineage entries of teachers, without loading them, or None if any of them is not in the store."""
    in_store = [name for name in names if isinstance(name, str) and is_in_store(name, store)]
    return by_numbered_role("teacher", [teacher_input(name, store) for name in in_store]) if len(in_store) == len(names) else None


def teacher_input(ref: str, store: Store) -> Input:
    """The lineage entry of a teacher in the store, without loading it."""
    version = store.open(ref, "teacher")
    return version.lineage.model_copy(update={"weights_sha256": version.manifest.files[WEIGHTS].sha256})


def calibration_input(store: Store, inputs: Mapping[str, Input], settings: LabelSettings, source: Source) -> Input:
    """The lineage entry of a calibration source. Raises UsageError if the store knows that a teacher was trained on these images."""
    if settings.temperature != 1:
        raise UsageError("`calibration` fits the temperature; remove `temperature`")
    for role, entry in inputs.items():
        if role.startswith("teacher") and (labeled := _labeled_digest(store, entry)) and labeled == source.fingerprint:
            raise UsageError(
                f"`calibration` {source.location}: {entry.ref} was trained on these images, on which it is more confident than on others; "
                "use labeled images that it has not seen"
            )
    return source.lineage


def _labeled_digest(store: Store, teacher: Input) -> str | None:
    for version in store.versions(teacher.ref.partition("@")[0]):
        if version.ref == teacher.ref and version.is_readable and isinstance(inputs := version.manifest.request.inputs, TeacherInputs):
            return inputs.labeled.digest if inputs.labeled else None
    return None

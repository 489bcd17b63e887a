"""The licenses of the images and networks that a version was made from, as far as the Hub states them."""

from collections.abc import Iterator
from dataclasses import dataclass

from nst_data.cards.described import Described
from nst_data.cards.published import Published, public_ref
from nst_data.hub.licenses import restriction, strip_custom_names

INITIAL_WEIGHTS = "initial weights"
_ROLES = {"pool": "pool", "labeled": "labeled images", "initial_weights": INITIAL_WEIGHTS, "teacher": "teacher"}


@dataclass(frozen=True)
class InputLicense:
    """The license of an input; `name` is None if it must not be disclosed, and `restriction` is what the license forbids."""

    role: str
    name: str | None
    license: str
    restriction: str | None


def input_licenses(described: Described, published: Published | None) -> list[InputLicense]:
    """The licenses of all inputs and their inputs, back to the first teacher as far as the store has them, without duplicates."""
    unique: dict[tuple[str, str, str], InputLicense] = {}
    for role, ref, license in _iter_licenses(described):
        if published and published.anonymous:
            ref, license = "", strip_custom_names(license)
        name = ref or None
        unique.setdefault((role, name or "", license), InputLicense(role, name, license, restriction(license)))
    return list(unique.values())


def _iter_licenses(described: Described) -> Iterator[tuple[str, str, str]]:
    for node in (described, *(step for _, _, step in described.lineage() if step is not None)):
        for role, entry in node.inputs.by_role.items():
            kind = role if role in _ROLES else role.rpartition("_")[0]
            if entry.license and kind in _ROLES:
                yield _ROLES[kind], public_ref(entry), entry.license

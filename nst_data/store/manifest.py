"""`nst.json`: what a version is, what it was made from, and the digests that say so."""

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from nst_data.errors import NstError, UsageError
from nst_data.settings import BalanceSettings
from nst_data.store.counts import Counts, EditionCounts, GenerationCounts, ReviewCounts, TeacherCounts
from nst_data.store.inputs import EditionInputs, GenerationInputs, Inputs, ReviewInputs, TeacherInputs

SCHEMA_VERSION = 1
MANIFEST_NAME = "nst.json"
ANONYMOUS = "anonymous"  # the setting that says that no source is named
ORDER = "order"  # the setting of a training that names the order of a self-contained edition's images
PREPARATION = "preparation"  # the one that says how it prepares images otherwise than an earlier nst did for the same network
NETWORK_NOISE = "network_noise"  # the one that says that a DropPath used again in a forward pass draws anew, unlike in an earlier nst
HEADS = "heads"  # the one that says that it trains a network of several last layers as one, unlike in an earlier nst
PROBE_SAMPLE = "probe_sample"  # the one that says on how many of its images a large probe sought its strength: an earlier nst took all
BESIDE_SETTINGS = (ORDER, PREPARATION, NETWORK_NOISE, HEADS, PROBE_SAMPLE)  # of a training: its inputs decide them
Kind = Literal["generation", "edition", "review", "teacher"]

_PACKAGES = (
    *("nst", "torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "polars", "pyarrow"),
    *("pillow", "simplejpeg", "numpy"),
)


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Request(_Frozen):
    """What a version is asked to be: the settings that shape its data, and its inputs."""

    kind: Kind
    settings: dict[str, Any]  # as `for_request` gives them, maybe those of a later nst
    inputs: Inputs

    @property
    def digest(self) -> str:
        """Equal for equal settings on equal inputs, wherever the inputs lie."""
        inputs = {role: one.digest for role, one in self.inputs.by_role.items()}
        return json_digest({"kind": self.kind, "settings": self.settings, "inputs": inputs})

    @property
    def spelled_out(self) -> dict[str, Any]:
        """The settings, with the value of before of each that it left out and that has another default today."""
        return (BEFORE_OF_NOISED_LABELS if self.is_noised else {}) | self.settings

    @property
    def is_noised(self) -> bool:
        """Whether the teacher was noised while it labeled."""
        return self.settings.get("noise") is True

    @property
    def key(self) -> str | None:
        """The column of an adopted table that names the images of a pool; None where the table holds them."""
        key = self.settings.get("key")
        return key if isinstance(key, str) else None


class GenerationRequest(Request):
    """A labeling, or the adoption of labels that were made elsewhere."""

    kind: Literal["generation"] = "generation"
    inputs: GenerationInputs

    @property
    def limit(self) -> int | None:
        """How many of the pool's first images were labeled; None for all."""
        limit = self.settings.get("limit")
        return limit if isinstance(limit, int) else None


class EditionRequest(Request):
    """A selection from a generation, or the labeling of an edition by another teacher."""

    kind: Literal["edition"] = "edition"
    inputs: EditionInputs

    @property
    def selection(self) -> BalanceSettings | None:
        """How it was selected; None where it was labeled again, or selected by settings that this nst does not know."""
        with contextlib.suppress(ValidationError):
            own = {name: value for name, value in self.settings.items() if name != ANONYMOUS}
            return BalanceSettings.of_request(own) if self.inputs.like is None else None
        return None

    @property
    def spelled_out(self) -> dict[str, Any]:
        """As of each request."""
        if self.selection is None:
            return super().spelled_out
        today = BalanceSettings.model_validate({name: value for name, value in self.settings.items() if name != ANONYMOUS})
        return self.settings | {name: value for name, value in self.selection.model_dump().items() if value != getattr(today, name)}


BEFORE = {"weight_decay_on": "weights", "freeze_by": "layers"}  # of a training's settings, which lie above this package
BEFORE_OF_NOISED_LABELS = {"noise_transform": "evaluation"}  # of a labeling's, likewise


class TeacherRequest(Request):
    """A training."""

    kind: Literal["teacher"] = "teacher"
    inputs: TeacherInputs

    @field_validator("settings")
    @classmethod
    def _name_a_network(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(settings.get("model"), str):
            raise ValueError("expected the name of a network as `model`")
        return settings

    @property
    def spelled_out(self) -> dict[str, Any]:
        """As of each request; a linear probe has no settings of before."""
        if self.settings.get("probe"):
            return self.settings
        return {name: value for name, value in BEFORE.items() if name != "freeze_by" or self.settings.get("freeze")} | self.settings

    @property
    def model(self) -> str:
        """The name of the network."""
        return str(self.settings["model"])


class ReviewRequest(Request):
    """The answers of people about the images of a corpus."""

    kind: Literal["review"] = "review"
    inputs: ReviewInputs


class SealedFile(_Frozen):
    """A file whose bytes never change again."""

    sha256: str
    bytes: int


class Manifest(_Frozen):
    """The whole of `nst.json`."""

    schema_version: int = SCHEMA_VERSION
    name: str
    version: str
    digest: str = Field(description="sha256 over the request, the class names and the sealed files: the identity of this version's content")
    request: Request
    class_names: list[str]
    counts: Counts
    files: dict[str, SealedFile]
    seconds: float
    created: str
    packages: dict[str, str]
    machine: dict[str, Any]

    @classmethod
    def of(cls, manifest: "Manifest") -> Self:
        """A manifest as one of this kind. Raises UsageError for another's."""
        if isinstance(manifest, cls):
            return manifest
        kind = next(kind for kind, model in _MANIFESTS.items() if model is cls)
        raise UsageError(f"{manifest.name}@{manifest.version}: expected {with_article(kind)}, found {with_article(manifest.kind)}")

    @property
    def kind(self) -> Kind:
        """What sort of version this is."""
        return self.request.kind

    def marked_as_pulled(self) -> Self:
        """The same, whatever it was made from named by the Hub: its digest stays, and nothing is opened because it says so."""
        inputs = self.request.inputs.changed(lambda _, entry: entry.model_copy(update={"pulled": True}))
        return self.model_copy(update={"request": self.request.model_copy(update={"inputs": inputs})})


class GenerationManifest(Manifest):
    """The `nst.json` of a generation."""

    request: GenerationRequest
    counts: GenerationCounts


class EditionManifest(Manifest):
    """The `nst.json` of an edition."""

    request: EditionRequest
    counts: EditionCounts


class TeacherManifest(Manifest):
    """The `nst.json` of a teacher."""

    request: TeacherRequest
    counts: TeacherCounts


class ReviewManifest(Manifest):
    """The `nst.json` of a review."""

    request: ReviewRequest
    counts: ReviewCounts


_MANIFESTS: dict[str, type[Manifest]] = {
    "generation": GenerationManifest,
    "edition": EditionManifest,
    "review": ReviewManifest,
    "teacher": TeacherManifest,
}
_REQUEST: TypeAdapter[GenerationRequest | EditionRequest | ReviewRequest | TeacherRequest] = TypeAdapter(
    Annotated[GenerationRequest | EditionRequest | ReviewRequest | TeacherRequest, Field(discriminator="kind")]
)


def with_article(kind: str) -> str:
    """`a generation`, `an edition`."""
    return f"an {kind}" if kind.startswith("e") else f"a {kind}"


def json_digest(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """sha256 of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content_digest(request: Request, files: dict[str, SealedFile], class_names: list[str]) -> str:
    """The digest of a version: its request, its classes and the bytes of its sealed files."""
    hashes = {name: sealed.sha256 for name, sealed in files.items()}
    return json_digest({"request": request.digest, "class_names": class_names, "files": hashes})


def make_manifest(
    name: str,
    version: str,
    request: Request,
    files: dict[str, SealedFile],
    class_names: list[str],
    counts: Counts,
    seconds: float,
    machine: dict[str, Any],
) -> Manifest:
    """A manifest of now, with the packages of this environment."""
    return _MANIFESTS[request.kind](
        name=name,
        version=version,
        digest=content_digest(request, files, class_names),
        request=request,
        class_names=class_names,
        counts=counts,
        files=files,
        seconds=round(seconds, 3),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        packages=dict(installed_packages()),
        machine=this_machine() | machine,
    )


def read_manifest(folder: Path) -> Manifest:
    """Read `nst.json`. Raises NstError where it is missing, broken or of a newer schema."""
    path = folder / MANIFEST_NAME
    try:
        return parse_manifest(path.read_text("utf-8"), str(path))
    except FileNotFoundError:
        raise NstError(f"{folder}: expected a version with {MANIFEST_NAME}, found none; it was not written by nst or is damaged") from None
    except UnicodeDecodeError as error:
        raise NstError(f"{path}: expected a manifest, found unreadable JSON ({error}); remove it and create it again") from None


def parse_manifest(text: str, path: str) -> Manifest:
    """A manifest from its text; `path` says in errors where it stands. Raises NstError where it is broken or of a newer schema."""
    try:
        content = json.loads(text)
        schema = content["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NstError(f"{path}: expected a manifest, found unreadable JSON ({error}); remove it and create it again") from None
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        raise NstError(f"{path}: has schema version {schema}, this nst supports up to {SCHEMA_VERSION}; upgrade nst to use this store")
    try:
        return _manifest_class(content).model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise NstError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; the manifest was changed by hand or damaged") from None


def _manifest_class(content: dict[str, Any]) -> type[Manifest]:
    """The class of its kind; for a kind that is none the plain one, which says so."""
    request = content.get("request")
    kind = request.get("kind") if isinstance(request, dict) else None
    return _MANIFESTS.get(str(kind), Manifest)


def read_request(path: Path) -> Request:
    """The request of a version under way. Raises ValueError for a damaged one, or one of a later nst."""
    return _REQUEST.validate_json(path.read_text("utf-8"))


def this_machine() -> dict[str, Any]:
    """What results can depend on beside settings and packages."""
    return {"python": platform.python_version(), "system": platform.system(), "processor": platform.machine(), "cpus": os.cpu_count()}


@functools.cache
def installed_packages() -> Mapping[str, str]:
    """The versions of what results can depend on; simplejpeg is left out where it is not installed, as Pillow decodes then."""
    return {package: version for package in _PACKAGES if (version := version_of(package)) is not None}


def version_of(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_anonymous(manifest: Manifest) -> bool:
    """Whether keys and hashes were left out of a version."""
    return bool(manifest.request.settings.get(ANONYMOUS))

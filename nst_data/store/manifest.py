"""`nst.json`: what a version is, what it was made from, and the digests that identify it."""

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
ANONYMOUS = "anonymous"  # setting of a version that does not name its sources
ORDER = "order"  # setting of a training: in which order it reads the images of a self-contained edition
PREPARATION = "preparation"  # likewise: how it prepares images, if not as an earlier nst did for the same network
NETWORK_NOISE = "network_noise"  # likewise: a DropPath reused in a forward pass draws again, unlike in an earlier nst
HEADS = "heads"  # likewise: a network with several last layers is trained with all of them, unlike in an earlier nst
PROBE_SAMPLE = "probe_sample"  # likewise: on how many images a large probe chose its strength; an earlier nst used all
FOLDERS = "folders"  # likewise: digests of the folders it names, which identify it in place of their paths
FOLDER_SETTINGS = ("model", "start")  # those that may name a folder
DERIVED_SETTINGS = (ORDER, PREPARATION, NETWORK_NOISE, HEADS, PROBE_SAMPLE, FOLDERS)  # of a training: they follow from its inputs
Kind = Literal["generation", "edition", "review", "teacher"]

_PACKAGES = (
    *("nst", "torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "polars", "pyarrow"),
    *("pillow", "simplejpeg", "numpy"),
)


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Request(_Frozen):
    """A request for a version: the settings that shape its data, and its inputs."""

    kind: Kind
    settings: dict[str, Any]  # as returned by `for_request`, possibly of a later nst
    inputs: Inputs

    @property
    def digest(self) -> str:
        """Equal for equal settings and inputs, wherever the inputs are located."""
        inputs = {role: entry.digest for role, entry in self.inputs.by_role.items()}
        return json_digest({"kind": self.kind, "settings": self.identity, "inputs": inputs})

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that identify a version: without paths of folders whose content they name."""
        folders = self.settings.get(FOLDERS)
        named = [name for name in FOLDER_SETTINGS if isinstance(folders, dict) and name in folders]
        return {name: value for name, value in self.settings.items() if name not in named}

    @property
    def full_settings(self) -> dict[str, Any]:
        """The settings, plus the earlier default of each one that is left out and has a different default today."""
        return (EARLIER_NOISED_LABEL_DEFAULTS if self.is_noised else {}) | self.settings

    @property
    def is_noised(self) -> bool:
        """Whether the teacher was noised while it labeled."""
        return self.settings.get("noise") is True

    @property
    def key(self) -> str | None:
        """The column of an adopted table that names the images of a pool; None if the table contains the images."""
        key = self.settings.get("key")
        return key if isinstance(key, str) else None


class GenerationRequest(Request):
    """A request to label a pool, or to adopt labels that were made elsewhere."""

    kind: Literal["generation"] = "generation"
    inputs: GenerationInputs

    @property
    def limit(self) -> int | None:
        """How many of the pool's first images were labeled; None for all."""
        limit = self.settings.get("limit")
        return limit if isinstance(limit, int) else None


class EditionRequest(Request):
    """A request to select from a generation, or to label an edition again with another teacher."""

    kind: Literal["edition"] = "edition"
    inputs: EditionInputs

    @property
    def selection(self) -> BalanceSettings | None:
        """The settings of the selection; None if it was labeled again, or selected with settings unknown to this nst."""
        with contextlib.suppress(ValidationError):
            settings = {name: value for name, value in self.settings.items() if name != ANONYMOUS}
            return BalanceSettings.from_request(settings) if self.inputs.like is None else None
        return None

    @property
    def full_settings(self) -> dict[str, Any]:
        """See `Request.full_settings`."""
        if self.selection is None:
            return super().full_settings
        today = BalanceSettings.model_validate({name: value for name, value in self.settings.items() if name != ANONYMOUS})
        return self.settings | {name: value for name, value in self.selection.model_dump().items() if value != getattr(today, name)}


EARLIER_TRAINING_DEFAULTS = {
    "weight_decay_on": "weights",
    "freeze_by": "layers",
}  # earlier defaults of training settings, which this package cannot import
EARLIER_NOISED_LABEL_DEFAULTS = {"noise_transform": "evaluation"}  # likewise of labeling settings


class TeacherRequest(Request):
    """A request to train a teacher."""

    kind: Literal["teacher"] = "teacher"
    inputs: TeacherInputs

    @field_validator("settings")
    @classmethod
    def _check_model_name(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(settings.get("model"), str):
            raise ValueError("expected the name of a network as `model`")
        return settings

    @property
    def full_settings(self) -> dict[str, Any]:
        """See `Request.full_settings`; a linear probe has no earlier defaults."""
        if self.settings.get("probe"):
            return self.settings
        return {
            name: value for name, value in EARLIER_TRAINING_DEFAULTS.items() if name != "freeze_by" or self.settings.get("freeze")
        } | self.settings

    @property
    def model(self) -> str:
        """The name of the network."""
        return str(self.settings["model"])


class ReviewRequest(Request):
    """A request to freeze people's answers about the images of a corpus."""

    kind: Literal["review"] = "review"
    inputs: ReviewInputs


class SealedFile(_Frozen):
    """A file whose bytes never change again."""

    sha256: str
    bytes: int


class Manifest(_Frozen):
    """The contents of `nst.json`."""

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
    def from_manifest(cls, manifest: "Manifest") -> Self:
        """The manifest as one of this class. Raises UsageError if it is of another kind."""
        if isinstance(manifest, cls):
            return manifest
        kind = next(kind for kind, model in _MANIFEST_CLASSES.items() if model is cls)
        raise UsageError(f"{manifest.name}@{manifest.version}: expected {with_article(kind)}, found {with_article(manifest.kind)}")

    @property
    def kind(self) -> Kind:
        """The kind of version this is."""
        return self.request.kind

    def marked_as_pulled(self) -> Self:
        """A copy whose inputs are marked as named by the Hub, so that nothing is opened because they name it; the digest stays."""
        inputs = self.request.inputs.map_entries(lambda _, entry: entry.model_copy(update={"pulled": True}))
        return self.model_copy(update={"request": self.request.model_copy(update={"inputs": inputs})})


class GenerationManifest(Manifest):
    """The `nst.json` of a generation."""

    request: GenerationRequest
    counts: GenerationCounts

    @property
    def first_images(self) -> int | None:
        """How many of the pool's first images were labeled; None for all of them."""
        limit = self.request.limit
        return limit if limit is not None and limit <= self.counts.pool else None


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


_MANIFEST_CLASSES: dict[str, type[Manifest]] = {
    "generation": GenerationManifest,
    "edition": EditionManifest,
    "review": ReviewManifest,
    "teacher": TeacherManifest,
}
_REQUEST_ADAPTER: TypeAdapter[GenerationRequest | EditionRequest | ReviewRequest | TeacherRequest] = TypeAdapter(
    Annotated[GenerationRequest | EditionRequest | ReviewRequest | TeacherRequest, Field(discriminator="kind")]
)


def with_article(kind: str) -> str:
    """The kind with its article: `a generation`, `an edition`."""
    return f"an {kind}" if kind.startswith("e") else f"a {kind}"


def json_digest(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """sha256 of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content_digest(request: Request, files: dict[str, SealedFile], class_names: list[str]) -> str:
    """The digest of a version, over its request, its class names and the bytes of its sealed files."""
    hashes = {name: sealed.sha256 for name, sealed in files.items()}
    return json_digest({"request": request.digest, "class_names": class_names, "files": hashes})


def create_manifest(
    name: str,
    version: str,
    request: Request,
    files: dict[str, SealedFile],
    class_names: list[str],
    counts: Counts,
    seconds: float,
    machine: dict[str, Any],
) -> Manifest:
    """A manifest created now, with the packages of this environment."""
    return _MANIFEST_CLASSES[request.kind](
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
        machine=describe_machine() | machine,
    )


def read_manifest(folder: Path) -> Manifest:
    """Read `nst.json`. Raises NstError if it is missing, broken or of a newer schema."""
    path = folder / MANIFEST_NAME
    try:
        return parse_manifest(path.read_text("utf-8"), str(path))
    except FileNotFoundError:
        raise NstError(f"{folder}: expected a version with {MANIFEST_NAME}, found none; restore it, or remove this folder") from None
    except UnicodeDecodeError as error:
        raise NstError(f"{path}: expected a manifest, found unreadable JSON ({error}); remove it and create it again") from None


def parse_manifest(text: str, path: str) -> Manifest:
    """Parse the text of a manifest; `path` names it in errors. Raises NstError if it is broken or of a newer schema."""
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
    """The manifest class of its kind; an unknown kind gets `Manifest`, whose validation reports it."""
    request = content.get("request")
    kind = request.get("kind") if isinstance(request, dict) else None
    return _MANIFEST_CLASSES.get(str(kind), Manifest)


def read_request(path: Path) -> Request:
    """Read the request of a version in progress. Raises ValueError if it is damaged or was written by a later nst."""
    return _REQUEST_ADAPTER.validate_json(path.read_text("utf-8"))


def describe_machine() -> dict[str, Any]:
    """What results can depend on in addition to settings and packages."""
    return {"python": platform.python_version(), "system": platform.system(), "processor": platform.machine(), "cpus": os.cpu_count()}


@functools.cache
def installed_packages() -> Mapping[str, str]:
    """Versions of the packages that results can depend on; simplejpeg is left out if not installed, as Pillow decodes then."""
    return {package: version for package in _PACKAGES if (version := package_version(package)) is not None}


def package_version(package: str) -> str | None:
    """The version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_anonymous(manifest: Manifest) -> bool:
    """Whether keys and hashes were left out of a version."""
    return bool(manifest.request.settings.get(ANONYMOUS))

"""`nst.json`: what a version is, what it was made from, and the digests that say so."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from nst_data.errors import NstError

SCHEMA_VERSION = 1
MANIFEST_NAME = "nst.json"
ANONYMOUS = "anonymous"  # the setting that says that no source is named
ORDER = "order"  # the setting of a training that names the order of a self-contained edition's images
Kind = Literal["generation", "edition", "teacher"]

_PACKAGES = ("nst", "torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "polars", "pyarrow", "pillow", "numpy")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_LATER = ("label_column", "pulled", "skipped")  # fields of an input that earlier versions of nst do not know


class Input(_Frozen):
    """One thing a version was made from. Only `digest` decides whether two inputs are the same."""

    ref: str = Field(description="name@version in the store, or the source as it was found")
    digest: str = Field(description="the version's digest, or the source's fingerprint")
    weights_sha256: str | None = None
    revision: str | None = Field(None, description="commit on the Hub")
    repo: str | None = Field(None, description="owner/name@tag of a version on the Hub")
    image_column: str | None = Field(None, description="the requested image column, in a source with several")
    label_column: str | None = Field(None, description="the requested label column")
    pulled: bool = Field(False, description="taken from a downloaded manifest: `ref` is shown but never opened")
    skipped: dict[str, int] | None = Field(None, description="skipped files that may be images, by suffix")

    @model_serializer(mode="wrap")
    def _as_short_as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields that came later where they say nothing, so that earlier versions of nst can read it."""
        values: dict[str, Any] = plain(self)
        return {name: value for name, value in values.items() if name not in _LATER or value}


class Request(_Frozen):
    """What a version is asked to be: the settings that shape its data, and its inputs."""

    kind: Kind
    settings: dict[str, Any]
    inputs: dict[str, Input]

    @property
    def digest(self) -> str:
        """Equal for equal settings on equal inputs, wherever the inputs lie."""
        inputs = {role: one.digest for role, one in self.inputs.items()}
        return json_digest({"kind": self.kind, "settings": self.settings, "inputs": inputs})


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
    counts: dict[str, Any]
    files: dict[str, SealedFile]
    seconds: float
    created: str
    packages: dict[str, str]
    machine: dict[str, Any]

    @property
    def kind(self) -> Kind:
        """What sort of version this is."""
        return self.request.kind

    def count(self, name: str) -> int:
        """One of the counts. Raises NstError where a manifest, such as one that was pulled, has no such number."""
        number = self.counts.get(name)
        if not isinstance(number, int):
            raise NstError(f"{self.name}@{self.version}: its manifest has no number of {name}; make it again, or pull it anew")
        return number

    def marked_as_pulled(self) -> Self:
        """The same, whatever it was made from named by the Hub: its digest stays, and nothing is opened because it says so."""
        inputs = {role: entry.model_copy(update={"pulled": True}) for role, entry in self.request.inputs.items()}
        return self.model_copy(update={"request": self.request.model_copy(update={"inputs": inputs})})


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
    counts: dict[str, Any],
    seconds: float,
    machine: dict[str, Any],
) -> Manifest:
    """A manifest of now, with the packages of this environment."""
    return Manifest(
        name=name,
        version=version,
        digest=content_digest(request, files, class_names),
        request=request,
        class_names=class_names,
        counts=counts,
        files=files,
        seconds=round(seconds, 3),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        packages=_installed_packages(),
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
        raise NstError(f"{path}: expected a manifest, found unreadable JSON ({error}); remove it and make it again") from None


def parse_manifest(text: str, path: str) -> Manifest:
    """A manifest from its text; `path` says in errors where it stands. Raises NstError where it is broken or of a newer schema."""
    try:
        content = json.loads(text)
        schema = content["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NstError(f"{path}: expected a manifest, found unreadable JSON ({error}); remove it and make it again") from None
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        raise NstError(f"{path}: has schema version {schema}, this nst reads up to {SCHEMA_VERSION}; upgrade nst to use this store")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise NstError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; the manifest was changed by hand or damaged") from None


def this_machine() -> dict[str, Any]:
    """What results can depend on beside settings and packages."""
    return {"python": platform.python_version(), "system": platform.system(), "processor": platform.machine(), "cpus": os.cpu_count()}


def _installed_packages() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in _PACKAGES}


def is_anonymous(manifest: Manifest) -> bool:
    """Whether keys and hashes were left out of a version."""
    return bool(manifest.request.settings.get(ANONYMOUS))

"""`nst export TEACHER FILE --to onnx|torch-export`: a classifier as one file that runs without nst, timm and transformers."""

import json
import logging
import secrets
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from nst_data.arguments import with_checked_arguments
from nst_data.cards.published import public_name
from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress, terminal_progress
from nst_data.store.files import clear_abandoned, fsync_folder, replace_file, temporary_path
from nst_data.store.store import Store, Version
from nst_train.classifiers.classifier import Classifier
from nst_train.classifiers.teachers import load_classifier
from nst_train.networks.weights import describe_load_error
from nst_train.teacher_names import TeacherName

NetworkFormat = Literal["onnx", "torch-export"]
NETWORK_FORMATS: tuple[NetworkFormat, ...] = get_args(NetworkFormat)
TOLERANCE = 1e-4  # absolute difference of logits, relative to the largest one if that exceeds 1
_METADATA_FILE = "nst.json"  # in a torch.export archive
_MAX_INLINE_BYTES = 2**31 - 2**27  # of weights inside an ONNX file; protobuf is limited to 2 GB
_N_IMAGES = 3


@dataclass(frozen=True)
class ExportedNetwork:
    """An exported file. `difference` is the largest between its logits and the network's, relative to the largest logit."""

    path: Path
    class_names: list[str]
    difference: float


@with_checked_arguments
def export_network(
    store: Store, model: TeacherName | Version, path: str | Path, *, to: NetworkFormat = "onnx", progress: Progress | None = None
) -> ExportedNetwork:
    """Write a classifier as an ONNX file or as a `torch.export` archive.

    The exported network takes `pixels`, float32 of shape (batch, 3, height, width), with any batch size, prepared as described in its
    metadata `preprocessing`, and returns `logits` of shape (batch, classes), in the order of its metadata `class_names`. The file is run
    and compared with the network before it is moved into place. ONNX weights of 2 GB or more are stored next to it, in `FILE.data`.

    Args:
        store: The store that teachers are looked up in.
        model: A version of the store, or any name that `label` takes: `NAME@gen-N`, `local-dir:FOLDER`, `hf-hub:OWNER/NAME`, a timm
            name; or `ZeroShot(...)`.
        path: The file to write. If it already holds the same network, it is only compared again; any other file is never overwritten.
        to: `onnx` (requires `pip install 'nst[onnx]'`) or `torch-export`.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        The file, its class names in the order of the logits, and by how much these differ from the network's.

    Raises:
        UsageError: `to` is not one of these formats, or its packages are not installed.
        NstError: The file exists with other content, the network cannot be exported, or the exported network computes something else.
    """
    if to not in NETWORK_FORMATS:
        raise UsageError(f"`to` {to}: expected {' or '.join(NETWORK_FORMATS)}")
    teacher = store.open(model, "teacher").ref if isinstance(model, Version) else model
    target = Path(path)
    writer, reader = _FORMATS[to]
    if to == "onnx":
        _check_installed()
    classifier, entry = load_classifier(teacher, store)
    metadata = {
        "teacher": public_name(entry.ref),
        "digest": entry.digest,
        "weights_sha256": entry.weights_sha256,
        "class_names": classifier.class_names,
        "preprocessing": classifier.preprocessing.as_json,
        "format": to,
    }
    exists = _holds_export(target, metadata)
    pixels = _test_pixels(classifier)
    action = "comparing what is there" if exists else f"writing it as {to} and comparing that"
    (progress or terminal_progress()).say(f"{target}: {action} with {teacher}")
    with _temporary_folder(target) as folder:
        fresh = folder / target.name
        if not exists:
            try:
                with _silence_exporters():
                    writer(classifier, pixels[:2], fresh, metadata)
            except Exception as error:  # exporters' errors have no common base class
                raise NstError(f"{teacher}: it cannot be written as {to}: {describe_load_error(error)}") from None
        with _silence_exporters():
            outputs = reader(target if exists else fresh, pixels)
        difference = _difference(classifier, pixels, outputs)
        if not difference <= TOLERANCE:
            raise NstError(f"{teacher}: as {to} it computes other logits (by {difference:.2g} of the largest); nothing was written")
        if not exists:
            for file in sorted(folder.iterdir(), reverse=True):  # NAME.data before NAME
                replace_file(file, target.parent / file.name)
            fsync_folder(target.parent)
    return ExportedNetwork(target, classifier.class_names, difference)


def _check_installed() -> None:
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise UsageError(f"`to` onnx requires {', '.join(missing)}: pip install 'nst[onnx]'")


def _holds_export(path: Path, metadata: dict[str, Any]) -> bool:
    """Whether `path` already holds this very network. Raises NstError if it holds something else, or is not a valid place for a file."""
    if not path.name or path.is_dir():
        raise NstError(f"{path}: expected a file to write, found a folder; name a file, such as {path / 'network.onnx'}")
    if not path.parent.is_dir():
        raise NstError(f"{path}: there is no folder {path.parent}; make it first")
    data = path.with_name(f"{path.name}.data")
    if not path.exists() and not data.exists():
        return False
    if path.is_file() and _read_metadata(path) == metadata:
        return True
    raise NstError(f"{path if path.exists() else data}: exists and is not an export of this network; choose another name, or remove it")


def _read_metadata(path: Path) -> object:
    """The metadata that `export_network` put into a file, or None if it cannot be read."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next((name for name in archive.namelist() if name.endswith(f"/extra/{_METADATA_FILE}")), None)
                return None if name is None else json.loads(archive.read(name))
        import onnx

        properties = onnx.load(path, load_external_data=False).metadata_props
        return {entry.key: entry.value if entry.key in _TEXT_KEYS else json.loads(entry.value) for entry in properties}
    except Exception:  # not an export, but any other file
        return None


_TEXT_KEYS = ("teacher", "digest", "weights_sha256", "format")


def _test_pixels(classifier: Classifier) -> Float[Tensor, "images 3 height width"]:
    """Seeded noise images, prepared by the classifier's preprocessing as photographs would be."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (_N_IMAGES, 3, 12, 16), generator=generator, dtype=torch.uint8)
    images = [image.repeat_interleave(20, 1).repeat_interleave(20, 2) for image in coarse]
    return classifier.preprocessing.finish(torch.stack([classifier.preprocessing.prepare(image) for image in images]))


@torch.no_grad()
def _difference(classifier: Classifier, pixels: Tensor, outputs: Tensor) -> float:
    expected = classifier.network(pixels).float()
    if outputs.shape != expected.shape:
        return float("inf")
    return float((outputs.float() - expected).abs().max() / expected.abs().max().clamp(min=1))


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A temporary folder for incomplete files, on the same file system as `path`."""
    clear_abandoned(path.parent, min_age_seconds=0)
    folder = temporary_path(path.with_name(f".{path.name}.{secrets.token_hex(4)}"))
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _silence_exporters() -> Iterator[None]:
    """Silence the exporters' warnings and log messages about their steps."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _write_onnx(classifier: Classifier, pixels: Tensor, path: Path, metadata: dict[str, Any]) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    program = torch.onnx.export(
        classifier.network,
        (pixels,),
        dynamo=True,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    assert program is not None, "by dynamo it returns a program"
    ClearMetadataAndDocStringPass()(program.model)  # they contain paths of this machine
    program.model.metadata_props.update({key: value if key in _TEXT_KEYS else json.dumps(value) for key, value in metadata.items()})
    weights = sum(tensor.nbytes for tensor in classifier.network.state_dict().values())
    program.save(path, external_data=weights > _MAX_INLINE_BYTES)


def _run_onnx(path: Path, pixels: Tensor) -> Tensor:
    from onnxruntime import InferenceSession

    (logits,) = InferenceSession(path, providers=["CPUExecutionProvider"]).run(["logits"], {"pixels": pixels.numpy()})
    return torch.from_numpy(logits)


def _write_torch_export(classifier: Classifier, pixels: Tensor, path: Path, metadata: dict[str, Any]) -> None:
    program = torch.export.export(classifier.network, (pixels,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it contains paths of this machine
    program.example_inputs = None
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={_METADATA_FILE: json.dumps(metadata)})


@torch.no_grad()
def _run_torch_export(path: Path, pixels: Tensor) -> Tensor:
    logits: Tensor = torch.export.load(path).module()(pixels)
    return logits


_FORMATS: dict[NetworkFormat, tuple[Callable[[Classifier, Tensor, Path, dict[str, Any]], None], Callable[[Path, Tensor], Tensor]]] = {
    "onnx": (_write_onnx, _run_onnx),
    "torch-export": (_write_torch_export, _run_torch_export),
}

"""The files behind a model name on the Hub: config and safetensors at one commit. Never reads a pickle. Does not import torch itself."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # httpx or httpx2, by version
from safetensors import SafetensorError, safe_open

from nst_data.errors import NstError, UsageError, first_line
from nst_data.hub.errors import translate_hub_errors
from nst_data.hub.licenses import license_at
from nst_data.hub.quiet import bars_only_on_terminal
from nst_data.hub.reference import HubReference
from nst_data.hub.retries import call_with_retries, check_hub_resolves
from nst_data.store.files import hash_file
from nst_data.store.inputs import Input
from nst_data.store.manifest import json_digest
from nst_data.utf8_names import check_utf8

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FOLDER, HUB = "local-dir:", "hf-hub:"
PROCESSOR_FILE = "preprocessor_config.json"
COMBINED_PROCESSOR_FILE = "processor_config.json"  # image processor and tokenizer in one file
_FILES = [CONFIG, PROCESSOR_FILE, WEIGHTS, "model-*.safetensors", "model.safetensors.index.json"]


def parse_repository(name: str) -> HubReference:
    """Parse [hf-hub:]OWNER/NAME[@REVISION]. Raises UsageError for any other text."""
    reference = HubReference.parse_repository(name)
    if reference is None:
        raise UsageError(f"{name}: expected OWNER/NAME[@REVISION] on the Hub; a folder is named {FOLDER}{name}")
    return reference


def download(name: str) -> tuple[Path, str]:
    """Download a model repository at the commit that [hf-hub:]OWNER/NAME[@REVISION] currently resolves to; returns (folder, commit).

    Raises NstError if it has no config.json or no safetensors.
    """
    folder = download_snapshot(name)
    if not (folder / CONFIG).is_file() or not any(folder.glob("*.safetensors")):
        files = ", ".join(sorted(path.name for path in folder.glob("*"))) or "none"
        raise NstError(
            f"{name}: expected {CONFIG} and weights as safetensors in the repository, found {files}; "
            "pickle files (.bin, .pt) are not supported"
        )
    return folder, folder.name


def download_snapshot(name: str, extra_patterns: Sequence[str] = (), revision: str | None = None) -> Path:
    """Download those of a model's files that [hf-hub:]OWNER/NAME[@REVISION] has, to a folder named after its commit.

    `extra_patterns` are patterns of further files; `revision` is a commit that replaces REVISION.
    """
    repository = parse_repository(name)
    revision = revision or repository.revision
    with translate_hub_errors(name, "model"), bars_only_on_terminal():
        return _download_or_cached(
            partial(snapshot_download, repository.repo, revision=revision, allow_patterns=[*_FILES, *extra_patterns])
        )


def cached_folder(name: str) -> Path | None:
    """The cache folder with the config.json of [hf-hub:]OWNER/NAME[@REVISION], or None if it is not cached. Does not access the Hub."""
    reference = parse_repository(name)
    path = try_to_load_from_cache(reference.repo, CONFIG, revision=reference.revision)
    return Path(path).parent if isinstance(path, str) else None


def local_name(name: str) -> str | None:
    """A name that loads a network without accessing the Hub, or None if the network is on the Hub and its weights are not cached."""
    if "/" not in name or name.startswith(FOLDER):
        return name
    folder = cached_folder(name)
    return f"{FOLDER}{folder}" if folder and any(folder.glob("*.safetensors")) else None


def published_weights(name: str) -> tuple[Path, str]:
    """The safetensors that timm publishes for a name, in a folder named after their commit, and their repository on the Hub."""
    repo = published_repository(name)
    return published_file(repo, name), repo


def published_repository(name: str) -> str:
    """The Hub repository in which timm publishes the weights of a name. Raises NstError if it publishes none."""
    import timm

    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise NstError(f"{name}: timm publishes no weights for it on the Hub; timm.list_models(pretrained=True) lists those it has")
    return config.hf_hub_id if "/" in config.hf_hub_id else f"timm/{config.hf_hub_id}"


def published_file(repo: str, name: str) -> Path:
    """The safetensors of a repository at its latest commit, in a folder named after it. `name` is their timm name."""
    with translate_hub_errors(f"{name} ({repo})", "model"), bars_only_on_terminal():
        return _download_or_cached(partial(hf_hub_download, repo, WEIGHTS))


def _download_or_cached(download: Callable[..., str]) -> Path:
    """Run a download, or without a network connection return what the cache has."""
    try:
        check_hub_resolves()
    except httpx.ConnectError:
        try:
            return Path(download(local_files_only=True))
        except LocalEntryNotFoundError:
            pass
        raise
    return Path(call_with_retries(download))


def initial_weights_input(name: str) -> Input:
    """The lineage entry of a model's published weights: repository, commit, license and SHA-256; for a folder only its SHA-256.

    Raises UsageError or NstError if there are no weights.
    """
    if name.startswith(FOLDER):
        return Input(ref=name, digest=hash_file(_single_weights_file(name)).sha256)
    if "/" in name:
        folder, commit = download(name)
        files, repo = sorted(folder.glob("[!.]*.safetensors")), parse_repository(name).repo
    else:
        weights, repo = published_weights(name)
        files, commit = [weights], weights.parent.name
    sums = [hash_file(file).sha256 for file in files]
    digest = sums[0] if len(sums) == 1 else json_digest(sums)
    return Input(ref=repo, digest=digest, weights_sha256=digest, revision=commit, license=license_of_model(repo, commit))


def check_folder(name: str) -> Path:
    """The folder that local-dir:FOLDER names. Raises UsageError if it holds no network, and NstError for a name that is not UTF-8."""
    check_utf8(name)
    folder = Path(name.removeprefix(FOLDER))
    if not (folder / CONFIG).is_file() or not any(folder.glob("*.safetensors")):
        raise UsageError(f"{name}: expected a folder with {CONFIG} and {WEIGHTS} in timm's or transformers' format")
    return folder


def config_digest(name: str) -> str:
    """A digest of what is beside the weights in the folder that local-dir:FOLDER names: architecture, class names, image preparation.

    Raises UsageError if it holds no network.
    """
    folder = check_folder(name)
    files = (CONFIG, PROCESSOR_FILE, COMBINED_PROCESSOR_FILE)
    return json_digest({file: hash_file(folder / file).sha256 for file in files if (folder / file).is_file()})


def _single_weights_file(name: str) -> Path:
    folder = check_folder(name)
    if not (folder / WEIGHTS).is_file():
        raise NstError(f"{name}: expected its weights in one file, {WEIGHTS}, found them in several; save them as one")
    return folder / WEIGHTS


def license_of_model(repo: str, commit: str) -> str | None:
    """The license in the card of a repository at a commit, or None if there is no card or it names no license."""
    with bars_only_on_terminal():
        return license_at(repo, commit, "model")


def require_safetensors(name: str, folder: Path) -> None:
    """Raises NstError for a folder in timm's format without safetensors: timm would fall back to a pickle."""
    if not (folder / WEIGHTS).is_file():
        raise NstError(f"{name}: {WEIGHTS} is missing; pickle files (.bin, .pt) are not supported")


def measure_tensors(name: str, folder: Path) -> tuple[int, int]:
    """The number of tensors in a folder's safetensors and the size of their largest dimension; only headers are read.

    Raises NstError for files that are not safetensors.
    """
    tensors, largest = 0, 0
    for path in folder.glob("[!.]*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    tensors, largest = tensors + 1, max(largest, *file.get_slice(key).get_shape(), 0)
        except (SafetensorError, OSError) as error:
            raise NstError(f"{name}: expected a network with trained weights; loading failed ({path.name}: {first_line(error)})") from None
    return tensors, largest


_MAX_SHOWN = 3
_MISMATCH = re.compile(r"size mismatch for (\S+): .*? shape (.+?) from checkpoint, the shape in current model is (.+?)\.$", re.M)


def describe_load_error(error: BaseException) -> str:
    """A library's error in one line; for `load_state_dict` with all that differs: missing and unexpected tensors, and wrong shapes."""
    text = str(error)
    if "loading state_dict for" not in text:
        return first_line(error)
    missing, unexpected = (_quoted_names(text, f"{kind} key(s) in state_dict: ") for kind in ("Missing", "Unexpected"))
    return describe_differences(missing, unexpected, {name: (actual, expected) for name, actual, expected in _MISMATCH.findall(text)})


def describe_differences(missing: Sequence[str], unexpected: Sequence[str], reshaped: Mapping[str, tuple[object, object]]) -> str:
    """Describe how weights differ from a network's: tensors by name, and for `reshaped` the shapes found and expected."""
    parts = [f"missing {_format_names(missing)}"] if missing else []
    if unexpected:
        parts.append(f"unexpected {_format_names(unexpected)}")
    if reshaped:
        shapes = [f"{name} {_format_shape(actual)} instead of {_format_shape(expected)}" for name, (actual, expected) in reshaped.items()]
        parts.append(f"wrong shape {_format_names(shapes)}")
    return "; ".join(parts)


def _format_names(names: Sequence[str]) -> str:
    """The number of tensors and the first few of their names."""
    suffix = f", and {len(names) - _MAX_SHOWN:,} more" if len(names) > _MAX_SHOWN else ""
    return f"{len(names):,} tensor{'s' * (len(names) != 1)} ({', '.join(names[:_MAX_SHOWN])}{suffix})"


def _quoted_names(text: str, prefix: str) -> list[str]:
    line = next((line for line in text.splitlines() if prefix in line), "")
    return re.findall(r'"([^"]*)"', line.partition(prefix)[2])


def _format_shape(shape: object) -> str:
    numbers = re.findall(r"\d+", str(shape))
    return "x".join(numbers) or "a number"

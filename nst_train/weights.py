"""The files behind a model name on the Hub: config and safetensors at one commit. No pickle is ever read."""

from pathlib import Path

import timm
from huggingface_hub import hf_hub_download, snapshot_download

from nst_data.errors import NstError
from nst_data.hub import plain_errors

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FOLDER, HUB = "local-dir:", "hf-hub:"
_FILES = [CONFIG, "preprocessor_config.json", WEIGHTS, "model-*.safetensors", "model.safetensors.index.json"]


def download(name: str) -> tuple[Path, str]:
    """A repository at the commit that [hf-hub:]OWNER/NAME[@REVISION] means now: (folder, commit)."""
    repo, _, revision = name.removeprefix(HUB).partition("@")
    with plain_errors(name, "model"):
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=_FILES))
    if not (folder / CONFIG).is_file() or not any(folder.glob("*.safetensors")):
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "none"
        raise NstError(f"{name}: expected {CONFIG} and weights as safetensors in the repository, found {there}; pickles are not read")
    return folder, folder.name


def published_weights(name: str) -> Path:
    """The safetensors that timm publishes for one of its names; its folder is called like their commit."""
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise NstError(f"{name}: timm publishes no weights for it on the Hub; timm.list_models(pretrained=True) lists those it has")
    repo = config.hf_hub_id if "/" in config.hf_hub_id else f"timm/{config.hf_hub_id}"
    with plain_errors(f"{name} ({repo})", "model"):
        return Path(hf_hub_download(repo, WEIGHTS))


def require_safetensors(name: str, folder: Path) -> None:
    """Raises NstError for a folder in timm's format without safetensors: timm would go on to a pickle."""
    if not (folder / WEIGHTS).is_file():
        raise NstError(f"{name}: {WEIGHTS} is missing; pickles are not read")

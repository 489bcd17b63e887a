"""Turn an image-text model and class names into a classifier: the text side is computed once and becomes a linear layer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from nst_data.errors import NstError, UsageError
from nst_data.prefetch import cpus_of_this_process, map_batches_in_threads
from nst_data.store.inputs import ClassTexts, Input
from nst_data.store.manifest import json_digest
from nst_train.classifiers.classifier import Classifier, output_fields, weights_sha256
from nst_train.device import set_threads, this_device
from nst_train.networks.image_text import TOKENIZER_FILES, ImageFeatures, ImageText, in_full_precision, load_image_text
from nst_train.networks.model_config import check_config, is_image_text, read_config
from nst_train.networks.models import check_network_name
from nst_train.networks.open_clip_models import OPEN_CLIP_CONFIG, OPEN_CLIP_FILES, is_open_clip, load_open_clip
from nst_train.networks.probe import NETWORK_ERRORS, check_forward_pass
from nst_train.networks.weights import CONFIG, FOLDER, describe_load_error, download, download_snapshot, license_of_model, parse_repository
from nst_train.zero_shot_settings import ZeroShot

_TEXTS_PER_BATCH = 64


class SimilarityClassifier(nn.Module):
    """The image side of an image-text model, with a linear layer from its normalized features to logits."""

    def __init__(self, images: ImageFeatures, head: Float[Tensor, "classes dimensions"]) -> None:
        super().__init__()
        self.images = images
        self.head = nn.Linear(head.shape[1], head.shape[0], bias=False)
        self.head.weight.data = head

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch, in float32."""
        features = self.images(pixels)
        with in_full_precision(features.device.type):
            logits: Tensor = self.head(F.normalize(features.float(), dim=1))
            return logits


@torch.no_grad()
def build_similarity_classifier(model: ImageText, spec: ZeroShot) -> tuple[SimilarityClassifier, ClassTexts]:
    """The classifier, and the texts as recorded in the lineage.

    The weights of a class are the mean of the normalized features of all its texts, normalized again, times the model's scale, as CLIP's
    authors ensemble prompts. A constant added to all logits, such as SigLIP's bias, does not change the softmax over classes.
    """
    texts = [spec.texts(name) for name in spec.synonyms]
    model.check([texts[0][0], texts[1][0]])
    flat = [text for of_class in texts for text in of_class]
    tokens = [model.tokenize(flat[start : start + _TEXTS_PER_BATCH]) for start in range(0, len(flat), _TEXTS_PER_BATCH)]
    features = F.normalize(torch.cat(_text_features(model, tokens)), dim=1)
    means = [rows.mean(dim=0) for rows in torch.split(features, [len(of_class) for of_class in texts])]
    head = F.normalize(torch.stack(means), dim=1) * model.scale
    if not head.isfinite().all():
        raise NstError("its features of the class names are NaN or infinite: its weights are damaged")
    model.image_features.drop_unused_modules(model.test_pixels)
    ids = json_digest([of_batch["input_ids"].tolist() for of_batch in tokens])
    synonyms = {name: list(terms) for name, terms in spec.synonyms.items()}
    return SimilarityClassifier(model.image_features, head), ClassTexts(synonyms=synonyms, prompts=list(spec.templates), tokens_sha256=ids)


def _text_features(model: ImageText, tokens: Sequence[Mapping[str, Tensor]]) -> list[Float[Tensor, "texts dimensions"]]:
    """Features of each batch of texts. On a CPU each thread takes whole batches, so sums do not depend on the number of threads."""
    device = this_device()
    model.image_features.to(device)
    on_device = [{name: values.to(device) for name, values in of_batch.items()} for of_batch in tokens]
    previous_threads = torch.get_num_threads()
    set_threads(1)
    try:
        computed = map_batches_in_threads(
            _without_gradient(model.text_features), on_device, cpus_of_this_process() if device.type == "cpu" else 1
        )
        return [features.float().cpu() for _, features in computed]
    finally:
        set_threads(previous_threads)
        model.image_features.to("cpu")


def _without_gradient(features: Callable[[Mapping[str, Tensor]], Tensor]) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Disable gradients in whichever thread calls `features`: torch's `no_grad` is local to a thread."""
    return torch.no_grad()(features)


def is_zero_shot(name: str) -> bool:
    """Whether a model from outside the store is an image-text model. Raises UsageError or NstError if it does not exist."""
    folder, _ = _resolve_folder(name)
    return folder is not None and (_is_transformers_folder(name, folder) or is_open_clip(folder))


def check_zero_shot(spec: ZeroShot) -> list[str]:
    """The class names. Raises UsageError for invalid names or prompts, and for a model that is not an image-text model."""
    name, names = spec.model, list(spec.synonyms)
    _ = spec.templates  # invalid prompts are refused before a download
    folder, _ = _resolve_folder(name)
    if folder is None or not (_is_transformers_folder(name, folder) or is_open_clip(folder)):
        config = read_config(name, folder) if folder else {}
        kind = config.get("architecture") or config.get("model_type") or "another network"
        raise UsageError(f"{name}: expected an image-text model such as CLIP or SigLIP, found {str(kind)[:80]}; remove `class_names`")
    return names


def _resolve_folder(name: str) -> tuple[Path | None, str | None]:
    """The folder of a model and its tokenizer, and its commit if it is from the Hub; a timm name has no folder."""
    if name.startswith(FOLDER) and is_open_clip(folder := Path(name.removeprefix(FOLDER))):
        return folder, None
    check_network_name(name)
    if name.startswith(FOLDER):
        return Path(name.removeprefix(FOLDER)), None
    if "/" not in name:
        return None, None
    folder = download_snapshot(name, (*TOKENIZER_FILES, OPEN_CLIP_CONFIG))
    if _is_transformers_folder(name, folder):
        return folder, folder.name
    if is_open_clip(folder):  # its weights are not downloaded if the repository has them in transformers' format
        return download_snapshot(name, (*TOKENIZER_FILES, OPEN_CLIP_CONFIG, *OPEN_CLIP_FILES), folder.name), folder.name
    return download(name)


def _is_transformers_folder(name: str, folder: Path) -> bool:
    """Whether a folder holds an image-text model in transformers' format, as safetensors."""
    exists = (folder / CONFIG).is_file() and bool(list(folder.glob("model*.safetensors")))
    return exists and is_image_text(read_config(name, folder))


def load_zero_shot(spec: ZeroShot, exact: bool = False) -> tuple[Classifier, Input]:
    """Build a classifier from an image-text model and class names, with its lineage entry.

    Raises UsageError for invalid names or prompts or a model that is not an image-text model, and NstError for a damaged model.
    """
    names, name = check_zero_shot(spec), spec.model
    folder, revision = _resolve_folder(name)
    assert folder is not None, "checked"
    is_of_transformers = _is_transformers_folder(name, folder)
    if is_of_transformers:
        check_config(name, folder, read_config(name, folder))
    try:
        model = load_image_text(folder, exact) if is_of_transformers else load_open_clip(name, folder, exact)
        weights = weights_sha256(model.image_features.network)
        network, texts = build_similarity_classifier(model, spec)
        check_forward_pass(network, model.preprocessing, names)
    except NstError as error:
        raise type(error)(str(error) if str(error).startswith(name) else f"{name}: {error}") from None
    except (*NETWORK_ERRORS, OSError, ImportError, SafetensorError) as error:
        raise NstError(
            f"{name}: expected an image-text model with trained weights; loading failed ({describe_load_error(error)})"
        ) from None
    architecture = (folder / (CONFIG if is_of_transformers else OPEN_CLIP_CONFIG)).read_text("utf-8")
    identity = json_digest([weights, output_fields(model.preprocessing), names, architecture, texts.model_dump()])
    license = license_of_model(parse_repository(name).repo, revision) if revision else None
    entry = Input(ref=name, digest=identity, weights_sha256=weights, revision=revision, license=license, texts=texts)
    return Classifier(network, model.preprocessing, names), entry

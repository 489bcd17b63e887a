"""The settings that suit given images and a machine: every number that `nst init` writes is chosen here, with its reason."""

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nst_data.errors import NstError
from nst_train.presets import PRESETS
from nst_train.starting.looking import TINY_PX

# Both are EfficientNets with batch norm, the kind the settings were measured on; Apache-2.0, with safetensors on the Hub.
CPU_NETWORK = "tf_efficientnet_lite0.in1k"  # 4.7 million weights, no squeeze-excite: the fastest EfficientNet on CPUs
GPU_NETWORK = "tf_efficientnetv2_s.in21k_ft_in1k"  # 21 million weights; designed for fast training, pretrained on ImageNet-21k: 84% top-1
MEASURED_BATCH, MEASURED_STEPS = 16, 210  # for which the learning rate of the preset `pretrained` is tuned
_CPU_SIDE_PX, _TINY_SIDE_PX = 160, 96
_MIN_RATE_SHARE = 1 / 4  # with more steps, a lower rate finds a better network (benchmarks/results/image_folder.md)
_STEP_PX = 32  # side lengths that networks of this kind divide evenly
_TIMEOUT_SECONDS = 4
_IMAGE_BYTES, _IMAGE_PX = 150e6, 300  # per image in a training step of GPU_NETWORK: 38 GB for 256 (benchmarks/results/gpu.md)
_SHARE_OF_GPU = 0.85  # the rest is used by the display, or lost to fragmentation


@dataclass(frozen=True)
class NetworkFacts:
    """What determines the settings of a network; `side_px` is None if its own size is not known before it is loaded."""

    side_px: int | None
    test_px: int | None
    is_fixed: bool  # accepts images of its own size only
    suits_vit_preset: bool | None  # finetuned at the low rates of a vision transformer; None if the kind of network is not known


@dataclass(frozen=True)
class StudentNumbers:
    """The settings of a student that depend on images and machine; a size of None keeps the network's own."""

    image_size: int | None
    test_size: int | None
    steps: int
    batch_size: int
    ratio: int


def choose_numbers(n_labeled: int, side_px: int, facts: NetworkFacts, on_gpu: bool) -> StudentNumbers:
    """Sizes, steps and batch size for `n_labeled` images whose shorter side is `side_px` (0: not known).

    Measured (benchmarks/results/image_folder.md): 200 labeled photographs on a CPU, EfficientNet-Lite0: 160 px, 130 steps of 16 + 48. From
    there, steps grow with the square root of the number of labels, since more labels support more steps and each student also sees more of
    the pool; a batch never exceeds the number of labeled images. A GPU processes about 20 times as many images per second: four times the
    steps at twice the batch size, at the network's own size.
    """
    batch = min(2 * MEASURED_BATCH if on_gpu else MEASURED_BATCH, max(1, n_labeled))
    min_steps = 520 if on_gpu else 130
    steps = min(20 * min_steps, max(min_steps, 10 * round(min_steps / 10 * math.sqrt(n_labeled / 200))))
    return StudentNumbers(*_sides(side_px, facts, on_gpu), steps, batch, 3)


def _sides(side_px: int, facts: NetworkFacts, on_gpu: bool) -> tuple[int | None, int | None]:
    """Side length in training, and in testing about 1.2 times that (FixRes), since random crops magnify objects."""
    if facts.side_px is None or facts.is_fixed:
        return None, None
    if side_px and side_px < TINY_PX:
        side = min(_TINY_SIDE_PX, facts.side_px)
    elif on_gpu:
        return None, (facts.test_px if facts.test_px != facts.side_px else None)
    else:
        side = min(_CPU_SIDE_PX, facts.side_px)
    return side, max(side, _STEP_PX * round(1.2 * side / _STEP_PX))


def choose_selection(n_pool: int, classes: int, is_similar: bool) -> dict[str, Any]:
    """Which pseudo-labels to select: all, as measured, if the pool resembles the labeled images; else the most confident of each class."""
    return {"min_confidence": 0, "per_class": "none"} if is_similar else {"min_confidence": 0.3, "per_class": max(1, n_pool // classes)}


def student_settings(numbers: StudentNumbers, facts: NetworkFacts) -> dict[str, Any]:
    """The settings of a student besides its network: a preset, with overrides that depend on images and machine.

    AdamW's learning rate grows with the square root of the batch size. More steps than the preset was measured with get a lower rate.
    """
    sizes = {name: size for name, size in (("image_size", numbers.image_size), ("test_size", numbers.test_size)) if size}
    preset = "pretrained" if facts.suits_vit_preset is False else "pretrained-vit"  # too low a rate does less harm than too high a one
    rate = published = PRESETS[preset].values["learning_rate"]
    rate *= math.sqrt(MEASURED_BATCH / max(MEASURED_BATCH, numbers.batch_size))
    if preset == "pretrained":
        rate *= max(_MIN_RATE_SHARE, min(1, MEASURED_STEPS / numbers.steps))
    counts = {"steps": numbers.steps, "batch_size": numbers.batch_size, "ratio": numbers.ratio}
    return {"preset": preset} | sizes | counts | ({"learning_rate": float(f"{rate:.2g}")} if rate < published else {})


def step_bytes(numbers: StudentNumbers, facts: NetworkFacts) -> float:
    """Approximate GPU memory of a step of `GPU_NETWORK`."""
    side = numbers.image_size or facts.side_px or _IMAGE_PX
    return numbers.batch_size * (1 + numbers.ratio) * _IMAGE_BYTES * (side / _IMAGE_PX) ** 2


def fit_to_memory(numbers: StudentNumbers, facts: NetworkFacts, gpu_bytes: int) -> dict[str, Any]:
    """The `accumulate` that lets a GPU with `gpu_bytes` of memory compute a step of `GPU_NETWORK`; empty if the whole step fits."""
    needed_bytes, usable_bytes = step_bytes(numbers, facts), _SHARE_OF_GPU * gpu_bytes
    equal = (parts for parts in range(1, numbers.batch_size) if numbers.batch_size % parts == 0)
    accumulate = next((parts for parts in equal if needed_bytes / parts <= usable_bytes), numbers.batch_size)
    return {"accumulate": accumulate} if accumulate > 1 else {}


def fit_to_network(student: dict[str, Any], classes: int) -> dict[str, Any]:
    """Changes to a student's settings that its network requires. Raises NstError if no change makes it accept them."""
    from nst_train.networks.outline import create_outline, has_layer_groups
    from nst_train.settings import TrainSettings

    undropped = {"noise": {"stochastic_depth": 0}}
    try:
        network, changes = create_outline(TrainSettings.model_validate(student), classes), dict[str, Any]()
    except NstError:
        network, changes = create_outline(TrainSettings.model_validate(student | undropped), classes), undropped
    if network is None:
        return undropped  # every network accepts this
    return changes if has_layer_groups(network) else changes | {"layer_decay": None}


def supports_probe(model: str, classes: int) -> bool:
    """Whether a network ends in one linear layer, which a probe fits; also where that is not known before it is loaded."""
    from nst_train.features.backbone import last_layer
    from nst_train.networks.outline import create_outline
    from nst_train.noise_settings import Noise
    from nst_train.settings import TrainSettings

    network = create_outline(TrainSettings(model=model, noise=Noise.none()), classes)
    try:
        return network is None or last_layer(network, classes, model) is not None
    except NstError:
        return False


def fit_to_machine(student: dict[str, Any], classes: int) -> dict[str, Any]:
    """Precision and threads, if others than the defaults are clearly faster on this CPU in a few timed steps of a student.

    They affect rounding only. Empty if the network cannot be created without its weights.
    """
    from nst_train.networks.weights import local_name
    from nst_train.settings import TrainSettings
    from nst_train.starting.faster import faster_settings

    if (model := local_name(student["model"])) is None:
        return {}  # only the Hub knows its architecture
    try:
        return faster_settings(TrainSettings.model_validate(student | {"model": model}), classes)
    except NstError:
        return {}


def network_facts(model: str) -> NetworkFacts:
    """What is known about a network without its weights. Raises NstError if it cannot be created."""
    import timm

    from nst_train.networks.model_config import is_timm_config, read_config
    from nst_train.networks.outline import create_outline, suits_vit_preset
    from nst_train.networks.weights import FOLDER
    from nst_train.noise_settings import Noise
    from nst_train.settings import TrainSettings

    network = create_outline(TrainSettings(model=model, noise=Noise.none()), 2)
    suits_vit = None if network is None else suits_vit_preset(network)
    if model.startswith(FOLDER):
        config = read_config(model, Path(model.removeprefix(FOLDER)))
        saved_cfg = config.get("pretrained_cfg", config)
        if not is_timm_config(config) or not isinstance(saved_cfg, dict):
            return NetworkFacts(None, None, True, suits_vit)
        size, tested, fixed = saved_cfg.get("input_size"), saved_cfg.get("test_input_size"), bool(saved_cfg.get("fixed_input_size"))
    elif "/" in model:
        return NetworkFacts(None, None, True, suits_vit)
    else:
        pretrained_cfg = timm.models.get_pretrained_cfg(model, allow_unregistered=True)
        size, tested, fixed = pretrained_cfg.input_size, pretrained_cfg.test_input_size, pretrained_cfg.fixed_input_size
    sides = [int(shape[-1]) if isinstance(shape, list | tuple) else None for shape in (size, tested)]
    return NetworkFacts(sides[0], sides[1], fixed, suits_vit)


def fetch_config(model: str) -> None:
    """Cache the config.json of a network on the Hub, if the Hub can be reached: a kilobyte that tells the kind of network."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import is_offline_mode

    from nst_data.hub.errors import translate_hub_errors
    from nst_train.networks.weights import CONFIG, FOLDER, cached_folder, parse_repository

    if "/" not in model or model.startswith(FOLDER) or is_offline_mode() or cached_folder(model):
        return
    reference = parse_repository(model)
    with suppress(NstError), translate_hub_errors(model, "model"):  # missing models are reported by `check_weights_available`
        hf_hub_download(reference.repo, CONFIG, revision=reference.revision, etag_timeout=_TIMEOUT_SECONDS)


def why_unavailable(model: str) -> str:
    """Why a network's published weights are neither in the cache nor, queried once with a short timeout, on the Hub; empty if they are.

    Raises NstError if the Hub answers that the repository or revision does not exist, or that this user has no access to it.
    """
    import timm
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    from nst_data.hub.errors import translate_hub_errors
    from nst_train.networks.weights import WEIGHTS, local_name, parse_repository

    if local_name(model) is None:
        reference = parse_repository(model)
        repo, revision = reference.repo, reference.revision
    elif "/" in model:
        return ""
    else:
        config, revision = timm.models.get_pretrained_cfg(model), None
        if config is None or not config.hf_hub_id:
            return "timm publishes none"
        repo = config.hf_hub_id if "/" in config.hf_hub_id else f"timm/{config.hf_hub_id}"
        if isinstance(try_to_load_from_cache(repo, WEIGHTS), str):
            return ""
    if is_offline_mode():
        return "they are not in the cache, and HF_HUB_OFFLINE is set"
    try:
        HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT_SECONDS)
    except (RepositoryNotFoundError, RevisionNotFoundError):  # a gated repository raises a subclass of the first
        with translate_hub_errors(model, "model"):
            raise
    except Exception as error:  # whatever the client raises, it means that there is no answer
        return f"they are not in the cache, and the Hub does not answer ({type(error).__name__})"
    return ""


def check_weights_available(model: str, is_default: bool) -> str:
    """A warning if a network that the user named has no weights here. Raises NstError if it is the default network."""
    try:
        reason = why_unavailable(model)
    except NstError:
        if not is_default:
            raise
        reason = "the Hub has no such repository, or this user no access to it"
    if not reason:
        return ""
    if is_default:
        raise NstError(
            f"{model}: the weights of the default network are not available: {reason}; name another network with `model`, such as "
            "local-dir:FOLDER (config.json and model.safetensors of timm or transformers), or this one to fetch it later"
        )
    return f"{model}: its weights are not available now: {reason}; they must be there when the recipe runs"

"""Load classifiers by name, with preprocessing and class names: from the store, timm, transformers, folders and the Hub.

Weights are read from safetensors only, and no code that comes with a model is run.
"""

import copy
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
from jaxtyping import Float
from pydantic import ValidationError
from safetensors import SafetensorError
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import Tensor, nn

from nst_data.errors import NstError, UsageError
from nst_data.sources import match_classes
from nst_data.store.inputs import Input, by_numbered_role
from nst_data.store.manifest import DERIVED_SETTINGS, HEADS, NETWORK_NOISE, json_digest
from nst_data.store.store import Store
from nst_train.classifiers.classifier import Classifier, output_fields, weights_sha256
from nst_train.classifiers.lineage import teacher_input
from nst_train.classifiers.noised_teacher import TeacherNoise
from nst_train.classifiers.zero_shot import is_zero_shot, load_zero_shot
from nst_train.networks.model_config import (
    check_config,
    check_is_classifier,
    is_image_text,
    is_timm_config,
    read_config,
)
from nst_train.networks.models import check_network_name
from nst_train.networks.network_noise import NoiseMode
from nst_train.networks.probe import NETWORK_ERRORS, check_forward_pass
from nst_train.networks.transformers_networks import TransformersClassifier, load_trained
from nst_train.networks.weights import (
    COMBINED_PROCESSOR_FILE,
    CONFIG,
    FOLDER,
    PROCESSOR_FILE,
    describe_load_error,
    download,
    license_of_model,
    parse_repository,
    published_repository,
    published_weights,
    require_safetensors,
)
from nst_train.noise_settings import TransformKind
from nst_train.settings import TrainSettings
from nst_train.teacher_names import TeacherName, is_in_store
from nst_train.transforms.preprocessing import Preprocessing, ProcessorPreprocessing, TimmPreprocessing
from nst_train.zero_shot_settings import ZeroShot

_EARLIER_MODE = NoiseMode(each_use=False, every_head=False)
_ENSEMBLE_ADVICE = "Use teachers with the same classes, or set the same label_names (timm) or id2label (transformers) in config.json"


@dataclass(frozen=True)
class Teacher:
    """One classifier or an ensemble with averaged probabilities; `columns` reorder a member's classes to those of the first."""

    members: tuple[Classifier, ...]
    columns: tuple[Tensor | None, ...]
    noise: TeacherNoise | None = None

    @classmethod
    def from_members(cls, *members: Classifier) -> "Teacher":
        """Build a teacher from its members. Raises NstError if they do not have the same classes."""
        names = members[0].class_names
        columns: list[Tensor | None] = [None]
        for number, member in enumerate(members[1:], start=2):
            order = np.argsort(match_classes(member.class_names, names, f"teacher {number} of the ensemble", advice=_ENSEMBLE_ADVICE))
            columns.append(None if (order == range(len(names))).all() else torch.from_numpy(order))
        return cls(members, tuple(columns))

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of the probabilities."""
        return self.members[0].class_names

    @property
    def preprocessings(self) -> list[Preprocessing]:
        """The distinct preprocessings of the members."""
        distinct: list[Preprocessing] = []
        for member in self.members:
            if member.preprocessing not in distinct:
                distinct.append(member.preprocessing)
        return distinct

    @property
    def parameters(self) -> int:
        """Number of weights of the largest member."""
        return max(member.parameters for member in self.members)

    def log_probs(self, logits: Sequence[Float[Tensor, "batch classes"]], temperature: float = 1.0) -> Float[Tensor, "batch classes"]:
        """The log of the members' mean probability at a temperature, in float32, from the logits of each member.

        The temperature applies to the ensemble as a whole: it divides the log of the mean, or the logits of a single teacher.
        """
        if len(self.members) == 1:
            return torch.log_softmax(logits[0].float() / temperature, dim=1)
        probs = [
            of_member.float().softmax(dim=1) if columns is None else of_member.float().softmax(dim=1)[:, columns.to(of_member.device)]
            for of_member, columns in zip(logits, self.columns, strict=True)
        ]
        mean = torch.stack(probs).mean(dim=0).log()
        return mean if temperature == 1 else torch.log_softmax(mean / temperature, dim=1)


def load_teacher(
    names: Sequence[TeacherName],
    store: Store,
    exact: bool = False,
    noise_seed: int | None = None,
    noise_transform: TransformKind = "training",
) -> tuple[Teacher, dict[str, Input]]:
    """Load a teacher or an ensemble, with the lineage entry of each member: `teacher`, or `teacher_1`, `teacher_2`, ...

    With `noise_seed` it is noised as in its training if that is known, else as in the paper.
    """
    trained, mode = (None, _EARLIER_MODE) if noise_seed is None else _find_training_settings(names, store, noise_transform)
    loaded = [load_classifier(name, store, exact, trained.noise.stochastic_depth if trained else 0.0) for name in names]
    teacher = Teacher.from_members(*(classifier for classifier, _ in loaded))
    if trained is not None and noise_seed is not None:
        for member in teacher.members:  # on a copy, to fail before any work is done
            TeacherNoise(trained, noise_seed, noise_transform, mode).add_to(copy.deepcopy(member.network), len(teacher.class_names))
        teacher = replace(teacher, noise=TeacherNoise(trained, noise_seed, noise_transform, mode))
    return teacher, by_numbered_role("teacher", [entry for _, entry in loaded])


def _find_training_settings(names: Sequence[TeacherName], store: Store, transform: TransformKind) -> tuple[TrainSettings, NoiseMode]:
    """The settings and the mode to noise a teacher with; those of earlier versions of nst for a teacher outside the store."""
    name = names[0]
    if len(names) > 1 or isinstance(name, ZeroShot) or not is_in_store(name, store):
        return TrainSettings(model=str(name), preset="efficientnet-b7" if transform == "training" else None), _EARLIER_MODE
    version = store.open(name, "teacher")
    settings = version.manifest.request.settings
    try:
        recorded = {name: value for name, value in settings.items() if name not in DERIVED_SETTINGS}
        return TrainSettings.from_request(recorded | {"noise": settings["noise"]}), NoiseMode(NETWORK_NOISE in settings, HEADS in settings)
    except (KeyError, ValidationError, UsageError):
        raise NstError(f"{version.ref}: its manifest does not record the noise of its training; remove `noise`") from None


def with_class_names(
    names: Sequence[str], store: Store, class_names: str, prompts: str | None, allow_unused: bool = False
) -> list[TeacherName]:
    """Give the image-text models among the named teachers their class names and prompts, each read from a file.

    Raises UsageError if none is an image-text model; with `allow_unused`, since class names then serve another purpose too, only if there
    are prompts.
    """
    teachers: list[TeacherName] = []
    for name in names:
        accepts_class_names = not is_in_store(name, store) and is_zero_shot(name)
        teachers.append(ZeroShot(model=name, class_names=class_names, prompts=prompts) if accepts_class_names else name)
    if not any(isinstance(teacher, ZeroShot) for teacher in teachers) and not (allow_unused and prompts is None):
        option = f"`class_names` {class_names}" if prompts is None else f"`prompts` {prompts}"
        raise UsageError(f"{option}: for image-text models such as CLIP or SigLIP, and {', '.join(names)} is not one; remove it")
    return teachers


def load_classifier(name: TeacherName, store: Store, exact: bool = False, stochastic_depth: float = 0.0) -> tuple[Classifier, Input]:
    """Load a classifier by name, with its entry in the lineage of what it labels.

    The name is that of a teacher in the store, local-dir:FOLDER, hf-hub:OWNER/NAME[@REVISION], a timm name with published weights, or
    OWNER/NAME[@REVISION] of a transformers classifier; or it is an image-text model with class names. With `exact`, images are prepared by
    Pillow, as the teacher's own code does. With `stochastic_depth`, a timm network has blocks that can be skipped. Raises NstError for a
    network that is not a classifier of RGB images; before this returns, it has classified one.
    """
    if isinstance(name, ZeroShot):
        return load_zero_shot(name, exact)
    if is_in_store(name, store):
        version = store.open(name, "teacher")
        classifier = _load_folder(name, version.folder, exact, version.manifest.class_names, stochastic_depth)
        return classifier, teacher_input(name, store)
    check_network_name(name, [version.ref for version in store.versions() if version.is_readable and version.manifest.kind == "teacher"])
    revision, architecture = None, name.partition(".")[0]
    if name.startswith(FOLDER) or "/" in name:
        folder, revision = (Path(name.removeprefix(FOLDER)), None) if name.startswith(FOLDER) else download(name)
        classifier = _load_folder(name, folder, exact, None, stochastic_depth)
        architecture = (folder / CONFIG).read_text("utf-8")  # with arguments that do not show in the weights, such as the activation
    else:
        network, revision = _create_published(name, stochastic_depth)
        classifier = _timm_classifier(network, exact)
        _check_forward_pass(name, classifier)
    weights = weights_sha256(classifier.network)
    identity = json_digest([weights, output_fields(classifier.preprocessing), classifier.class_names, architecture])
    repo = None if revision is None else parse_repository(name).repo if "/" in name else published_repository(name)
    license = license_of_model(repo, revision) if repo and revision else None
    return classifier, Input(ref=name, digest=identity, weights_sha256=weights, revision=revision, license=license)


def _load_folder(name: str, folder: Path, exact: bool, class_names: list[str] | None, stochastic_depth: float) -> Classifier:
    """Load a classifier from a folder in timm's or transformers' format; its config.json says which."""
    config = read_config(name, folder)
    if is_image_text(config):
        raise UsageError(f"{name}: an image-text model has no classes of its own; give it their names with `class_names` FILE")
    if is_timm_config(config):
        require_safetensors(name, folder)
    check_config(name, folder, config)
    try:
        if is_timm_config(config):
            options = _drop_path_options(stochastic_depth)
            classifier = _timm_classifier(timm.create_model(f"{FOLDER}{folder}", pretrained=True, **options), exact, class_names)
        else:
            classifier = _transformers_classifier(name, folder, exact, class_names)
    except NstError as error:
        raise NstError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None
    except (*NETWORK_ERRORS, OSError, ImportError, SafetensorError) as error:
        raise NstError(f"{name}: expected a network with trained weights; loading failed ({describe_load_error(error)})") from None
    _check_forward_pass(name, classifier)
    return classifier


def _check_forward_pass(name: str, classifier: Classifier) -> None:
    try:
        check_forward_pass(classifier.network, classifier.preprocessing, classifier.class_names)
    except NstError as error:
        raise NstError(f"{name}: {error}") from None


def _timm_classifier(network: nn.Module, exact: bool, class_names: list[str] | None = None) -> Classifier:
    preprocessing = TimmPreprocessing.from_data_config(resolve_model_data_config(network), exact)
    return Classifier(network.eval(), preprocessing, class_names or _timm_class_names(network))


def _transformers_classifier(name: str, folder: Path, exact: bool, class_names: list[str] | None = None) -> Classifier:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    if not any((folder / file).is_file() for file in (PROCESSOR_FILE, COMBINED_PROCESSOR_FILE)):
        raise NstError(
            f"{PROCESSOR_FILE} is missing, which says how its images are prepared; save the image processor that it was trained with "
            "there, "
            "by `save_pretrained`"
        )
    network = load_trained(AutoModelForImageClassification, folder, "classifier")
    check_is_classifier(name, network.config)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    names = class_names or _disambiguate_names([str(network.config.id2label[index]) for index in range(int(network.config.num_labels))])
    return Classifier(TransformersClassifier(network), ProcessorPreprocessing(processor.to_json_string(), processor, exact), names)


def _check_label_names(names: object, classes: int) -> list[str]:
    """Class names from a config. Raises NstError unless there is one non-empty string for each class."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name.strip() for name in names):
        raise NstError(f"label_names: expected a list of {classes} non-empty strings, found {str(names)[:80]}")
    if len(names) != classes:
        raise NstError(f"label_names: expected one for each of its {classes} classes, found {len(names)} ({', '.join(names[:5])})")
    return list(names)


def _disambiguate_names(names: list[str]) -> list[str]:
    """Append the class index to names that stand for several classes, such as ImageNet's two cranes."""
    classes = Counter(names)
    distinct_names = [f"{name} ({index})" if classes[name] > 1 else name for index, name in enumerate(names)]
    if len(set(distinct_names)) < len(names) or not all(name.strip() for name in names):
        raise NstError(f"expected unique, non-empty class names, found {', '.join(map(repr, names[:10]))}")
    return distinct_names


def _drop_path_options(stochastic_depth: float) -> dict[str, float]:
    return {"drop_path_rate": stochastic_depth} if stochastic_depth else {}


def _create_published(name: str, stochastic_depth: float = 0.0) -> tuple[nn.Module, str]:
    """Create a timm network with the weights that timm publishes on the Hub; also returns their commit."""
    weights, _ = published_weights(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}, **_drop_path_options(stochastic_depth)
        )
    return network, weights.parent.name


def _timm_class_names(network: nn.Module) -> list[str]:
    names = network.pretrained_cfg.get("label_names")  # type: ignore[union-attr, operator]
    if names:
        return _disambiguate_names(_check_label_names(names, int(network.num_classes)))  # type: ignore[arg-type]
    subset = infer_imagenet_subset(network)
    if subset:
        return list(ImageNetInfo(subset).label_names())
    return [str(index) for index in range(int(network.num_classes))]  # type: ignore[arg-type]

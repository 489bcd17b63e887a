"""Keys of a recipe that cannot have an effect; each is rejected with its reason. Imports no torch."""

from collections.abc import Iterator
from typing import Any

from nst_train.evaluation_settings import CORRUPTED, PGD
from nst_train.noise_settings import INPUT_NOISE_SETTINGS
from nst_train.presets import PRESETS
from nst_train.recipes.recipe import Network, Recipe
from nst_train.settings import (
    AUGMENTATION_SETTINGS,
    LABEL_NOISE_SETTINGS,
    PROBE_SETTINGS,
    PSEUDO_LABEL_SETTINGS,
    LabelSettings,
    TrainSettings,
)

Place = tuple[str | int, ...]


def dead_keys(content: dict[str, Any], recipe: Recipe) -> Iterator[tuple[Place, str]]:
    """The place of each such key, such as ("generations", 0, "ratio"), and why it has no effect.

    `content` is the content of the YAML file that `recipe` was made from: only written keys whose value is not the default are reported.
    """
    for network in recipe.networks:
        yield from _dead_network_keys(network, content)
    for key in ("class_names", "label_column"):
        if content["pool"].get(key) is not None:
            yield ("pool", key), "pool labels are not read"
    for key in LABEL_NOISE_SETTINGS:
        if key in (content.get("label") or {}) and not recipe.label.noise and getattr(recipe.label, key) != getattr(LabelSettings(), key):
            yield ("label", key), "it is of labeling noise, which is off (set `noise: true`)"
    evaluate = content.get("evaluate") or []
    for index, written in enumerate(evaluate if isinstance(evaluate, list) else [evaluate]):
        place: Place = ("evaluate", index) if isinstance(evaluate, list) else ("evaluate",)
        entry = recipe.evaluate[index]
        if "seed" in written and entry.seed and CORRUPTED not in entry.suite and not (PGD in entry.suite and entry.random_start):
            yield (*place, "seed"), "it seeds corruptions and pgd's random starts, neither of which is requested"
    push_to = content.get("push_to") or {}
    if push_to.get("pool_source") is not None and push_to.get("corpus") is None:
        yield ("push_to", "pool_source"), "it is for the corpus card, and no `corpus:` is pushed"


def idle_first_keys(recipe: Recipe) -> list[str]:
    """The pseudo-label settings of generation 0, other than its preset's; often an anchor shares them with the students."""
    if recipe.teacher is not None:
        return []
    first = recipe.generations[0]
    of_preset = PRESETS[first.preset].values if first.preset else {}
    return [key for key in PSEUDO_LABEL_SETTINGS if _is_set(first, key) and getattr(first, key) != of_preset.get(key)]


def _dead_network_keys(network: Network, content: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    place, settings, written = network.place, network.settings, network.written_in(content)
    yield from _dead_probe_keys(place, written, settings)
    finetune = written.get("finetune")
    yield from _dead_freezing_keys(place, written, settings)
    if not finetune or settings.finetune is None:
        return
    yield from _dead_freezing_keys((*place, "finetune"), finetune, settings.finetune)
    yield from _dead_probe_keys((*place, "finetune"), finetune, settings.finetune)
    if settings.finetune.transform == "evaluation":
        noise = finetune.get("noise") or {}
        augmentations: list[Place] = [(name,) for name in AUGMENTATION_SETTINGS if finetune.get(name)]
        augmentations += [("noise", name) for name in INPUT_NOISE_SETTINGS if noise.get(name)]
        for augmentation in augmentations:
            yield (*place, "finetune", *augmentation), "finetuning is on un-augmented images (set `transform: training` to augment them)"
    for key in PSEUDO_LABEL_SETTINGS:
        if key in finetune and _is_set(settings.finetune, key):
            yield (*place, "finetune", key), "it applies to pseudo-labels, and finetuning uses labeled images only"
    for key in ("start", "pretrained"):
        if finetune.get(key):
            yield (*place, "finetune", key), "finetuning always starts from the preceding training's weights"
    if settings.finetune.model != settings.model:
        yield (*place, "finetune", "model"), f"finetuning keeps the network of the preceding training, {settings.model}"


def _dead_probe_keys(place: Place, written: dict[str, Any], settings: TrainSettings) -> Iterator[tuple[Place, str]]:
    for key in written if settings.probe else ():
        if key in TrainSettings.model_fields and key not in PROBE_SETTINGS and _is_set(settings, key):
            yield (*place, key), "`probe` fits only the last layer"


def _dead_freezing_keys(place: Place, written: dict[str, Any], settings: TrainSettings) -> Iterator[tuple[Place, str]]:
    if "freeze_by" in written and _is_set(settings, "freeze_by") and not settings.freeze:
        yield (*place, "freeze_by"), "nothing is frozen (set `freeze`)"


def _is_set(settings: TrainSettings, key: str) -> bool:
    return bool(getattr(settings, key) != TrainSettings.model_fields[key].default)

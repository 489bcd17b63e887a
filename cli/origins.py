"""Where each setting of a training run comes from, and what follows from all of them. Does not import torch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from nst_data.settings import Settings
from nst_train.noise_settings import INPUT_NOISE_SETTINGS, RANDAUGMENT_SETTINGS
from nst_train.presets import DEFAULT_SOURCES, PRESETS, PUBLISHED_ALTERNATIVES
from nst_train.settings import AUGMENTATION_SETTINGS, STAIRCASE_SETTINGS, TrainSettings
from nst_train.training.schedule import Schedule, equivalent_labeled_images


def setting_origins(
    settings: Settings, user_values: Mapping[str, Any], describe_origin: Callable[[str], str], prefix: str = ""
) -> dict[str, tuple[Any, str]]:
    """Each setting by its path, such as `noise.dropout`, prefixed with `prefix`: (value, where it comes from).

    `user_values` holds what the user wrote, in dictionaries nested like the settings; `describe_origin` says where a setting was written:
    in an option or a recipe.
    """
    preset = settings.preset if isinstance(settings, TrainSettings) else None
    published = PRESETS[preset].published if preset else {}
    written = set(_flat_paths(user_values, prefix))
    by_place = {}
    unused = _unused_settings(settings) if isinstance(settings, TrainSettings) else {}
    for place, value in _flat_values(settings, prefix):
        if place in unused:
            origin = unused[place]
        elif any(place == key or place.startswith(f"{key}.") or key.startswith(f"{place}.") for key in written):
            origin = describe_origin(place)
        elif place in published and published[place][0] == value:
            origin = f"preset {preset} ({published[place][1]})"
        else:
            origin = _default_origin(place)
        by_place[place] = (value, origin)
    return by_place


def _unused_settings(settings: TrainSettings) -> dict[str, str]:
    """Settings that are not read because of another one, with the reason."""
    if settings.transform == "evaluation":
        places = [*AUGMENTATION_SETTINGS, *(f"noise.{name}" for name in INPUT_NOISE_SETTINGS)]
        unused = dict.fromkeys(places, "not used with transform evaluation")
    else:
        replaced = RANDAUGMENT_SETTINGS if settings.noise.augmentation else ()
        unused = dict.fromkeys([f"noise.{name}" for name in replaced], "not used with noise.augmentation")
    if settings.steps:
        unused |= dict.fromkeys(("epochs", "schedule_epochs"), "not used with steps")
    if settings.warmup_steps is not None:
        unused["warmup_epochs"] = "not used with warmup_steps"
    if settings.schedule == "cosine":
        unused |= dict.fromkeys(STAIRCASE_SETTINGS, "not used with schedule cosine")
    return unused


def _default_origin(path: str) -> str:
    if path in PUBLISHED_ALTERNATIVES:
        value, source = PUBLISHED_ALTERNATIVES[path]
        return f"default ({source} has {value})"
    return f"default ({DEFAULT_SOURCES[path]})" if path in DEFAULT_SOURCES else "default"


def derive_values(settings: TrainSettings, labeled_images: int | None, entries: int | None, student: bool) -> dict[str, Any]:
    """What follows from the settings: images per step, learning rate, steps; what depends on images is None if none are given.

    `entries` is the number of pseudo-labeled entries in an edition; a `student` is trained on both kinds, or on pseudo-labels only.
    """
    is_alone = labeled_images is None and entries is not None
    pseudo = settings.batch_size * settings.ratio if student else 0
    labeled = 0 if student and (settings.pseudo_only or is_alone) else settings.batch_size
    counted = equivalent_labeled_images(entries, settings) if is_alone and entries else labeled_images
    schedule = Schedule.of(settings, counted or settings.batch_size)
    steps = schedule.steps if counted or settings.steps else None
    return {
        "labeled_images_per_step": labeled,
        "pseudo_labeled_images_per_step": pseudo,
        "images_per_step": labeled + pseudo,
        "peak_learning_rate": schedule.max_learning_rate,
        "epochs_between_decays": None if settings.schedule == "cosine" else schedule.decay_steps / schedule.steps_per_epoch,
        "labeled_images": labeled_images,
        "steps": steps,
        "pseudo_labeled_entries": entries,
        "passes_over_entries": steps * pseudo / entries if steps and entries else None,
    }


def _flat_values(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _flat_values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _flat_paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat_paths(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"

"""Where each setting of a training run comes from, and what follows from all of them. Does not import torch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from nst_data.settings import Settings
from nst_train.noise_settings import INPUT_NOISE, OF_RANDAUGMENT
from nst_train.presets import DEFAULTS_PUBLISHED, PRESETS, PUBLISHED_INSTEAD
from nst_train.settings import OF_AUGMENTATION, OF_STAIRCASE, TrainSettings
from nst_train.training.schedule import Schedule, images_that_count


def origins(settings: Settings, given: Mapping[str, Any], named: Callable[[str], str], outer: str = "") -> dict[str, tuple[Any, str]]:
    """Each setting by its path, such as `noise.dropout`, prefixed with `outer`: (value, where it comes from).

    `given` holds what the user wrote, in dictionaries nested like the settings; `named` says where a setting was written: in an option or
    a recipe.
    """
    preset = settings.preset if isinstance(settings, TrainSettings) else None
    published = PRESETS[preset].published if preset else {}
    written = set(_places(given, outer))
    by_place = {}
    unread = _unread(settings) if isinstance(settings, TrainSettings) else {}
    for place, value in _values(settings, outer):
        if place in unread:
            origin = unread[place]
        elif any(place == key or place.startswith(f"{key}.") or key.startswith(f"{place}.") for key in written):
            origin = named(place)
        elif place in published and published[place][0] == value:
            origin = f"preset {preset} ({published[place][1]})"
        else:
            origin = _of_default(place)
        by_place[place] = (value, origin)
    return by_place


def _unread(settings: TrainSettings) -> dict[str, str]:
    """Settings that are not read because of another one, with the reason."""
    if settings.transform == "evaluation":
        places = [*OF_AUGMENTATION, *(f"noise.{name}" for name in INPUT_NOISE)]
        unread = dict.fromkeys(places, "not used with transform evaluation")
    else:
        replaced = OF_RANDAUGMENT if settings.noise.augmentation else ()
        unread = dict.fromkeys([f"noise.{name}" for name in replaced], "not used with noise.augmentation")
    if settings.steps:
        unread |= dict.fromkeys(("epochs", "schedule_epochs"), "not used with steps")
    if settings.warmup_steps is not None:
        unread["warmup_epochs"] = "not used with warmup_steps"
    if settings.schedule == "cosine":
        unread |= dict.fromkeys(OF_STAIRCASE, "not used with schedule cosine")
    return unread


def _of_default(place: str) -> str:
    if place in PUBLISHED_INSTEAD:
        value, source = PUBLISHED_INSTEAD[place]
        return f"default ({source} has {value})"
    return f"default ({DEFAULTS_PUBLISHED[place]})" if place in DEFAULTS_PUBLISHED else "default"


def consequences(settings: TrainSettings, labeled_images: int | None, entries: int | None, student: bool) -> dict[str, Any]:
    """What follows from the settings: images per step, learning rate, steps; what depends on images is None if none are given.

    `entries` is the number of pseudo-labeled entries in an edition; a `student` is trained on both kinds, or on pseudo-labels only.
    """
    is_alone = labeled_images is None and entries is not None
    pseudo = settings.batch_size * settings.ratio if student else 0
    labeled = 0 if student and (settings.pseudo_only or is_alone) else settings.batch_size
    counted = images_that_count(entries, settings) if is_alone and entries else labeled_images
    schedule = Schedule.of(settings, counted or settings.batch_size)
    steps = schedule.steps if counted or settings.steps else None
    return {
        "labeled_images_per_step": labeled,
        "pseudo_labeled_images_per_step": pseudo,
        "images_per_step": labeled + pseudo,
        "peak_learning_rate": schedule.highest,
        "epochs_between_decays": None if settings.schedule == "cosine" else schedule.decay_steps / schedule.steps_per_epoch,
        "labeled_images": labeled_images,
        "steps": steps,
        "pseudo_labeled_entries": entries,
        "passes_over_entries": steps * pseudo / entries if steps and entries else None,
    }


def _values(settings: BaseModel, outer: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _values(value, f"{outer}{name}.")
        else:
            yield f"{outer}{name}", value


def _places(given: Mapping[str, Any], outer: str = "") -> Iterator[str]:
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _places(value, f"{outer}{name}.")
        else:
            yield f"{outer}{name}"

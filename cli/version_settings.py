"""The settings of a version in readable form: all of them, even if its manifest omits them, and what defaults stand for."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nst_data.progress import escape_unprintable
from nst_data.settings import AdoptSettings, BalanceSettings, Settings, later_fields
from nst_data.store.inputs import EditionInputs, GenerationInputs

if TYPE_CHECKING:
    from nst_data.store.manifest import Manifest, Request

_DEFAULT = re.compile(r"(?:by default|default:) (.+?)(?:;|\.(?:\s|$)|$)", re.IGNORECASE)
_DEPENDS_ON = {"freeze_by": "freeze", "noise_transform": "noise"}  # settings that have no effect without another one


def version_settings(manifest: "Manifest") -> list[tuple[str, str]]:
    """Each setting as (name, value in words)."""
    values, model = manifest.request.settings, _settings_model(manifest.request)
    return [(name, _format_setting(name, value, model)) for name, value in _with_later_settings(values, model)]


def _settings_model(request: "Request") -> type[Settings] | None:
    """The settings class of a request; None for a linear probe, whose other settings are not read, and for a review."""
    from nst_train.settings import LabelSettings, TrainSettings

    match request.inputs:
        case GenerationInputs(adopted=adopted):
            return LabelSettings if adopted is None else AdoptSettings
        case EditionInputs(like=like):
            return BalanceSettings if like is None else LabelSettings
    return TrainSettings if request.kind == "teacher" and not request.settings.get("probe") else None


def _with_later_settings(values: Mapping[str, Any], model: type[Settings] | None) -> Iterator[tuple[str, Any]]:
    """Yield settings in order, including those that nst added later, with the value that matches its earlier behavior."""
    later = later_fields(model) if model else {}
    names = [*(name for name in model.model_fields if name in values or name in later), *values] if model else [*values]
    for name in dict.fromkeys(names):
        if name in values:
            yield name, values[name]
        elif name not in _DEPENDS_ON or values.get(_DEPENDS_ON[name]):
            yield name, later[name]


def _format_setting(name: str, value: Any, model: type[Settings] | None) -> str:  # noqa: ANN401 - a value of a manifest
    field = model.model_fields.get(name) if model else None
    inner = field.annotation if field else None
    if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, Settings):
        parts = [
            (key, _format_setting(key, nested, inner))
            for key, nested in _with_later_settings(value, inner)
            if name != "pseudo_noise" or nested is not None
        ]
        return ", ".join(f"{escape_unprintable(key)} {text}" for key, text in parts) or (
            "as of labeled images" if name == "pseudo_noise" else "none"
        )
    if value is None and field and (default := _DEFAULT.search(field.description or "")):
        return default[1]
    return format_value(value)


def format_value(value: Any) -> str:  # noqa: ANN401 - a value of a manifest
    """A value in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{escape_unprintable(key)} {format_value(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(format_value, value)) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escape_unprintable(str(value))

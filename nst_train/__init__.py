"""Models: training, labeling and evaluating with torch, timm and Accelerate.

In all functions, the objects of the action come first: the store, names and versions, sources, settings; the rest is keyword-only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nst_train.classifiers.export import ExportedNetwork, export_network
    from nst_train.evaluation.evaluate import evaluate
    from nst_train.evaluation_settings import EvaluateSettings
    from nst_train.features.embed import embed
    from nst_train.features.picking import pick
    from nst_train.labeling.label import extend, label, label_like
    from nst_train.networks.own_networks import register_network
    from nst_train.noise_settings import Noise
    from nst_train.noisy_student import self_training
    from nst_train.recipes.finished_run import Generation
    from nst_train.recipes.reading import load_recipe
    from nst_train.recipes.recipe import Recipe
    from nst_train.settings import (
        EmbedRunSettings,
        EmbedSettings,
        LabelRunSettings,
        LabelSettings,
        ReadSettings,
        RunSettings,
        TrainSettings,
    )
    from nst_train.training.train import train
    from nst_train.zero_shot_settings import ZeroShot

    __version__: str

__all__ = [
    "EmbedRunSettings",
    "EmbedSettings",
    "EvaluateSettings",
    "ExportedNetwork",
    "Generation",
    "LabelRunSettings",
    "LabelSettings",
    "Noise",
    "ReadSettings",
    "Recipe",
    "RunSettings",
    "TrainSettings",
    "ZeroShot",
    "__version__",
    "embed",
    "evaluate",
    "export_network",
    "extend",
    "label",
    "label_like",
    "load_recipe",
    "pick",
    "register_network",
    "self_training",
    "train",
]

_MODULES = {
    "EmbedRunSettings": "settings",
    "EmbedSettings": "settings",
    "EvaluateSettings": "evaluation_settings",
    "ExportedNetwork": "classifiers.export",
    "Generation": "recipes.finished_run",
    "LabelRunSettings": "settings",
    "LabelSettings": "settings",
    "Noise": "noise_settings",
    "ReadSettings": "settings",
    "Recipe": "recipes.recipe",
    "RunSettings": "settings",
    "TrainSettings": "settings",
    "ZeroShot": "zero_shot_settings",
    "embed": "features.embed",
    "evaluate": "evaluation.evaluate",
    "export_network": "classifiers.export",
    "extend": "labeling.label",
    "label": "labeling.label",
    "label_like": "labeling.label",
    "load_recipe": "recipes.reading",
    "pick": "features.picking",
    "register_network": "networks.own_networks",
    "self_training": "noisy_student",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - what the name stands for, imported when it is first used
    if name == "__version__":
        from importlib.metadata import version

        return version("nst")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    if name == "EvaluateSettings":
        value.model_rebuild()  # deferred for `nst --help`; until then, `help()` shows no settings
    return value


def __dir__() -> list[str]:
    return __all__

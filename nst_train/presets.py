"""Named settings: published ones from the paper (arXiv 1911.04252) and, where its text is silent, from the released code; and nst's own
for finetuning pretrained networks, `pretrained` and `pretrained-vit`, as measured on photographs and as is usual in the field.

A preset of the paper follows the text; with the suffix `-code` it follows the released code (google-research/noisystudent) where the
two differ: the loss is mean + ratio x mean, the batch has 4096 labeled images instead of 2048, and B0 and B1 are trained without
RandAugment.

The networks are timm's `tf_` ones: their padding and batch-norm epsilon are those of the released TensorFlow code, and the weights that
timm publishes for them are the paper's. Their padding costs time (a step of B0 took 1.1 to 1.3 times as long on a CPU core); any other
network, such as `efficientnet_b7`, can be named in addition to a preset.

Not part of a preset: which images are selected (`nst balance`); for L2, the finetuning at a larger size, which is a second training
(`finetune`, examples/imagenet.yaml). Imports no torch.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TEXT, SIZES, OTHERS, CODE = "section 3.1", "section 3.2", "section A.3", "released code"
MEASURED, USUAL, OF_BEIT = "measured on photographs", "usual in finetuning", "as BEiT is finetuned"  # nst's own, not the paper's
Published = dict[str, tuple[Any, str]]


@dataclass(frozen=True)
class Preset:
    """Settings of a training by their place in TrainSettings, such as `noise.dropout`: each value with its source."""

    summary: str
    published: Mapping[str, tuple[Any, str]]

    @property
    def values(self) -> dict[str, Any]:
        """The values as TrainSettings accepts them, with those of the noise in a nested dictionary."""
        values: dict[str, Any] = {}
        for place, (value, _) in self.published.items():
            *outer, name = place.split(".")
            section = values
            for key in outer:
                section = section.setdefault(key, {})
            section[name] = value
        return values


# Common to all. `decay_epochs` is left out, so that it follows the epochs: 2.4 of 350, 4.8 of 700 (3.1).
_COMMON: Published = {
    "batch_size": (2048, TEXT),
    "optimizer": ("rmsproptf", CODE),  # with decay 0.9 and epsilon 0.001
    "momentum": (0.9, CODE),
    "weight_decay": (1e-5, CODE),
    "weight_decay_on": ("all", CODE),
    "learning_rate": (0.016, TEXT),  # per 256 images: 0.128 for 2048
    "warmup_epochs": (5, CODE),
    "decay_rate": (0.97, TEXT),
    "label_smoothing": (0.1, CODE),
    "loss": ("concat", TEXT),
    "ema_decay": (0.9999, CODE),
    "batch_norm_decay": (0.99, CODE),
    "flip": (0.5, CODE),
    "crop_scale_min": (0.08, CODE),
    "crop_draw": ("released", CODE),
    "noise.amounts": ("released", CODE),
}
_CODE: Published = {"loss": ("code", CODE), "batch_size": (4096, CODE)}  # 109,474 steps of 4096 are its 350 epochs of ImageNet
_NO_RANDAUGMENT: Published = {"noise.operations": (0, CODE), "noise.magnitude": (0, CODE)}

# Training size in pixels, epochs (3.1), ratio (3.2; L2: 3.1), dropout and magnitude (B7 and L2: 3.1; others: released code).
# Top-1 of a student on ImageNet, in percent: with its own kind as teacher, and with L2 (table 9).
_EFFICIENTNETS: dict[str, tuple[int, int, int, float, int, float, float]] = {
    #      size epochs ratio dropout magnitude top-1
    "b0": (224, 700, 1, 0.2, 6, 78.1, 78.8),  # 3.2 has RandAugment on every network, and no magnitude for B0 and B1; the released
    "b1": (240, 700, 3, 0.2, 6, 80.2, 81.5),  # code has none on these two: the magnitude is the least published one, B2's
    "b2": (260, 700, 3, 0.3, 6, 81.1, 82.4),
    "b3": (300, 700, 3, 0.3, 12, 82.5, 84.1),
    "b4": (380, 700, 3, 0.4, 15, 84.4, 85.3),
    "b5": (456, 350, 3, 0.4, 18, 85.1, 86.1),
    "b6": (528, 350, 3, 0.5, 24, 85.9, 86.4),
    "b7": (600, 350, 3, 0.5, 27, 86.4, 86.9),
}
_L2_TOP1 = "ImageNet top-1 87.6% taught by B7, then 88.1%, and 88.4% with ratio 28, at 800 pixels after finetuning (table 7)"


def _efficientnet_values(kind: str, size: int, epochs: int, ratio: int, dropout: float, magnitude: int) -> Published:
    of_noise = TEXT if kind in ("b7", "l2") else CODE
    return _COMMON | {
        "model": (f"tf_efficientnet_{kind}", TEXT),
        "image_size": (size, "table 8" if kind in ("b7", "l2") else CODE),
        "epochs": (epochs, TEXT),
        "ratio": (ratio, TEXT if kind == "l2" else SIZES),
        "noise.operations": (2, of_noise),
        "noise.magnitude": (magnitude, "that of B2" if kind in ("b0", "b1") else of_noise),
        "noise.dropout": (dropout, of_noise),
        "noise.stochastic_depth": (0.2, of_noise),  # survival 0.8 at the last layer, linear decay
    }


# For tens to hundreds of labeled photographs per class and ImageNet weights (benchmarks/results/image_folder.md). It sets everything it
# needs, whatever the defaults are, except the network and its image size.
_PRETRAINED: Published = {
    "pretrained": (True, USUAL),  # unless `start` is named
    "head_init": ("zero", USUAL),
    "steps": (130, MEASURED),
    "batch_size": (16, MEASURED),
    "ratio": (3, MEASURED),
    "optimizer": ("adamw", USUAL),
    "momentum": (0.9, USUAL),
    "learning_rate": (0.032, MEASURED),  # per 256 labeled images: 0.002 for 16
    "warmup_steps": (12, USUAL),
    "schedule": ("cosine", USUAL),
    "layer_decay": (0.9, MEASURED),
    "weight_decay": (0.05, USUAL),
    "weight_decay_on": ("weights", USUAL),
    "label_smoothing": (0, MEASURED),
    "loss": ("concat", MEASURED),
    "hard": (False, MEASURED),
    "pseudo_temperature": (0.7, MEASURED),
    "ema_decay": (0.98, MEASURED),  # an average over some 50 steps
    "freeze_batch_norm": (True, MEASURED),  # its statistics come from a million images, those of a step from 64
    "flip": (0.5, USUAL),
    "crop_scale_min": (0.4, MEASURED),
    "crop_pct": (1.0, MEASURED),
    "crop_draw": ("torchvision", MEASURED),
    "noise.magnitude": (7, MEASURED),
    "noise.operations": (1, MEASURED),
    "noise.amounts": ("scaled", MEASURED),
    "noise.dropout": (0.2, MEASURED),
    "noise.stochastic_depth": (0.1, MEASURED),
}
# Vision transformers: where their finetuning differs. BEiT's rate is 0.001 for 256 images in a step, of which one in four is labeled.
_PRETRAINED_VIT: Published = {
    place: (value, "as preset pretrained" if where == MEASURED else where)
    for place, (value, where) in _PRETRAINED.items()
    if place != "freeze_batch_norm"
} | {
    "learning_rate": (0.004, OF_BEIT),  # per 256 labeled images: 0.00025 for 16 and 48 pseudo-labeled ones
    "layer_decay": (0.75, OF_BEIT),
    "noise.dropout": (0, OF_BEIT),
    "noise.stochastic_depth": (0.1, OF_BEIT),
}


def _build_presets() -> dict[str, Preset]:
    summary = "nst's own, not the paper's: finetunes published weights, or those of `start`, on some hundred photographs"
    presets = {"pretrained": Preset(summary, _PRETRAINED), "pretrained-vit": Preset(f"{summary}; a vision transformer", _PRETRAINED_VIT)}
    for kind, (size, epochs, ratio, dropout, magnitude, own_top1, l2_top1) in _EFFICIENTNETS.items():
        published = _efficientnet_values(kind, size, epochs, ratio, dropout, magnitude)
        top1 = f"ImageNet top-1 {own_top1}% taught by its own kind, {l2_top1}% by L2 (table 9)"
        presets[f"efficientnet-{kind}"] = Preset(f"sections 3.1 and 3.2; {top1}", published)
        of_code = published | _CODE | (_NO_RANDAUGMENT if kind in ("b0", "b1") else {})
        presets[f"efficientnet-{kind}-code"] = Preset("released code, `imagenet/train.sh`", of_code)
    presets["efficientnet-l2"] = Preset(f"section 3.1; {_L2_TOP1}", _efficientnet_values("l2", 475, 350, 14, 0.5, 27))
    # A.3 gives the network and the magnitude; the rest is section 3.1's, with 350 epochs as for networks larger than B4.
    presets["resnet-50"] = Preset(
        "section A.3; ImageNet top-1 78.9%, its teacher 77.6% (table 16)",
        {place: entry for place, entry in _COMMON.items() if place != "batch_norm_decay"}  # the released code's is for its EfficientNets
        | {
            "model": ("resnet50", OTHERS),
            "image_size": (224, "tables 4 and 5"),
            "crop_pct": (0.875, CODE),  # 224 of 256 pixels; timm's own networks of this name ask for more
            "epochs": (350, TEXT),
            "ratio": (3, SIZES),
            "noise.operations": (2, TEXT),
            "noise.magnitude": (9, OTHERS),
            "noise.dropout": (0, OTHERS),  # "RandAugment with the magnitude set to 9 as the noise"
            "noise.stochastic_depth": (0, OTHERS),
        },
    )
    # A.3 gives the network and its strides. The schedule has 109,474 steps of 128 over 69,257 labeled images; its learning rate falls
    # by 0.97 as often as it takes to get from 0.016 to 0.0002 per 256 images in all epochs but 5:
    # every (202.3286 - 5) / (ln(0.0002 / 0.016) / ln 0.97).
    svhn = {place: entry for place, entry in _COMMON.items() if not place.startswith("crop_")} | {
        "model": ("tf_efficientnet_b0_32", OTHERS),
        "image_size": (32, OTHERS),
        "epochs": (202.3286, CODE),
        "decay_epochs": (1.37162, CODE),
        "batch_size": (128, CODE),
        "ratio": (5, CODE),
        "weight_decay": (1e-4, CODE),
        "flip": (0, CODE),
        "crop_padding": (4, CODE),
        "noise.cutout": (16, CODE),
        "noise.operations": (2, CODE),
        "noise.magnitude": (5, CODE),
        "noise.dropout": (0.2, CODE),
        "noise.stochastic_depth": (0.2, CODE),
    }
    presets["svhn"] = Preset("section A.3; SVHN accuracy 98.6%, its teacher 98.1% (table 17)", svhn)
    of_code = svhn | {"loss": ("code", CODE)}
    presets["svhn-code"] = Preset("released code, `svhn/run.sh`; SVHN accuracy 98.6 +- 0.1%, its teacher 97.9%", of_code)
    return presets


PRESETS = _build_presets()
ENABLED_BY_PRESETS = frozenset(name for one in PRESETS.values() for name, value in one.values.items() if value is True)  # by some preset

# Where the defaults of TrainSettings are published; the others are nst's own.
DEFAULT_SOURCES = {place: where for place, (_, where) in _COMMON.items()} | {
    "epochs": TEXT,
    "decay_epochs": TEXT,
    "hard": "section 2",
    "pseudo_temperature": CODE,
    **{f"noise.{name}": TEXT for name in ("operations", "magnitude", "dropout", "stochastic_depth")},
    **{f"select.{name}": TEXT for name in ("min_confidence", "per_class")},
}

# Defaults that are not the paper's, or not for every network: what is published instead, and where. `select` belongs to recipes.
PUBLISHED_ALTERNATIVES: Mapping[str, tuple[str, str]] = {
    "select.by": ("EfficientNet-B0", TEXT),
    "select.when": ("once", TEXT),
    "ratio": ("3; 1 for EfficientNet-B0, 14 for L2", SIZES),
    "epochs": ("350; 700 for EfficientNet-B0 to B4", TEXT),
    "batch_norm_decay": ("0.99", CODE),
    "crop_draw": ("released", CODE),
    "noise.magnitude": ("27; EfficientNet-B2 to B6: 6, 12, 15, 18, 24", CODE),
    "noise.amounts": ("released", CODE),
    "noise.dropout": ("0.5; EfficientNet-B0 to B5: 0.2, 0.2, 0.3, 0.3, 0.4, 0.4", CODE),
}


def check_preset(name: str | None) -> str | None:
    """The name of a preset, or None. Raises ValueError, suggesting similar names, if there is no such preset."""
    if name is None or name in PRESETS:
        return name
    similar = difflib.get_close_matches(name, PRESETS, n=2)
    if similar:
        raise ValueError(f"expected a preset (did you mean {' or '.join(similar)}?)")
    paper_presets = [preset for preset in PRESETS if not preset.startswith("pretrained") and not preset.endswith("-code")]
    raise ValueError(f"expected a preset: pretrained, pretrained-vit, or of the paper {', '.join(paper_presets)}, some also with -code")

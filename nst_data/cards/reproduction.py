"""The command that reproduces a version, with every setting that affected it."""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from nst_data.cards.described import Described
from nst_data.cards.published import Published, is_local, place_of, public_setting
from nst_data.store.inputs import EditionInputs, GenerationInputs, Input, ReviewInputs, TeacherInputs, is_of_model
from nst_data.store.manifest import ANONYMOUS, BESIDE_SETTINGS, EditionManifest

_WIDTH = 120
_THRESHOLDS = "class_min_confidence"
_ON_BY_RULE = ("channels_last",)  # on by default, so they have to be switched off explicitly
MOMENTUM = 0.9  # the default; these timm optimizers ignore it, and `nst train` says so if it is given
WITHOUT_MOMENTUM = frozenset(
    {
        *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamp", "adamw", "adan", "adanw", "adopt", "adoptw"),
        *("lamb", "lambw", "lion", "nadam", "nadamw", "novograd", "radam", "radamw"),
    }
)
_OF_PSEUDO_LABELS = re.compile(r"ratio|loss|hard|pseudo_.*")  # rejected by `nst train` without pseudo-labels
_OF_ZERO_SHOT = ("--class-names", "class-names.yaml", "--prompts", "prompts.txt")
_HELD_OUT = re.compile(r"all but holdout (?P<share>[\d.e+-]+), seed (?P<seed>\d+)")
_VERSIONS = ("edition", "generation", "like", "extended", "reviews")  # roles of inputs that are versions
_OPTIONS = {"start": "start_from"}  # command-line names of settings whose own names are taken


def command(described: Described, published: Published | None = None) -> str:
    """The command lines. In public, local inputs become placeholders in capitals, and inputs on the Hub are pulled first."""
    request, name = described.manifest.request, described.target.parent.name
    sources, inputs, with_pseudo = _Sources(described, published), request.inputs, True
    match inputs:
        case TeacherInputs():
            verb, with_pseudo = "train", inputs.edition is not None
            words = [*sources.labeled, *sources.option("--pseudo", "edition"), *sources.option("--pool", "pool")]
            words += [*sources.option("--reviews", "reviews"), *sources.exclude]
            words += [*sources.option("--validation", "validation"), "--name", name]
            words += _columns(inputs.labeled, inputs.labeled)
        case GenerationInputs(extended=Input()):
            return _lines([*sources.pulls, _wrapped(["nst", "label", sources["pool"], "--extend", sources["extended"]])])
        case GenerationInputs(adopted=Input() as adopted):
            verb, words = "adopt", [*(sources[role] for role in inputs.adopted_tables), "--corpus", name]
            words += sources.option("--pool", "pool") if request.key or inputs.pool.ref != adopted.ref else []
            words += [
                *sources.option("--class-names", "class_names"),
                *sources.option("--teacher", "teacher"),
                *_columns(inputs.pool, None),
            ]
        case GenerationInputs():
            verb, words = "label", [sources["pool"], *sources.teachers, "--corpus", name, *sources.option("--calibrate", "calibration")]
            words += _columns(inputs.pool, inputs.calibration)
        case EditionInputs(like=Input()):
            verb, words = "label", [*([sources["pool"]] if published else []), "--like", sources["like"], *sources.teachers]
        case ReviewInputs():
            return ""
        case _:
            verb, words = "balance", [sources["generation"], *sources.exclude, *sources.option("--reviews", "reviews")]
    options = _options(request.spelled_out, with_pseudo, in_public=published is not None)
    part = inputs.labeled.part if isinstance(inputs, TeacherInputs) and inputs.labeled else None
    if isinstance(inputs, GenerationInputs | EditionInputs) and any(one.texts for one in inputs.teachers.values()):
        words += [*_OF_ZERO_SHOT]
    held_out = _HELD_OUT.fullmatch(part) if part else None
    words += ["--holdout", held_out["share"], "--holdout-seed", held_out["seed"]] if held_out else []
    about = ["# the words in these files are in nst.json: `texts` of the teacher"] if _OF_ZERO_SHOT[0] in words else []
    return _lines([*about, *sources.pulls, _wrapped(["nst", verb, *words, *options])])


def _columns(of_images: Input | None, of_labels: Input | None) -> list[str]:
    """The column options that were given, for the sources they apply to."""
    image_column, label_column = of_images and of_images.image_column, of_labels and of_labels.label_column
    return [*(["--image-column", image_column] if image_column else []), *(["--label-column", label_column] if label_column else [])]


def thresholds(described: Described) -> str | None:
    """The YAML file from which the command reads per-class thresholds; None if there are none."""
    selection = described.manifest.request.selection if isinstance(described.manifest, EditionManifest) else None
    if selection is None or not selection.class_min_confidence:
        return None
    quoted = {name: yaml.safe_dump(name, default_style='"', width=2**30).strip() for name in selection.class_min_confidence}
    return "".join(f"{quoted[name]}: {least}\n" for name, least in selection.class_min_confidence.items()).replace("<", r"\x3C")


class _Sources:
    """The inputs as named by the command: their original references or, in public, where others find them."""

    def __init__(self, described: Described, published: Published | None) -> None:
        self._inputs, self._published = described.inputs, published
        self.pulls: list[str] = []

    def __getitem__(self, role: str) -> str:
        """The argument for an input. A corpus on the Hub is first pulled under its local name."""
        one = self._inputs.by_role.get(role)
        if one is None:
            return role.upper()
        if self._published is None:
            return one.ref
        place = place_of(role, one, self._published)
        if place and place.kind == "model":
            return f"hf-hub:{place.repo}" + (f"@{place.revision}" if place.revision else "")
        if place and role in self._published.links:
            name, _, number = one.ref.partition("@")
            if role in _VERSIONS and number:
                self.pulls.append(_wrapped(["nst", "pull", f"{place.repo}@{place.revision}", "--as", name]))
                return one.ref
            return f"{place.repo}@{place.revision}" if place.revision else place.repo
        if one.ref.startswith("local-dir:"):
            return f"local-dir:{role.upper()}"
        return role.upper() if _is_here_alone(one.ref, role) else one.ref

    @property
    def labeled(self) -> list[str]:
        """One option per source that was joined; none if there were no labeled images."""
        entry = self._inputs.by_role.get("labeled")
        if entry is None and "edition" in self._inputs.by_role:
            return []  # trained on the edition only
        if entry is None or not entry.sources:
            return ["--labeled", self["labeled"]]
        local = [_is_here_alone(one, "labeled") and self._published is not None for one in entry.sources]
        named = [f"LABELED_{place}" if hidden else one for place, (one, hidden) in enumerate(zip(entry.sources, local, strict=True), 1)]
        return [word for one in named for word in ("--labeled", one)]

    def option(self, name: str, role: str) -> list[str]:
        return [name, self[role]] if role in self._inputs.by_role else []

    @property
    def teachers(self) -> list[str]:
        roles = [*self._inputs.teachers] or ["teacher"]
        return [word for role in roles for word in ("--teacher", self[role])]

    @property
    def exclude(self) -> list[str]:
        """One option per excluded source, except the holdout that `nst train --holdout` excludes automatically if there are reviews."""
        labeled, excluded = self._inputs.by_role.get("labeled"), list(self._inputs.excluded)
        if labeled and labeled.part:
            held_out = [role for role in excluded if self._inputs.excluded[role].ref == labeled.ref]
            excluded = [role for role in excluded if role not in held_out[:1]]
        return [word for role in excluded for word in ("--exclude", self[role])]


def _is_here_alone(ref: str, role: str) -> bool:
    """Whether others cannot open it: a path or, once it is published, its last part. Versions and models are named as they are."""
    return is_local(ref) or ("/" not in ref and role not in _VERSIONS and not is_of_model(role))


def _options(settings: Mapping[str, Any], with_pseudo: bool, in_public: bool, prefix: str = "") -> Iterator[str]:
    """Each setting as an option, except settings that are off, none or empty."""
    for key, value in settings.items():
        if key in _ON_BY_RULE and value is False:
            yield f"--no-{key.replace('_', '-')}"
        if (
            value is None
            or value is False
            or value in ({}, [], "")
            or key in (ANONYMOUS, *BESIDE_SETTINGS)
            or (not with_pseudo and _OF_PSEUDO_LABELS.fullmatch(key))
            or (key == "momentum" and value == MOMENTUM and settings.get("optimizer") in WITHOUT_MOMENTUM)
        ):
            continue
        option = "--" + _OPTIONS.get(prefix + key, prefix + key).replace("_", "-")
        if key == _THRESHOLDS:
            yield from (option, "thresholds.yaml")
        elif isinstance(value, dict):  # `noise` fields use their own names, `pseudo_noise` fields the prefix --pseudo-
            yield from _options(value, with_pseudo, in_public, key.removesuffix("noise"))
        elif value is True:
            yield option
        elif isinstance(value, list) and all(isinstance(one, int | float) for one in value):
            yield from (option, *map(str, value))
        elif isinstance(value, list):
            yield from (word for one in value for word in (option, str(one)))
        else:
            shown = str(public_setting(key, value) if in_public else value)
            yield from (option, f"local-dir:{shown}" if shown != value and str(value).startswith("local-dir:") else shown)


def _wrapped(words: list[str]) -> str:
    """Wrap a command, keeping options and their values on one line.

    A word that cannot be shown in a code block becomes the placeholder NAME.
    """
    groups: list[str] = []
    for index, word in enumerate(words):
        plain = word if word.isprintable() and "<!--" not in word and len(word) < 1000 else "NAME"
        quoted = shlex.quote(plain)
        if index > 2 and plain.startswith("--"):
            groups.append(quoted)
        elif groups:
            groups[-1] += f" {quoted}"
        else:
            groups = [quoted]
    lines = [""]
    for group in groups:
        if lines[-1] and len(lines[-1]) + len(group) > _WIDTH:
            lines[-1] += " \\"
            lines.append(f"    {group}")
        else:
            lines[-1] += f" {group}" if lines[-1] else group
    return "\n".join(lines)


def _lines(commands: list[str]) -> str:
    return "\n".join(commands)

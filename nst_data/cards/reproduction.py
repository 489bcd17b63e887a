"""The command that reproduces a version, with every setting that affected it."""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from nst_data.cards.described import Described
from nst_data.cards.published import Published, is_local, place_of, public_setting
from nst_data.store.inputs import EditionInputs, GenerationInputs, Input, ReviewInputs, TeacherInputs, is_model_role
from nst_data.store.manifest import ANONYMOUS, DERIVED_SETTINGS, EditionManifest

_WIDTH = 120
_THRESHOLDS = "class_min_confidence"
_ON_BY_DEFAULT = ("channels_last",)  # on by default, so they have to be switched off explicitly
MOMENTUM = 0.9  # the default; these timm optimizers ignore it, and `nst train` says so if it is given
WITHOUT_MOMENTUM = frozenset(
    {
        *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamp", "adamw", "adan", "adanw", "adopt", "adoptw"),
        *("lamb", "lambw", "lion", "nadam", "nadamw", "novograd", "radam", "radamw"),
    }
)
_PSEUDO_LABEL_SETTINGS = re.compile(r"ratio|loss|hard|pseudo_.*")  # rejected by `nst train` without pseudo-labels
_ZERO_SHOT_OPTIONS = ("--class-names", "class-names.yaml", "--prompts", "prompts.txt")
_HELD_OUT = re.compile(r"all but holdout (?P<share>[\d.e+-]+), seed (?P<seed>\d+)")
_VERSION_ROLES = ("edition", "generation", "like", "extended", "reviews")  # roles of inputs that are versions
_OPTION_NAMES = {"start": "start_from"}  # command-line names of settings whose own names are taken


def reproduction_command(described: Described, published: Published | None = None) -> str:
    """The command lines. In public, local inputs become placeholders in capitals, and inputs on the Hub are pulled first."""
    request, name = described.manifest.request, described.target.parent.name
    sources, inputs, with_pseudo = _Sources(described, published), request.inputs, True
    match inputs:
        case TeacherInputs():
            verb, with_pseudo = "train", inputs.edition is not None
            tokens = [*sources.labeled_options, *sources.option("--pseudo", "edition"), *sources.option("--pool", "pool")]
            tokens += [*sources.option("--reviews", "reviews"), *sources.exclude_options]
            tokens += [*sources.option("--validation", "validation"), "--name", name]
            tokens += _column_options(inputs.labeled, inputs.labeled)
        case GenerationInputs(extended=Input()):
            return _join_lines([*sources.pulls, _wrap_command(["nst", "label", sources["pool"], "--extend", sources["extended"]])])
        case GenerationInputs(adopted=Input() as adopted):
            verb, tokens = "adopt", [*(sources[role] for role in inputs.adopted_tables), "--corpus", name]
            tokens += sources.option("--pool", "pool") if request.key or inputs.pool.ref != adopted.ref else []
            tokens += [
                *sources.option("--class-names", "class_names"),
                *sources.option("--teacher", "teacher"),
                *_column_options(inputs.pool, None),
            ]
        case GenerationInputs():
            verb, tokens = (
                "label",
                [sources["pool"], *sources.teacher_options, "--corpus", name, *sources.option("--calibrate", "calibration")],
            )
            tokens += _column_options(inputs.pool, inputs.calibration)
        case EditionInputs(like=Input()):
            verb, tokens = "label", [*([sources["pool"]] if published else []), "--like", sources["like"], *sources.teacher_options]
        case ReviewInputs():
            return ""
        case _:
            verb, tokens = "balance", [sources["generation"], *sources.exclude_options, *sources.option("--reviews", "reviews")]
    options = _options(request.full_settings, with_pseudo, in_public=published is not None)
    part = inputs.labeled.part if isinstance(inputs, TeacherInputs) and inputs.labeled else None
    if isinstance(inputs, GenerationInputs | EditionInputs) and any(teacher.texts for teacher in inputs.teachers.values()):
        tokens += [*_ZERO_SHOT_OPTIONS]
    held_out = _HELD_OUT.fullmatch(part) if part else None
    tokens += ["--holdout", held_out["share"], "--holdout-seed", held_out["seed"]] if held_out else []
    comments = ["# the words in these files are in nst.json: `texts` of the teacher"] if _ZERO_SHOT_OPTIONS[0] in tokens else []
    return _join_lines([*comments, *sources.pulls, _wrap_command(["nst", verb, *tokens, *options])])


def _column_options(image_input: Input | None, label_input: Input | None) -> list[str]:
    """The column options that were given, for the sources they apply to."""
    image_column, label_column = image_input and image_input.image_column, label_input and label_input.label_column
    return [*(["--image-column", image_column] if image_column else []), *(["--label-column", label_column] if label_column else [])]


def thresholds_yaml(described: Described) -> str | None:
    """The YAML file from which the command reads per-class thresholds; None if there are none."""
    selection = described.manifest.request.selection if isinstance(described.manifest, EditionManifest) else None
    if selection is None or not selection.class_min_confidence:
        return None
    quoted = {name: yaml.safe_dump(name, default_style='"', width=2**30).strip() for name in selection.class_min_confidence}
    return "".join(f"{quoted[name]}: {threshold}\n" for name, threshold in selection.class_min_confidence.items()).replace("<", r"\x3C")


class _Sources:
    """The inputs as named by the command: their original references or, in public, where others find them."""

    def __init__(self, described: Described, published: Published | None) -> None:
        self._inputs, self._published = described.inputs, published
        self.pulls: list[str] = []

    def __getitem__(self, role: str) -> str:
        """The argument for an input. A corpus on the Hub is first pulled under its local name."""
        entry = self._inputs.by_role.get(role)
        if entry is None:
            return role.upper()
        if self._published is None:
            return entry.ref
        place = place_of(role, entry, self._published)
        if place and place.kind == "model":
            return f"hf-hub:{place.repo}" + (f"@{place.revision}" if place.revision else "")
        if place and role in self._published.links:
            name, _, number = entry.ref.partition("@")
            if role in _VERSION_ROLES and number:
                self.pulls.append(_wrap_command(["nst", "pull", f"{place.repo}@{place.revision}", "--as", name]))
                return entry.ref
            return f"{place.repo}@{place.revision}" if place.revision else place.repo
        if entry.ref.startswith("local-dir:"):
            return f"local-dir:{role.upper()}"
        return role.upper() if _is_local_only(entry.ref, role) else entry.ref

    @property
    def labeled_options(self) -> list[str]:
        """One option per source that was joined; none if there were no labeled images."""
        entry = self._inputs.by_role.get("labeled")
        if entry is None and "edition" in self._inputs.by_role:
            return []  # trained on the edition only
        if entry is None or not entry.sources:
            return ["--labeled", self["labeled"]]
        local = [_is_local_only(source, "labeled") and self._published is not None for source in entry.sources]
        shown_sources = [
            f"LABELED_{place}" if hidden else source for place, (source, hidden) in enumerate(zip(entry.sources, local, strict=True), 1)
        ]
        return [token for source in shown_sources for token in ("--labeled", source)]

    def option(self, name: str, role: str) -> list[str]:
        return [name, self[role]] if role in self._inputs.by_role else []

    @property
    def teacher_options(self) -> list[str]:
        roles = [*self._inputs.teachers] or ["teacher"]
        return [token for role in roles for token in ("--teacher", self[role])]

    @property
    def exclude_options(self) -> list[str]:
        """One option per excluded source, except the holdout that `nst train --holdout` excludes automatically if there are reviews."""
        labeled, excluded = self._inputs.by_role.get("labeled"), list(self._inputs.excluded)
        if labeled and labeled.part:
            held_out = [role for role in excluded if self._inputs.excluded[role].ref == labeled.ref]
            excluded = [role for role in excluded if role not in held_out[:1]]
        return [token for role in excluded for token in ("--exclude", self[role])]


def _is_local_only(ref: str, role: str) -> bool:
    """Whether others cannot open it: a path or, once it is published, its last part. Versions and models are named as they are."""
    return is_local(ref) or ("/" not in ref and role not in _VERSION_ROLES and not is_model_role(role))


def _options(settings: Mapping[str, Any], with_pseudo: bool, in_public: bool, prefix: str = "") -> Iterator[str]:
    """Each setting as an option, except settings that are off, none or empty."""
    for key, value in settings.items():
        if key in _ON_BY_DEFAULT and value is False:
            yield f"--no-{key.replace('_', '-')}"
        if (
            value is None
            or value is False
            or value in ({}, [], "")
            or key in (ANONYMOUS, *DERIVED_SETTINGS)
            or (not with_pseudo and _PSEUDO_LABEL_SETTINGS.fullmatch(key))
            or (key == "momentum" and value == MOMENTUM and settings.get("optimizer") in WITHOUT_MOMENTUM)
        ):
            continue
        option = "--" + _OPTION_NAMES.get(prefix + key, prefix + key).replace("_", "-")
        if key == _THRESHOLDS:
            yield from (option, "thresholds.yaml")
        elif isinstance(value, dict):  # `noise` fields use their own names, `pseudo_noise` fields the prefix --pseudo-
            yield from _options(value, with_pseudo, in_public, key.removesuffix("noise"))
        elif value is True:
            yield option
        elif isinstance(value, list) and all(isinstance(item, int | float) for item in value):
            yield from (option, *map(str, value))
        elif isinstance(value, list):
            yield from (token for item in value for token in (option, str(item)))
        else:
            text = str(public_setting(key, value) if in_public else value)
            yield from (option, f"local-dir:{text}" if text != value and str(value).startswith("local-dir:") else text)


def _wrap_command(tokens: list[str]) -> str:
    """Wrap a command, keeping options and their values on one line.

    A word that cannot be shown in a code block becomes the placeholder NAME.
    """
    groups: list[str] = []
    for index, token in enumerate(tokens):
        plain = token if token.isprintable() and "<!--" not in token and len(token) < 1000 else "NAME"
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


def _join_lines(commands: list[str]) -> str:
    return "\n".join(commands)

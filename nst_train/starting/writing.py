"""A commented recipe for what a user has: `nst init`."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nst_data.errors import UsageError
from nst_data.prefetch import cpus_of_this_process
from nst_data.sources.addresses import is_address
from nst_data.store.store import check_name
from nst_train.recipes.reading import parse_recipe
from nst_train.recipes.schema import MODELINE, write_schema
from nst_train.settings import default_workers
from nst_train.starting.choosing import (
    CPU_NETWORK,
    GPU_NETWORK,
    MEASURED_BATCH,
    MEASURED_STEPS,
    NetworkFacts,
    StudentNumbers,
    check_weights_available,
    choose_numbers,
    choose_selection,
    fetch_config,
    fit_to_machine,
    fit_to_memory,
    fit_to_network,
    network_facts,
    step_bytes,
    student_settings,
    supports_probe,
)
from nst_train.starting.looking import Inventory, check_is_folder, format_count, inspect_sources, likely_problems, pool_resembles_labeled

_ROLES = ("labeled", "test", "validation", "pool")
_COMMENTS_AT = 44  # longer lines do not push the comments of all others to the right
_MAX_PARENTS = 2  # parent folders that a relative path may climb


@dataclass(frozen=True)
class WrittenRecipe:
    """A recipe that was written, and what was found on the way; `has_schema`: its JSON schema is in the same folder."""

    path: Path
    inventory: Inventory
    network: str
    device: str
    warnings: list[str]
    has_schema: bool


def write_new_recipe(
    photos: Path | str | None,
    output: Path | str,
    *,
    labeled: str | None = None,
    pool: str | None = None,
    test: str | None = None,
    validation: str | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    class_names: str | None = None,
    model: str | None = None,
    name: str | None = None,
) -> WrittenRecipe:
    """Look at a user's images and write a recipe for them that gives the reason for each value.

    Args:
        photos: A folder with labeled/ and unlabeled/ in it, and test/ and validation/ if there are such images; None if all are named.
        output: The path of the recipe. Existing files are never overwritten.
        labeled: Another source of labeled images.
        pool: Another source of unlabeled images.
        test: Another source of test images; if there are none, a share of the labeled ones is held out.
        validation: Another source of validation images.
        label_column: The label column of the labeled images, and of test and validation images that have it.
        image_column: The image column of the labeled images, and of other images that have it.
        class_names: A file with names of integer labels, for the same images.
        model: The network, instead of the one that suits the device.
        name: The name of the recipe; by default that of its file.

    Returns:
        The path of the recipe, and likely problems of the images.

    Raises:
        UsageError: `output` exists already, or a source is missing.
        NstError: `photos` is not a folder, the images do not make a recipe, or the weights of the default network are not available.
    """
    if photos is not None:
        check_is_folder(Path(photos))
    path = Path(output)
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path}: already exists and is not overwritten; give another `output`, or remove it")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: no folder {path.absolute().parent}; make it, or give another `output`")
    name = check_name(name) if name is not None else _recipe_name(path)
    options = {"label_column": label_column, "image_column": image_column, "class_names": class_names}
    columns = {setting: value for setting, value in options.items() if value is not None}
    inventory = inspect_sources(photos, columns, labeled=labeled, pool=pool, test=test, validation=validation)
    from nst_train.device import this_device, total_gpu_memory
    from nst_train.networks.models import check_network_name

    device = this_device().type
    network = _absolute_model(model or (CPU_NETWORK if device == "cpu" else GPU_NETWORK))
    check_network_name(network)
    notes = [line for line in (check_weights_available(network, is_default=model is None),) if line]
    fetch_config(network)
    facts = network_facts(network)
    if facts.suits_vit_preset is None:
        notes.append(
            f"{network}: its config.json is not in the cache, so its kind is not known: the settings are those of a vision transformer "
            "without stochastic depth; write the recipe again where the Hub can be asked"
        )
    numbers = choose_numbers(inventory.n_training, inventory.side_px, facts, device != "cpu")
    student = student_settings(numbers, facts)
    if network == GPU_NETWORK and device == "cuda":
        student |= fit_to_memory(numbers, facts, total_gpu_memory(this_device()))
    student |= fit_to_network({"model": network, "start": "teacher"} | student, len(inventory.class_names))
    student |= fit_to_machine({"model": network, "start": "teacher"} | student, len(inventory.class_names))
    sources, probe = _recipe_sources(inventory, path.absolute().parent), supports_probe(network, len(inventory.class_names))
    text = recipe_text(name, inventory, sources, _relative_model(network, path.absolute().parent), facts, numbers, student, device, probe)
    parse_recipe(text, path)  # if it does not load, that is our fault
    _write_new(path, text)
    has_schema = write_schema(path.absolute().parent)
    return WrittenRecipe(path, inventory, network, device, [*likely_problems(inventory), *notes], has_schema)


def _write_new(path: Path, text: str) -> None:
    """Create a file, completely or not at all, for example on a full disk."""
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
        except OSError:
            path.unlink()
            raise


def _recipe_name(path: Path) -> str:
    """A name that a store accepts, from a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:80] or "photos"


def _absolute_model(model: str) -> str:
    """A model name, with an absolute path if it is a folder."""
    return f"local-dir:{os.path.abspath(os.path.expanduser(location))}" if (location := _local_folder(model)) else model


def _relative_model(model: str, folder: Path) -> str:
    """A model as named by a recipe in `folder`: a folder that is near gets a relative path."""
    return f"local-dir:{_relative_location(folder, location, None)}" if (location := _local_folder(model)) else model


def _local_folder(model: str) -> str:
    return model.removeprefix("local-dir:") if model.startswith("local-dir:") else ""


def _recipe_sources(inventory: Inventory, folder: Path) -> dict[str, dict[str, str]]:
    """Each source as named by a recipe in `folder`: relative if it is near, unchanged for a dataset on the Hub; with its columns."""
    sources = {}
    for role, location in inventory.locations.items():
        columns = dict(inventory.columns.get(role, {}))
        if "class_names" in columns:
            columns["class_names"] = _relative_location(folder, columns["class_names"], None)
        sources[role] = {"source": _relative_location(folder, location, getattr(inventory, role).revision)} | columns
    return sources


def _relative_location(folder: Path, location: str, revision: str | None) -> str:
    if is_address(location) or (revision is not None and not os.path.exists(location)):
        return location
    absolute = os.path.abspath(os.path.expanduser(location) if not os.path.exists(location) else location)
    relative = os.path.relpath(absolute, os.path.realpath(folder))  # `..` of a link is the parent folder of its target
    is_near = relative.split(os.sep).count("..") <= _MAX_PARENTS
    is_same_path = os.path.realpath(os.path.join(folder, relative)) == os.path.realpath(absolute)
    return relative if is_near and is_same_path and not relative.startswith("~") else absolute


def yaml_scalar(value: str | float | bool | None) -> str:
    """A value as single-line YAML, whatever it contains."""
    if value is None:
        return "null"
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    if re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./ :-]*[A-Za-z0-9_./]|[A-Za-z0-9_.]", value) and yaml.safe_load(f"[{value}]") == [value]:
        return value
    return yaml.safe_dump(value, default_style='"', width=2**30, allow_unicode=True).strip()


def _yaml_flow(values: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_yaml_value(value)}" for key, value in values.items()) + "}"


def _yaml_value(value: Any) -> str:  # noqa: ANN401 - any setting
    return _yaml_flow(value) if isinstance(value, dict) else yaml_scalar(value)


def _aligned_lines(rows: list[tuple[str, str]], indent: str) -> str:
    """`key: value` lines with aligned comments."""
    width = max((len(line) for line, comment in rows if comment and len(line) <= _COMMENTS_AT), default=0)
    return "\n".join(f"{indent}{line.ljust(width)}  # {comment}" if comment else f"{indent}{line}" for line, comment in rows)


_REASONS = {
    "preset": "how published weights are finetuned on photographs; --show-settings lists its values",
    "noise": "this network is not known to have blocks that can be skipped",
    "layer_decay": "timm knows the layers of its own networks, but not of this one",
    "precision": "clearly faster in a few steps timed on this CPU",
    "fused_attention": "clearly faster in bf16 on this CPU, likewise",
    "compute_threads": "clearly faster in a few steps timed on this CPU, with the processes that decode running",
}


def _reasons(numbers: StudentNumbers, inventory: Inventory, facts: NetworkFacts, on_gpu: bool) -> dict[str, str]:
    size = (
        "images are tiny: not enlarged further"
        if inventory.side_px and numbers.image_size and inventory.side_px < numbers.image_size
        else ""
    )
    is_smaller = numbers.image_size and facts.side_px and numbers.image_size < facts.side_px
    size = size or (f"smaller than the network's own {facts.side_px}: a step takes less time" if is_smaller else "the network's own")
    return _REASONS | {
        "image_size": size,
        "learning_rate": f"per 256 labeled images; the preset's is for steps of {MEASURED_BATCH} and at most {MEASURED_STEPS} steps",
        "test_size": "objects look larger in random crops, so test on larger images",
        "steps": f"for {format_count(inventory.n_training, 'labeled image')}; four times as many labels need twice the steps",
        "accumulate": f"parts of a step: all of it takes about {step_bytes(numbers, facts) / 1e9:.0f} GB, more than this GPU has room for",
        "batch_size": "labeled images per step, and"
        if numbers.batch_size < inventory.n_training
        else "all labeled images in every step, and",
        "ratio": f"{numbers.ratio} pseudo-labeled ones for each of them",
    }


def recipe_text(
    name: str,
    inventory: Inventory,
    sources: dict[str, dict[str, str]],
    model: str,
    facts: NetworkFacts,
    numbers: StudentNumbers,
    student: dict[str, Any],
    device: str,
    probe: bool = True,
) -> str:
    """The recipe as YAML. Names from the user appear in values only, never in comments. Without `probe` the teacher is finetuned."""
    on_gpu, classes = device != "cpu", len(inventory.class_names)
    heads = [(f"name: {yaml_scalar(name)}", "name of the corpus in the store and, with -teacher, of the trained networks")]
    comments = {
        "labeled": f"{format_count(len(inventory.labeled), 'image')} of {format_count(classes, 'class')}, {inventory.per_class} each",
        "test": f"{format_count(len(inventory.test) if inventory.test else 0, 'image')}; used for evaluation only",
        "validation": "selects the best weights",
        "pool": f"{format_count(len(inventory.pool), 'image')} without labels",
    }
    for role in _ROLES:
        if role in sources:
            heads.append((f"{role}: {_yaml_flow(sources[role])}", comments[role]))
        elif role == "test" and inventory.holdout:
            heads.append((f"holdout: {inventory.holdout:g}", "no test images: this share of each class's labeled images is held out"))
    heads.append(("seed: 0", "same seed, same bytes"))
    near = pool_resembles_labeled(inventory)
    select = choose_selection(len(inventory.pool), classes, near)
    selection_comment = (
        "All pseudo-labeled images, unchanged. This was best when pool and labeled images came from the same source. For a pool\n"
        f"# from another source, try {_yaml_flow(choose_selection(len(inventory.pool), classes, False))}:\n"
        "# that many per class (pool size / classes), the most confident first, with copies if a class has fewer."
        if near
        else "The pool is many times larger than the labeled set, so it may come from other sources: for each class the most confident,\n"
        "# pool size / classes of them, with copies if a class has fewer. If pool and labeled images come from the same source,\n"
        "# {min_confidence: 0, per_class: none} takes all."
    )
    reasons = _reasons(numbers, inventory, facts, on_gpu)
    of_student = [(f"model: {yaml_scalar(model)}", ""), ("start: teacher", "finetune all weights, starting from the teacher's")]
    of_student += [
        (f"{key}: {_yaml_flow(value) if isinstance(value, dict) else yaml_scalar(value)}", reasons.get(key, ""))
        for key, value in student.items()
    ]
    teacher = [
        (f"model: {yaml_scalar(model)}", "fast on a CPU" if model == CPU_NETWORK else "suits a GPU" if model == GPU_NETWORK else ""),
        ("pretrained: true", "the published weights,"),
    ]
    if probe:
        teacher += [("probe: true", "with a new last layer fitted on their features: takes a minute, and few labels are enough")]
    else:
        preset_comment = "finetuned, as its students are: it does not end in the one linear layer that a probe fits"
        teacher += [
            (f"{key}: {_yaml_value(value)}", preset_comment if key == "preset" else "") for key, value in student.items() if key != "ratio"
        ]
    measured = (
        "were measured on 200 labeled photographs with EfficientNet-Lite0 on a CPU; the number of steps depends on your labels."
        if not on_gpu
        else "were measured with EfficientNet-Lite0 on a CPU and scaled up; they have not been measured on a GPU."
    )
    return "\n".join(
        [
            MODELINE,
            "# Written by `nst init`. Change what you like; paths are relative to this file's folder. Estimate the time, then run it:",
            "#   nst run THIS_FILE --dry-run",
            "#   nst run THIS_FILE",
            _aligned_lines(heads, ""),
            "",
            f"# {selection_comment}",
            f"select: {_yaml_flow(select)}",
            "",
            "# The first network, the teacher, is trained on labeled images only. Each further one is a student, trained on labeled and",
            "# pseudo-labeled images, and is the teacher of the next. The settings of the students",
            f"# {measured}",
            "generations:",
            "  - " + _aligned_lines(teacher, "    ").lstrip(),
            "  - &student",
            _aligned_lines(of_student, "    "),
            "  - *student" + " " * 20 + "# taught by the first student",
            "",
            "control: false  # true also trains the last network on labeled images only, with the same noise and steps",
            f"run: {_yaml_flow({'workers': default_workers(cpus_of_this_process(), on_gpu)})}  # processes that decode images on this "
            "machine",
            "",
        ]
    )

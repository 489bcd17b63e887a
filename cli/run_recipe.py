"""`nst run` and `nst demo`: the whole loop."""

import importlib.resources
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_data.progress import escape_unprintable

from .label import print_unlabeled
from .messages import cli_progress, reword_for_cli
from .options import JsonOption, ShowSettingsOption, StoreOption, open_store, print_json
from .show_settings import print_settings, settings_report
from .tables import WIDTH, print_table

if TYPE_CHECKING:
    from nst_data.store.store import Store
    from nst_train.recipes.finished_run import Generation

_MODEL_WIDTH = 18


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="See examples/image_folder.yaml.")],
    store: StoreOption = None,
    json: JsonOption = False,
    show_settings: ShowSettingsOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print what would be done: images, steps, time (from a few timed steps) and disk space; write nothing."
        ),
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a value of the recipe, e.g. generations.1.ratio=7 (YAML; list indices from 0). Repeatable.",
        ),
    ] = None,
) -> None:
    """Run the loop that a recipe describes. Resumes where it stopped when rerun, and does nothing when complete."""
    from nst_data.errors import UsageError
    from nst_train.recipes.changes import parse_changes

    if recipe.is_dir():
        raise UsageError(f"{recipe}: expected a recipe, found a folder; `nst init {shlex.quote(str(recipe))}` writes one for its images")
    opened_store, values = open_store(store), parse_changes(changes or [])
    if show_settings:
        _show_settings(recipe, opened_store, json, values)
        return
    if dry_run:
        _dry_run(recipe, opened_store, json, values)
        return
    rows = _run_recipe(recipe, opened_store, values)
    if json:
        print_json({"store": opened_store.location, "generations": rows})
        return
    for row in rows:
        if row["corpus"]:
            print_unlabeled(opened_store.open(row["corpus"]))
    _print_table(rows)
    newest = next(row for row in reversed(rows) if row["pseudo"])
    for line in _comparison_lines(rows, newest):
        print(line)
    print(f"store: {opened_store.location}")
    print(f"next:  nst show {newest['edition']}   nst label POOL --teacher {_best_network(rows, newest)['teacher']} --corpus NAME")


def _comparison_lines(rows: Sequence[dict[str, Any]], newest: dict[str, Any]) -> Iterator[str]:
    """What the test images say about the newest student compared with the other networks, and what they cannot tell."""
    tested = [row for row in rows if row["test_top1"] is not None]
    if newest not in tested:
        return
    images, n_unreadable = (int(newest["metrics"]["test"].get(name, 0)) for name in ("images", "errors"))
    if n_unreadable:
        yield f"{n_unreadable:,} of {images + n_unreadable:,} test images could not be read"
    compared = [row for row in tested if row["to_newest"] is not None]
    if compared:
        yield f"{newest['teacher']} on {images:,} test images, with 95% bootstrap intervals:"
    for row in compared:
        mean, low, high = (100 * row["to_newest"][name] for name in ("mean", "low", "high"))
        by_chance = "" if row["to_newest"]["larger_than_chance"] else ", perhaps by chance"
        yield f"  {mean:+.1f} points ({low:+.1f} to {high:+.1f}) vs. {row['teacher']}{by_chance}"


def _best_network(rows: Sequence[dict[str, Any]], newest: dict[str, Any]) -> dict[str, Any]:
    """The newest student, unless the most accurate network on the test images is better by more than chance."""
    tested = [row for row in rows if row["test_top1"] is not None]
    if newest not in tested:
        return newest
    best: dict[str, Any] = max(reversed(tested), key=lambda row: float(row["test_top1"]))
    return best if best["to_newest"] is not None and best["to_newest"]["larger_than_chance"] else newest


def demo(
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Random seed, also of the split of the digits.")] = 0,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Noisy Student Training on real digits that need no download: a teacher, two students and a supervised control, in minutes."""
    from nst_data.digits import write_digits
    from nst_train.recipes.schema import write_schema

    opened_store = open_store(store)
    name = "digits" if seed == 0 else f"digits-seed-{seed}"
    folder = opened_store.root / "demo" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_digits(folder / "digits", seed)
    recipe = folder / "digits.yaml"
    if not recipe.exists():
        text = importlib.resources.files("nst_cli.examples").joinpath("digits.yaml").read_text("utf-8")
        write_schema(folder)
        recipe.write_text(text.replace("name: digits\n", f"name: {name}\n").replace("seed: 0\n", f"seed: {seed}\n"))
    run(recipe, opened_store.location, json)
    if not json:
        print(f"recipe: {recipe}: change it, give it another name and `nst run` it; `nst init` writes one for your own images")


def _run_recipe(recipe: Path, store: "Store", changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    from nst_train.recipes.reading import load_recipe

    settings = load_recipe(recipe, changes=changes)
    from nst_train.noisy_student import self_training

    rows, counted = [], set[Path]()
    for generation in self_training(store, settings, progress=cli_progress()):
        versions = [
            candidate
            for candidate in (generation.teacher, generation.corpus, generation.edition)
            if candidate and candidate.local_folder not in counted
        ]
        counted |= {version.local_folder for version in versions}  # count labels shared by students of one teacher once
        rows.append(_summarize_generation(generation, sum(version.manifest.seconds for version in versions)))
    return rows


def _dry_run(path: Path, store: "Store", json: bool, changes: Mapping[str, Any]) -> None:
    """Print what is left to do of a recipe, and what it will take."""
    import dataclasses

    from nst_data.store.files import format_size
    from nst_train.recipes.reading import load_recipe

    recipe = load_recipe(path, changes=changes)
    from nst_train.starting.dry_run import dry_run

    plan = dry_run(store, recipe, progress=cli_progress())
    if json:
        stages = [dataclasses.asdict(stage) for stage in plan.stages]
        print_json({"store": store.location, "stages": stages, "seconds": plan.seconds, "bytes_on_disk": plan.bytes_on_disk})
        return
    rows = [
        (
            stage.ref,
            stage.what,
            stage.state,
            stage.images,
            stage.steps,
            _format_duration(stage.seconds) if stage.is_left else "-",
            "-" if not stage.is_left or stage.bytes_on_disk is None else format_size(stage.bytes_on_disk).removeprefix("about "),
        )
        for stage in plan.stages
    ]
    print_table(("version", "step", "state", "images", "steps", "time", "disk"), rows, names=3, name_width=WIDTH)
    if refusal := next((stage.refusal for stage in plan.stages if stage.refusal), None):
        print(f"nst run will refuse: {reword_for_cli(refusal)}. Nothing was written.")
        return
    free = (
        f"{format_size(plan.free_bytes).removeprefix('about ')} are free{', which is not enough' * (plan.bytes_on_disk > plan.free_bytes)}"
    )
    without = " without `evaluate`" if recipe.evaluate else ""
    print(
        f"left to do: {_format_duration(plan.seconds)}{without}, {format_size(plan.bytes_on_disk)} with checkpoints; {free}. Nothing was "
        "written."
    )


def _format_duration(seconds: float | None) -> str:
    """A duration, rounded like an estimate."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{max(1, round(seconds))} s" if seconds >= 1 else "under 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _show_settings(path: Path, store: "Store", json: bool, changes: Mapping[str, Any]) -> None:
    """Print the settings of each generation, without steps if the labeled images do not exist yet."""
    from nst_data.errors import NstError
    from nst_data.selection.holdout import hold_out, holdout_folder
    from nst_data.sources import open_source
    from nst_train.recipes.reading import load_recipe, written_settings
    from nst_train.recipes.recipe import finetune_defaults, inherited_settings
    from nst_train.settings import deep_merge

    from .origins import setting_origins

    recipe, written, labeled = load_recipe(path, changes=changes), written_settings(path, changes), None
    try:
        spec = recipe.labeled
        opened = (
            None
            if spec is None
            else open_source(
                spec.source, labeled=True, class_names=spec.class_names, image_column=spec.image_column, label_column=spec.label_column
            )
        )
        if recipe.holdout and opened:
            opened, _ = hold_out(opened, share=recipe.holdout, seed=recipe.seed, kept=holdout_folder(store), writes=False)
        labeled = opened
    except NstError as error:
        cli_progress().say(f"no steps: {error}")
    user_values = {name: written[name] for name in ("seed",) if name in written} | (written.get("select") or {})
    by_place = setting_origins(recipe.select, user_values, partial(_origin, {}, (), changes), "select.")
    selection = {place: {"value": value, "source": source} for place, (value, source) in by_place.items()}
    shown = {}
    for network in recipe.networks:
        settings, user_values, number = network.settings, network.written_in(written), network.generation
        kind = f"student {network.student_name}" if network.student_name else "a student" if number else "the teacher"
        trainings = [(settings.first_training, user_values, kind, number > 0)]
        if settings.finetune:
            values = deep_merge(inherited_settings(user_values) | finetune_defaults(user_values), user_values["finetune"])
            trainings.append((settings.finetune, values, f"{kind}, finetuned" if network.student_name else "finetuned", False))
        for training, values, kind, student in trainings:
            sections, filled_in, places = {"settings": values, "run": written.get("run", {})}, {}, [network.key]
            if training is settings.finetune:
                filled_in = {name: "default of finetune" for name in finetune_defaults(user_values) if name not in user_values["finetune"]}
                places.append(f"{network.key}.finetune")
            origin = partial(_origin, filled_in, places, changes)
            report = settings_report(training, recipe.run, sections, origin, labeled, None, student)
            if student:
                report["settings"] |= selection
            shown[f"generation {number}, {kind}"] = report
    if json:
        print_json([{"network": title} | report for title, report in shown.items()])
        return
    if recipe.teacher:
        print(f"generation 0, the teacher: {escape_unprintable(recipe.teacher.model)}, already trained\n")
    for title, report in shown.items():
        print(f"{title}\n")
        print_settings(report)
        print()


def _origin(filled_in: Mapping[str, str], sections: Sequence[str], changes: Mapping[str, Any], place: str) -> str:
    """Where a recipe's setting comes from; it may be in any of the `sections`, at the top level of the recipe, or in its `run`."""
    if place in filled_in:
        return filled_in[place]
    places = [place, f"run.{place}", *(f"{path}.{place}" for path in sections)]
    return "--set" if any(path == key or path.startswith(f"{key}.") for path in places for key in changes) else "recipe"


def _summarize_generation(generation: "Generation", seconds: float) -> dict[str, Any]:
    from nst_data.store.manifest import EditionManifest, GenerationManifest, TeacherManifest
    from nst_data.store.metrics import Metrics

    teacher, corpus, edition = generation.teacher, generation.corpus, generation.edition
    trained, metrics = TeacherManifest.from_manifest(teacher.manifest), Metrics.read(teacher.local_folder)
    selected = EditionManifest.from_manifest(edition.manifest).counts if edition else None
    return {
        "teacher": teacher.ref,
        "model": trained.request.model,
        "parameters": trained.counts.parameters,
        "pseudo": edition is not None,
        "corpus": corpus.ref if corpus else None,
        "edition": edition.ref if edition else None,
        "images_labeled": GenerationManifest.from_manifest(corpus.manifest).counts.labeled if corpus else None,
        "kept": selected and selected.kept,
        "unique": selected and selected.unique,
        "copies": selected and selected.copies,
        "test_top1": metrics.test_top1,
        "to_newest": None
        if (figures := generation.to_newest) is None
        else asdict(figures) | {"larger_than_chance": figures.is_larger_than_chance},
        "metrics": {
            name: {key: value for key, value in figures.items() if isinstance(value, int | float)}
            for name, figures in metrics.model_dump().items()
        },
        "seconds": round(seconds, 1),
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Print the table without redundant columns: a model that all networks share, and counts equal to those of the selected images."""
    from nst_data.cards.published import public_name

    models, students = [public_name(row["model"]) for row in rows], [row for row in rows if row["pseudo"]]
    counts = {"images_labeled": "labeled", "kept": "kept", "unique": "selected", "copies": "entries"}
    shown = [name for name in counts if name in ("images_labeled", "unique") or any(row[name] != row["unique"] for row in students)]
    has_models = len(set(models)) > 1
    header = ["network", *(["model"] if has_models else []), *(counts[name] for name in shown), "test top-1", "seconds"]
    lines = []
    for row, model in zip(rows, models, strict=True):
        names = [row["teacher"], *([model if len(model) <= _MODEL_WIDTH else f"{model[: _MODEL_WIDTH - 3]}..."] if has_models else [])]
        top1 = "-" if row["test_top1"] is None else f"{100 * row['test_top1']:.1f}%"
        lines.append([*names, *(row[name] for name in shown), top1, round(row["seconds"])])
    if not has_models:
        print(f"{escape_unprintable(models[0])}, {rows[0]['parameters']:,} parameters")
    print_table(header, lines, names=1 + has_models, name_width=WIDTH)

"""`nst evaluate`."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_train.evaluation_settings import CLEAN, EvaluateSettings, recorded_name
from nst_train.settings import ReadSettings

from .evaluation_tables import print_comparisons, print_results
from .options import (
    MODEL_HELP,
    ClassNamesOption,
    ImageColumnOption,
    JsonOption,
    LabelColumnOption,
    StoreOption,
    StreamOption,
    open_store,
    print_json,
    with_settings,
)

if TYPE_CHECKING:
    from nst_data.store.store import Store
    from nst_train.evaluation.measuring import Measured, Suite

Found = dict[str, dict[str, "Measured"]]  # by suite, by model


@with_settings(settings=EvaluateSettings, run=ReadSettings)
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP)],
    data: Annotated[str, typer.Option(metavar="SOURCE", help="Labeled images: class folders, or a label column; or a published folder.")],
    settings: EvaluateSettings,
    run: ReadSettings,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    stream: StreamOption = False,
    record: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Keep the result under this name (such as test) in the teacher's metrics.json and card."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Say which differences between the models are larger than chance (paired bootstrap).")
    ] = False,
    plots: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Draw the results as PNG files in this folder.")] = None,
    class_names: ClassNamesOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Measure accuracy, calibration and robustness of one or several models. Resumes where it stopped when rerun."""
    from nst_data.errors import UsageError
    from nst_data.progress import on_this_terminal
    from nst_data.sources import Source, open_source
    from nst_data.store.files import is_writable
    from nst_data.store.store import check_name
    from nst_train.classifiers.teachers import is_in_store
    from nst_train.device import this_process
    from nst_train.evaluation.evaluate import kept_outcomes, load_candidate
    from nst_train.evaluation.measuring import Effort
    from nst_train.evaluation.suites import open_suite

    there = open_store(store)
    models = list(dict.fromkeys(_settled(model, there) for model in models))
    if compare and len(models) < 2:
        raise UsageError(f"--compare: expected at least two models, found only {models[0]}; add another")
    if record is not None:
        check_name(record)
    for model in models if record is not None else []:
        if not is_in_store(model, there):
            raise UsageError(f"--record: {model} is not a teacher in the store, so nothing can be recorded for it; remove --record")
        if not all(map(is_writable, ((folder := there.open(model, "teacher").folder), folder.parent))):
            raise UsageError(f"--record: {folder} is not writable; remove --record, or make the store writable")
    if settings.of_published:
        given = {"--class-names": class_names, "--image-column": image_column, "--label-column": label_column, "--stream": stream}
        for option in (option for option, value in given.items() if value):
            raise UsageError(f"{option} does not apply to {settings.suite[0]}, which is read from its published folders; remove it")
    source = Path(data) if settings.of_published else open_source(data, True, class_names, image_column, stream, label_column=label_column)
    for line in source.remarks() if isinstance(source, Source) else []:
        on_this_terminal().say(line)
    reference = load_candidate(_settled(settings.relative_to, there), there) if settings.relative_to else None
    suites = [open_suite(name, source, settings, reference) for name in settings.suite]
    effort = Effort(kept_outcomes(there), run, on_this_terminal())
    if not is_writable(kept_outcomes(there)):
        effort.progress.say(f"{kept_outcomes(there)} cannot be written to: nothing that is measured is kept for a next run")
    found: Found = {suite.name: {} for suite in suites}
    for model in models:
        candidate = load_candidate(model, there)
        for suite in suites:
            found[suite.name][model] = suite.measure(candidate, effort)
    if record is not None:
        _record(there, suites, found, record)
    comparisons = _comparisons(found, settings.seed) if compare else []
    results = {suite: {model: one.result for model, one in by_model.items()} for suite, by_model in found.items()}
    if plots is not None and this_process().is_main_process:
        _draw(plots, results)
    if json:
        print_json(_by_model(results, comparisons))
        return
    print_results(results)
    print_comparisons(comparisons)


def _settled(model: str, store: "Store") -> str:
    """The version that a name of the store means now: its newest may be another one when it is loaded."""
    from nst_train.classifiers.teachers import is_in_store

    return store.open(model, "teacher").ref if is_in_store(model, store) else model


def _record(store: "Store", suites: "list[Suite]", found: Found, name: str) -> None:
    from nst_train.evaluation.evaluate import record

    for suite in suites:
        for model, measured in found[suite.name].items():
            record(store.open(model, "teacher"), suite, recorded_name(name, suite.name), measured.result)


def _comparisons(found: Found, seed: int) -> list[dict[str, Any]]:
    """Each model against each one before it, by every metric that is a mean over images. Raises UsageError where there is none."""
    from nst_data.errors import UsageError
    from nst_train.evaluation.chance import paired_bootstrap

    rows = []
    for suite, by_model in found.items():
        for earlier, later in itertools.combinations(by_model, 2):
            first, second = by_model[earlier].by_image, by_model[later].by_image
            if by_model[earlier].result.get("partial") != by_model[later].result.get("partial"):
                raise UsageError(f"--compare: {earlier} and {later} know different classes of {suite}, so they saw different images")
            if not first:
                raise UsageError(f"--compare: the folders of {suite} hold different images, which cannot be compared one by one")
            for metric in first:
                difference = paired_bootstrap(first[metric], second[metric], seed)
                about = {"suite": suite, "metric": metric, "from": earlier, "to": later}
                rows.append(about | asdict(difference) | {"larger_than_chance": difference.is_larger_than_chance})
    return rows


def _draw(folder: Path, results: dict[str, dict[str, Any]]) -> None:
    from nst_train.evaluation.plots import write_generations, write_plots

    folder.mkdir(parents=True, exist_ok=True)
    for suite, by_model in results.items():
        write_plots(folder, suite, by_model)
    if len(next(iter(results.values()))) > 1:
        lines = {}
        for suite, by_model in results.items():
            points = next(iter(by_model.values())).get("by_epsilon")
            attack = f" of {255 * points[-1]['epsilon']:.3g}/255" if points else ""
            title = "top-1" if suite == CLEAN else f"top-1, {suite}{attack}"
            lines[title] = {model: one["top1"] for model, one in by_model.items()}
        write_generations(folder, lines)


def _by_model(results: dict[str, dict[str, Any]], comparisons: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each model the numbers of `clean`, beside them each other suite under its name, and how it differs from models before it."""
    found: dict[str, Any] = {}
    for suite, by_model in results.items():
        for model, result in by_model.items():
            found.setdefault(model, {}).update(result if suite == CLEAN else {suite: result})
    for row in comparisons:
        found[row["to"]].setdefault("differences", []).append({name: value for name, value in row.items() if name != "to"})
    return found

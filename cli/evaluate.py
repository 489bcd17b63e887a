"""`nst evaluate`."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_train.evaluation_settings import CLEAN, EvaluateSettings
from nst_train.settings import ReadSettings

from .evaluation_tables import print_comparisons, print_results
from .messages import cli_progress
from .options import (
    MODEL_HELP,
    HoldoutSeedOption,
    ImageColumnOption,
    JsonOption,
    LabelColumnOption,
    PromptsOption,
    StoreOption,
    StreamOption,
    ZeroShotNamesOption,
    check_holdout,
    open_labeled_images,
    open_models,
    open_store,
    option_name,
    print_json,
    with_settings,
)

if TYPE_CHECKING:
    from nst_train.evaluation.measuring import Measurement

Measurements = dict[str, dict[str, "Measurement"]]  # by suite, by model


@with_settings(settings=EvaluateSettings, run=ReadSettings)
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP)],
    data: Annotated[str, typer.Option(metavar="SOURCE", help="Labeled images: class folders, or a label column; or a published folder.")],
    settings: EvaluateSettings,
    run: ReadSettings,
    holdout: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Measure only on the images that `nst train --holdout`, or a recipe's `holdout`, leaves out."),
    ] = None,
    holdout_seed: HoldoutSeedOption = 0,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    stream: StreamOption = False,
    record: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Record the result under this name (such as test) in the teacher's metrics.json and card."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Test which differences between the models are significant (paired bootstrap).")
    ] = False,
    plots: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Draw the results as PNG files in this folder.")] = None,
    class_names: ZeroShotNamesOption = None,
    prompts: PromptsOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Measure accuracy, calibration and robustness of one or several models. Resumes where it stopped when rerun."""
    from nst_data.errors import UsageError
    from nst_train.device import this_process
    from nst_train.evaluation.evaluate import measure_all, metrics_by_model
    from nst_train.teacher_names import pin_version

    check_holdout(holdout, holdout_seed)
    if plots is not None and plots.exists() and not plots.is_dir():
        raise UsageError(f"--plots {plots}: expected a folder, found a file")
    opened_store = open_store(store)
    models = list(dict.fromkeys(pin_version(model, opened_store) for model in models))
    if compare and len(models) < 2:
        raise UsageError(f"--compare: expected at least two models, found only {models[0]}; add another")
    opened_models = open_models(opened_store, models, class_names, prompts, allow_unused=True)
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column, "stream": stream}
    of_data = columns | {"holdout": holdout, "class_names": class_names if all(isinstance(model, str) for model in opened_models) else None}
    for option in (option_name(name) for name, value in of_data.items() if value and settings.is_published):
        raise UsageError(f"{option} does not apply to {settings.suite[0]}, which is read from its published folders; remove it")
    from nst_train.holdout import hold_out_across_processes, warn_if_trained_on, warn_of_leaks

    source = Path(data) if settings.is_published else open_labeled_images(data, class_names, opened_models, **columns)
    if holdout and not isinstance(source, Path):
        remaining, source = hold_out_across_processes(source, holdout, holdout_seed, opened_store, cli_progress())
        warn_of_leaks(models, opened_store, remaining, cli_progress())
    elif not isinstance(source, Path):
        warn_if_trained_on(models, opened_store, source, cli_progress())
    measurements = measure_all(opened_store, opened_models, source, settings, record=record, run=run, progress=cli_progress())
    comparisons = _compare_models(measurements, settings.seed) if compare else []
    results = {suite: {model: measurement.result for model, measurement in measured.items()} for suite, measured in measurements.items()}
    if plots is not None and this_process().is_main_process:
        _draw_plots(plots, results)
    if json:
        print_json(_with_differences(metrics_by_model(measurements), comparisons))
        return
    print_results(results)
    print_comparisons(comparisons)


def _compare_models(measurements: Measurements, seed: int) -> list[dict[str, Any]]:
    """Compare each model with each earlier one, by every metric that is a mean over images. Raises UsageError if images do not match."""
    from nst_data.errors import UsageError
    from nst_train.evaluation.chance import paired_bootstrap

    rows = []
    for suite, by_model in measurements.items():
        for earlier, later in itertools.combinations(by_model, 2):
            first, second = by_model[earlier].by_image, by_model[later].by_image
            if by_model[earlier].result.get("partial") != by_model[later].result.get("partial"):
                raise UsageError(f"--compare: {earlier} and {later} know different classes of {suite}, so their images differ")
            if not first:
                raise UsageError(f"--compare: the folders of {suite} hold different images, which cannot be compared one by one")
            for metric in first:
                difference = paired_bootstrap(first[metric], second[metric], seed)
                about = {"suite": suite, "metric": metric, "from": earlier, "to": later}
                rows.append(about | asdict(difference) | {"larger_than_chance": difference.is_larger_than_chance})
    return rows


def _draw_plots(folder: Path, results: dict[str, dict[str, Any]]) -> None:
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
            lines[title] = {model: result["top1"] for model, result in by_model.items()}
        write_generations(folder, lines)


def _with_differences(results: dict[str, dict[str, Any]], comparisons: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add to each model's results how they differ from those of earlier models."""
    for row in comparisons:
        results[row["to"]].setdefault("differences", []).append({name: value for name, value in row.items() if name != "to"})
    return results

"""`nst evaluate`."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_train.evaluation_settings import CLEAN, PUBLISHED, EvaluateSettings
from nst_train.settings import ReadSettings

from .evaluation_tables import print_comparisons, print_results
from .options import (
    MODEL_HELP,
    ClassNamesOption,
    ImageColumnOption,
    JsonOption,
    StoreOption,
    StreamOption,
    open_store,
    print_json,
    with_settings,
)

if TYPE_CHECKING:
    from nst_train.suites import Measured, Suite

Found = dict[str, dict[str, "Measured"]]  # by suite, by model


@with_settings(settings=EvaluateSettings, run=ReadSettings)
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP)],
    data: Annotated[str, typer.Option(metavar="SOURCE", help="Labeled images: class folders, or a label column; or a published folder.")],
    settings: EvaluateSettings,
    run: ReadSettings,
    image_column: ImageColumnOption = None,
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
    """Measure accuracy, calibration and robustness of one or several models. Run again, it goes on where it stopped."""
    from nst_data.errors import UsageError
    from nst_data.progress import on_this_terminal
    from nst_data.sources import open_source
    from nst_train.evaluate import kept_outcomes, load_candidate
    from nst_train.suites import Effort, open_suite
    from nst_train.teachers import is_in_store

    there, models = open_store(store), list(dict.fromkeys(models))
    if compare and len(models) < 2:
        raise UsageError(f"--compare: expected two models or more, found {models[0]} alone; name another")
    for model in models if record is not None else []:
        if not is_in_store(model, there):
            raise UsageError(f"--record: {model} is no teacher in the store, its metrics have no place there")
    published = settings.suite[0] in PUBLISHED
    source = Path(data) if published else open_source(data, True, class_names, image_column, stream)
    suites = [open_suite(name, source, settings) for name in settings.suite]
    effort = Effort(kept_outcomes(there), run, on_this_terminal())
    reference = settings.relative_to and load_candidate(settings.relative_to, there)
    found: Found = {suite.name: {} for suite in suites}
    for model in models:
        candidate = load_candidate(model, there)
        for suite in suites:
            found[suite.name][model] = suite.measure(candidate, effort)
    if record is not None:
        _record(there, suites, found, record)
    comparisons = _compared(found, settings.seed) if compare else []
    if plots is not None:
        _draw(plots, found, comparisons)
    results = {suite: {model: one.result for model, one in by_model.items()} for suite, by_model in found.items()}
    if json:
        print_json(_as_json(models, results, comparisons, compare))
        return
    print_results(results)
    if compare:
        print_comparisons(comparisons)

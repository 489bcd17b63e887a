"""`nst evaluate`."""

from typing import Annotated

import typer

from nst_train.settings import ReadSettings

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


@with_settings(run=ReadSettings)
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP)],
    data: Annotated[str, typer.Option(metavar="SOURCE", help="Labeled images: class folders, or a label column.")],
    run: ReadSettings,
    image_column: ImageColumnOption = None,
    stream: StreamOption = False,
    record: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Keep the result under this name (such as test) in the teacher's metrics.json and card."),
    ] = None,
    class_names: ClassNamesOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Measure the accuracy of one or several models on labeled images."""
    from nst_data.errors import UsageError
    from nst_data.progress import on_this_terminal
    from nst_data.sources import open_source
    from nst_train.evaluate import evaluate as evaluate_model
    from nst_train.evaluate import measure
    from nst_train.teachers import is_in_store, load_classifier

    there, source, progress = open_store(store), open_source(data, True, class_names, image_column, stream), on_this_terminal()
    results = {}
    for model in models:
        if record is None:
            results[model] = evaluate_model(load_classifier(model, there, exact=True)[0], source, run, progress)
        elif is_in_store(model, there):
            results[model] = measure(there, there.open(model, "teacher"), source, record, run, progress)
        else:
            raise UsageError(f"--record: {model} is no teacher in the store, its metrics have no place there")
    if json:
        print_json(results)
        return
    for model, result in results.items():
        top5 = f", top-5 {100 * result['top5']:.2f}%" if "top5" in result else ""
        unread = f", {result['errors']:,} could not be read" if result["errors"] else ""
        print(f"{model}: top-1 {100 * result['top1']:.2f}%{top5} on {result['images']:,} images{unread}")

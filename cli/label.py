"""`nst label`."""

from typing import Annotated

import typer

from nst_train.settings import LabelSettings, RunSettings

from .options import JsonOption, StoreOption, open_store, print_json, with_settings


@with_settings(settings=LabelSettings, run=RunSettings)
def label(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The pool: a folder of images, parquet files or a saved dataset.")],
    teacher: Annotated[
        str, typer.Option(metavar="MODEL", help="name@gen-N in the store, local-dir:FOLDER, hf-hub:OWNER/NAME or a timm name.")
    ],
    corpus: Annotated[str, typer.Option(metavar="NAME", help="The corpus that gets a new generation.")],
    settings: LabelSettings,
    run: RunSettings,
    generation: Annotated[int | None, typer.Option(min=1, help="Ask for this generation instead of the next free one.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Label every image of a pool with an un-noised teacher. Killed and run again, it goes on where it stopped."""
    from nst_data.progress import on_this_terminal
    from nst_data.sources import open_source
    from nst_train.label import label as label_pool

    version = label_pool(open_store(store), corpus, teacher, open_source(source), settings, generation, run, on_this_terminal())
    counts = version.manifest.counts
    if json:
        print_json({"ref": version.ref, "folder": str(version.folder), "digest": version.manifest.digest, "counts": counts})
        return
    print(f"{version.ref}: {counts['labeled']:,} of {counts['pool']:,} images labeled, {counts['errors']:,} could not be read")
    print(f"  {version.folder}\n  next: nst balance {version.ref}")

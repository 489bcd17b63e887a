"""`nst adopt`."""

from typing import Annotated

import typer

from nst_data.settings import AdoptSettings, ReadableSettings

from .messages import cli_progress
from .options import ImageColumnOption, JsonOption, StoreOption, open_store, print_json, with_settings


@with_settings(settings=AdoptSettings, run=ReadableSettings)
def adopt(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Labels: a CSV, TSV, JSON or JSONL file, parquet files, class folders, tar files, a folder saved by datasets, "
            "or owner/name on the Hub. Several are averaged; classes are matched by name.",
        ),
    ],
    corpus: Annotated[str, typer.Option(metavar="NAME", help="Corpus to add a generation to.")],
    settings: AdoptSettings,
    run: ReadableSettings,
    pool: Annotated[str | None, typer.Option(metavar="SOURCE", help="The images, if SOURCE does not contain them.")] = None,
    class_names: Annotated[
        str | None, typer.Option(metavar="FILE", help="Class names, one per line in the order of class numbers; by default SOURCE's own.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The model that made the labels, such as hf-hub:OWNER/NAME; for the card.")
    ] = None,
    generation: Annotated[int | None, typer.Option(min=1, metavar="N", help="Generation number; by default the next free one.")] = None,
    image_column: ImageColumnOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Import labels made elsewhere as a generation, after checking them. Resumes where it stopped when rerun."""
    from nst_data.adoption import adopt as adopt_labels
    from nst_data.errors import NstError
    from nst_data.label_files.opening import is_label_file
    from nst_data.sources import open_source
    from nst_data.sources.cells import NoImagesError
    from nst_data.store.manifest import GenerationManifest

    opened_store = open_store(store)
    try:
        location = pool if pool or len(sources) > 1 or is_label_file(sources[0]) else sources[0]
        images = open_source(location, image_column=image_column, indexes=opened_store.indexes) if location else None
    except NoImagesError as error:
        raise NstError(f"{error}" + ("" if pool else "; or name where the images are: --pool SOURCE")) from None
    version = adopt_labels(
        opened_store,
        corpus,
        sources if pool or images is None else images,
        **settings.model_dump(),
        pool=images if pool else None,
        class_names=class_names,
        teacher=teacher,
        generation=generation,
        max_unreadable=run.max_unreadable,
        progress=cli_progress(),
    )
    counts = GenerationManifest.from_manifest(version.manifest).counts
    if json:
        print_json({"ref": version.ref, "folder": version.location, "digest": version.manifest.digest, "counts": counts.model_dump()})
        return
    print(f"{version.ref}: labels of {counts.labeled:,} images adopted, {counts.errors:,} could not be read")
    if counts.unlabeled:
        print(f"  {counts.unlabeled:,} of the pool's {counts.pool:,} images have no label there")
    print(f"  {version.location}\n  next: nst balance {version.ref} --per-class auto")

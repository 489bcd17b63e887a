"""`nst pick`: choosing images for people to review."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nst_data.settings import PickSettings
from nst_train.settings import EmbedSettings, ReadSettings

from .messages import cli_progress
from .options import (
    ClassNamesOption,
    ImageColumnOption,
    JsonOption,
    LabelColumnOption,
    StoreOption,
    open_store,
    open_version,
    print_json,
    with_settings,
)

if TYPE_CHECKING:
    from nst_data.review.picks import Picks
    from nst_data.sources import Source
    from nst_data.store.store import Store, Version

_OUTPUT_HELP = (
    "An image list with an empty column `class`, for `nst review import`: .csv, .jsonl or .parquet; one with answers is not overwritten."
)


@with_settings(settings=PickSettings, embedding=EmbedSettings, run=ReadSettings)
def pick(
    ref: Annotated[str, typer.Argument(metavar="REF", help="A generation or an edition, name@gen-N[.K]; or labeled images.")],
    settings: PickSettings,
    embedding: EmbedSettings,
    run: ReadSettings,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model of the features; by default the teacher that made the labels.")
    ] = None,
    labeled: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="With --by outlier: the labeled images, if not the teacher's.")
    ] = None,
    pool: Annotated[str | None, typer.Option(metavar="SOURCE", help="The images, if they have moved since labeling.")] = None,
    corpus: Annotated[str | None, typer.Option(metavar="NAME", help="Corpus whose queue gets the picks of labeled images.")] = None,
    queue: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the queue; by default that of --by.")] = None,
    output: Annotated[str | None, typer.Option(metavar="FILE", help=_OUTPUT_HELP)] = None,
    copy_to: Annotated[str | None, typer.Option(metavar="FOLDER", help="Copy the picked image files to this folder.")] = None,
    look: Annotated[bool, typer.Option("--look", help="Open the queue in nst look; Ctrl-C ends it.")] = False,
    class_names: ClassNamesOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Pick images to review: the most informative ones, or those whose labels may be wrong. `nst look` opens them."""
    from nst_data.errors import NstError, UsageError
    from nst_data.review.picks import check_copy_folder, check_list_path, copy_images, write_pick_list
    from nst_data.sources import open_source
    from nst_data.store.store import Version
    from nst_train.features.picking import pick as pick_images
    from nst_train.features.picking_sources import open_pool

    opened_store = open_store(store)
    if output:
        check_list_path(Path(output))
    if copy_to:
        check_copy_folder(Path(copy_to))
    opened = _open_ref(ref, opened_store, class_names, image_column, label_column)
    images = open_source(pool, image_column=image_column, indexes=opened_store.indexes) if pool else None
    labeled_images = open_source(labeled, indexes=opened_store.indexes) if labeled else None
    if look and not corpus and not isinstance(opened, Version):
        raise UsageError("--look opens a corpus's queue; add --corpus NAME")
    picks = pick_images(
        opened_store,
        opened,
        settings,
        model=model,
        labeled=labeled_images,
        pool=images,
        corpus=corpus,
        queue=queue,
        embedding=embedding,
        run=run,
        progress=cli_progress(),
    )
    if output:
        write_pick_list(picks, Path(output))
    if copy_to:
        copy_images(
            picks, images or (open_pool(opened, opened_store) if isinstance(opened, Version) else opened), Path(copy_to), cli_progress()
        )
    if json:
        print_json({"ref": picks.ref, "queue": picks.queue, "images": picks.images, "not_found": picks.not_found, "picks": picks.as_json()})
    else:
        name = corpus or picks.ref.partition("@")[0]
        _print(picks, settings.number, f"{ref} --corpus {corpus}" if corpus else ref, name, output, copy_to)
    if look and not picks.queue:
        raise NstError(f"--look: there is no queue to open, since {opened_store.location} cannot be written to")
    if look:
        from .look.opening import open_contents
        from .looking import show_page

        contents = open_contents(opened_store, ref, pool=pool, corpus=corpus)
        show_page(contents, "127.0.0.1", None, opens_browser=True, fragment=f"#queue={picks.queue}")


def _open_ref(ref: str, store: "Store", class_names: str | None, image_column: str | None, label_column: str | None) -> "Version | Source":
    """Open a version from the store or the Hub, or labeled images."""
    from nst_data.sources import open_source
    from nst_data.sources.addresses import is_address
    from nst_data.sources.patterns import is_pattern
    from nst_data.store.store import Number

    name, _, number = ref.partition("@")
    if not is_address(ref) and (store.versions(name) or ("/" not in ref and not Path(ref).exists() and not is_pattern(ref))):
        return store.open(ref, "generation", "edition")
    if not is_address(ref) and not Path(ref).exists() and Number.is_valid(number):
        return open_version(store, ref, "generation", "edition")
    return open_source(
        ref, labeled=True, class_names=class_names, image_column=image_column, label_column=label_column, indexes=store.indexes
    )


def _print(picks: "Picks", requested: int, ref: str, name: str, output: str | None, copy_to: str | None) -> None:
    criterion, number = picks.rows["by"][0], len(picks.rows)
    classes = picks.rows["label"].n_unique()
    print(f"{picks.ref}: {number:,} of {picks.images:,} images by {criterion}, of {classes:,} class{'es' * (classes != 1)}")
    if picks.answered:
        print(f"  {picks.answered:,} that were answered before are left out")
    if picks.not_found:
        print(f"  {picks.not_found:,} that could not be found in the pool, or not be read, are left out")
    if number < requested:
        print(f"  {requested:,} were asked for; these are all that are left")
    if picks.estimated_errors is not None:
        print(f"  at most about {picks.estimated_errors:,.0f} labels are wrong: confident learning counts mistakes of its probe too")
    for place in filter(None, (output, copy_to)):
        print(f"  {place}")
    if picks.queue:
        print(f"  queue {picks.queue}; next: nst look {ref}, or --look")
        if output:
            print(f"  or fill in `class` in {output}; then: nst review import {name} {shlex.quote(output)} --reviewer NAME")

"""`nst export`."""

from typing import Annotated

import typer

from .messages import terminal
from .options import JsonOption, StoreOption, open_store, print_json
from .versions import Ref


def export(
    ref: Ref,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where to write: a new or empty folder.")],
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="folders, csv, jsonl, imagefolder, webdataset, fiftyone or label-studio.")
    ] = "folders",
    pool: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Where the images are now; by default where they were labeled.")
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Link to the image files in place of copying them.")] = False,
    probs: Annotated[bool, typer.Option("--probs", help="Write the probability of every class too.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write a generation or an edition as files for other tools. Resumes where it stopped when rerun."""
    from nst_data.formats.export import export as export_version

    written = export_version(open_store(store), ref, folder, to=to, pool=pool, link=link, probs=probs, progress=terminal())  # type: ignore[arg-type]
    if json:
        print_json({"ref": ref, "folder": str(written.folder), "images": written.images, "per_class": written.per_class})
        return
    print(f"{ref}: {written.images:,} images in {written.folder}")
    width = max(map(len, written.per_class))
    for name, images in written.per_class.items():
        print(f"  {name:<{width}}  {images:,}")

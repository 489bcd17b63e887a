"""`nst look`: a local page over a version or a labeled source."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nst_data.errors import UsageError

from .messages import cli_progress
from .options import StoreOption, open_store

if TYPE_CHECKING:
    from .look.contents import Contents

PoolOption = Annotated[
    str | None,
    typer.Option(
        "--pool", metavar="SOURCE", help="The images, if they have moved since labeling; required for a version pulled from the Hub."
    ),
]


def look(
    ref: Annotated[str, typer.Argument(metavar="REF", help="A generation or an edition, or labeled images: a folder, tar, parquet, ...")],
    ref2: Annotated[str | None, typer.Argument(metavar="REF2", help="Another version of the same images, or labeled ones.")] = None,
    port: Annotated[int | None, typer.Option(metavar="N", help="Port of the page; default 8765 or, if in use, a free one.")] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser.")] = False,
    pool: PoolOption = None,
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="Name of the reviewer.")] = "reviewer",
    corpus: Annotated[
        str | None, typer.Option(metavar="NAME", help="Corpus to store answers about labeled images in; default: the version's.")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; other than 127.0.0.1 exposes the page to the network.")
    ] = "127.0.0.1",
    export: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the page with a sample of the images as static files and exit.")
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="With --export: add a picture of these images to the version's card.")] = False,
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Export without keys, hashes and reviewers.")] = False,
    store: StoreOption = None,
) -> None:
    """Look at images and their labels in the browser, filter and compare them, and correct what is wrong."""
    from .look.opening import open_contents

    if anonymous and export is None:
        raise UsageError("--anonymous goes with --export FOLDER")
    if card and export is None:
        raise UsageError("--card goes with --export FOLDER")
    opened_store = open_store(store)
    contents = open_contents(opened_store, ref, ref2, pool, reviewer, corpus)
    if card and contents.view.columns is None:
        raise UsageError(f"--card: {ref} has no card; name a generation or an edition")
    if export is not None:
        from .look.export import export as export_page

        exported = export_page(
            contents, export, anonymous, cli_progress(), opened_store.open(ref, "generation", "edition") if card else None
        )
        print(f"{exported['images']:,} image{'s' * (exported['images'] != 1)}, {exported['bytes'] / 1e6:.1f} MB\n  {export / 'index.html'}")
        return
    show_page(contents, host, port, opens_browser=not no_browser)


def show_page(contents: "Contents", host: str, port: int | None, opens_browser: bool, fragment: str = "") -> None:
    """Serve a page until Ctrl-C; `fragment` is the view that its address opens with. Raises UsageError if nst[look] is not installed."""
    try:
        from .look.running import show
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UsageError("the page needs Starlette and uvicorn: pip install 'nst[look]'") from None
    show(contents, host, port, opens_browser, fragment)

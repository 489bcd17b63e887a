"""`nst look`: a local page over a version or a labeled source."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nst_data.errors import UsageError

from .messages import terminal
from .options import StoreOption, open_store

if TYPE_CHECKING:
    from .look.contents import Contents

PoolOption = Annotated[
    str | None,
    typer.Option(
        "--pool", metavar="SOURCE", help="Where the images are now, if not where they were labeled; for a version of the Hub always."
    ),
]


def look(
    ref: Annotated[str, typer.Argument(metavar="REF", help="A generation or an edition, or labeled images: a folder, tar, parquet, ...")],
    ref2: Annotated[str | None, typer.Argument(metavar="REF2", help="Another version of the same images, or labeled ones.")] = None,
    port: Annotated[
        int | None, typer.Option(metavar="N", help="Port of the page; without it 8765 or, where that is taken, a free one.")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser; the address is printed first.")] = False,
    pool: PoolOption = None,
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="Whose answers these are.")] = "reviewer",
    corpus: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where answers about labeled images go; else the version's corpus.")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Listen on this address; others of the network may then ask for the page.")
    ] = "127.0.0.1",
    export: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the page with a sample of the images as static files, and end.")
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="With --export: the version's card shows a picture of these images, also once it is pushed.")
    ] = False,
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Export without keys, hashes and reviewers.")] = False,
    store: StoreOption = None,
) -> None:
    """Look at images and their labels in the browser, filter and compare them, and correct what is wrong."""
    from .look.opening import open_contents

    if anonymous and export is None:
        raise UsageError("--anonymous goes with --export FOLDER")
    if card and export is None:
        raise UsageError("--card goes with --export FOLDER")
    there = open_store(store)
    contents = open_contents(there, ref, ref2, pool, reviewer, corpus)
    if card and contents.view.columns is None:
        raise UsageError(f"--card: {ref} has no card; name a generation or an edition")
    if export is not None:
        from .look.export import export as export_page

        made = export_page(contents, export, anonymous, terminal(), there.open(ref, "generation", "edition") if card else None)
        print(f"{made['images']:,} images, {made['bytes'] / 1e6:.1f} MB\n  {export / 'index.html'}")
        return
    show_page(contents, host, port, opens_browser=not no_browser)


def show_page(contents: "Contents", host: str, port: int | None, opens_browser: bool, fragment: str = "") -> None:
    """Answer for a page until Ctrl-C; `fragment` is the view that its address opens with. Raises UsageError without the extra."""
    try:
        from .look.running import show
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UsageError("the page needs Starlette and uvicorn: pip install 'nst[look]'") from None
    show(contents, host, port, opens_browser, fragment)

"""`nst look`: a local page over a version or a labeled source."""

from typing import Annotated

import typer

from nst_data.errors import UsageError

from .options import StoreOption, open_store

PoolOption = Annotated[
    str | None,
    typer.Option(
        "--pool", metavar="SOURCE", help="Where the images are now, if not where they were labeled; for a version of the Hub always."
    ),
]


def look(
    ref: Annotated[str, typer.Argument(metavar="REF", help="A generation or an edition, or labeled images: a folder, tar, parquet, ...")],
    ref2: Annotated[str | None, typer.Argument(metavar="[REF2]", help="Another version of the same images, or labeled ones.")] = None,
    port: Annotated[
        int | None, typer.Option(metavar="N", help="Port of the page; 0 takes a free one.", show_default="8765, or a free one")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser; the address is printed first.")] = False,
    pool: PoolOption = None,
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="Whose answers these are.")] = "reviewer",
    corpus: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where answers about labeled images go; else the version's corpus.")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Listen here too: others of the network may ask for the page.")
    ] = "127.0.0.1",
    store: StoreOption = None,
) -> None:
    """Look at images and their labels in the browser, filter and compare them, and correct what is wrong."""
    from .look.opening import open_contents
    from .look.running import show

    if corpus is None and ref2 is not None and ref2 == ref:
        raise UsageError(f"{ref}: expected another version to compare with as REF2")
    contents = open_contents(open_store(store), ref, ref2, pool, reviewer, corpus)
    show(contents, host, port, opens_browser=not no_browser)

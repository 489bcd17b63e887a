"""Plain-text tables and bars that fit 80 columns. In names from the data, unprintable characters are escaped."""

import textwrap
from collections.abc import Iterable, Sequence

from nst_data.progress import escape_unprintable

WIDTH = 80
NAME_WIDTH = 24

Cell = str | int | float | None


def print_table(header: Sequence[str], rows: Iterable[Sequence[Cell]], names: int = 1, name_width: int = NAME_WIDTH) -> None:
    """Print an indented table: `names` columns of text aligned left, the others aligned right. A float is shown as a percentage.

    The columns of text are cut at `name_width`.
    """
    from rich.cells import cell_len, set_cell_size

    lines = [header, *([_format_cell(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(header))]
    widths[:names] = [min(width, name_width) for width in widths[:names]]
    for line in lines:
        left = [set_cell_size(cell, width) for cell, width in zip(line[:names], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(line[names:], widths[names:], strict=True)]
        print("  " + "  ".join([*left, *right]).rstrip())


def _format_cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return escape_unprintable(cell)
    return f"{100 * cell:.2f}%" if isinstance(cell, float) else f"{cell:,}"


def bar(images: int, maximum: int, width: int) -> str:
    """A bar as long as the share of `images` in `maximum`, with at least one character unless there are no images."""
    return "#" * max(round(width * images / maximum), 1) if images else ""


def print_wrapped(text: str, hang: int = 0) -> None:
    """Print a sentence over as many lines as necessary, with all after the first indented by `hang` more."""
    print(textwrap.fill(escape_unprintable(text), WIDTH, initial_indent="  ", subsequent_indent="  " + " " * hang, break_on_hyphens=False))


def join_names(names: Sequence[str], limit: int = 20) -> str:
    """The first `limit` names, and how many more there are."""
    shown = ", ".join(map(escape_unprintable, names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"


def describe_empty_classes(classes: Sequence[str]) -> str:
    """How many classes have no images, and which."""
    return f"{len(classes):,} class{'es' * (len(classes) != 1)} without any image: {join_names(classes)}"

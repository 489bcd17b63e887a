"""The page as static files: a sample of its images with all their details, in one file that opens from disk or as a static Space."""

import base64
import json
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nst_data.cards.cards import show_on_card
from nst_data.cards.published import public_name
from nst_data.errors import NstError, UsageError
from nst_data.inspection.view import View
from nst_data.progress import Progress
from nst_data.store.files import names_in, write_text
from nst_data.store.version import Version

from .contents import Contents
from .numbers import number
from .sheet import sheet
from .template import PAGE, page_files, template
from .thumbnails import THUMB_PX

MOST_IMAGES, MOST_BYTES = 600, 12 * 2**20  # of thumbnails
_MOST_ERRORS = 50
_MARK = "exported-by: nst look"
_SPACE = """---
title: {title}
sdk: static
app_file: index.html
pinned: false
---

<!-- {mark} -->
A view of {title}, exported by `nst look`.
"""


def export(contents: Contents, folder: Path, anonymous: bool, progress: Progress, card_of: Version | None = None) -> dict[str, int]:
    """Write `index.html`, and a README.md that makes the folder a static Space; returns the number of `images` and of `bytes` in the page.

    With `anonymous`, keys, hashes and reviewers are left out. A picture of the page is added to the card of `card_of`. Raises UsageError
    for a folder with other content.
    """
    _check(folder)
    page = sample(contents, anonymous, progress)
    if card_of is not None:
        picture = sheet(page)
        if not picture:
            raise NstError(f"{card_of.ref}: none of its images could be read, so its card was not changed; pass their source with `pool`")
        show_on_card(card_of, picture)
    files = {name: (PAGE / name).read_text("utf-8") for name in page_files()}
    data = json.dumps(page, separators=(",", ":")).replace("<", "\\u003c")
    title = page["overview"]["ref"]
    html = template().render(title=title, export={"files": files, "data": data})
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "index.html", html)
    write_text(folder / "README.md", _SPACE.format(title=json.dumps(title), mark=_MARK))
    return {"images": len(page["items"]), "bytes": len(html.encode())}


def sample(contents: Contents, anonymous: bool, progress: Progress) -> dict[str, Any]:
    """The data of an exported page: {overview, items, images, thumbs}."""
    view = contents.view
    if view.compared is not None:
        wait([view.compared])
    rows = chosen_rows(contents)
    items = contents.items(rows)
    thumbs: dict[int, str] = {}
    shown, used = [], 0
    soft = view.columns.soft() if view.columns is not None else None
    with progress.task("export", len(items), "images") as task:
        for item in items:
            task.advance(1)
            if used >= MOST_BYTES:
                break
            row = item["id"]
            with suppress(NstError, OSError):
                jpeg = contents.jpeg(row, THUMB_PX)[1]
                thumbs[row] = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
                used += len(thumbs[row])
            values = soft.row(row, named=True) if soft is not None and row < len(view) else {}
            shown.append({**item, **{name: number(value) for name, value in values.items()}, "from": item["label2"]})
    there = {item["id"] for item in shown}
    images = {detail["id"]: _among(detail, there) for detail in contents.details([item["id"] for item in shown])}
    overview = contents.overview()
    overview |= {"ref": _public(overview["ref"]), "ref2": _public(overview["ref2"]), "teacher": _public(overview["teacher"])}
    overview |= {"sampled": _sampled(overview, sum(item["error"] is None for item in shown))}
    overview |= {"can": overview["can"] | {"review": False}, "queues": [], "pending": False}
    overview |= {"compared": _public(overview["compared"])}
    if overview["flow"]:
        overview["flow"] = overview["flow"] | {"from": _public(overview["flow"]["from"])}
    page = {"overview": overview, "items": shown, "images": images, "thumbs": thumbs}
    return _without_names(page) if anonymous else page


def _sampled(overview: dict[str, Any], shown: int) -> dict[str, int] | None:
    """How many of how many images are in the export, neither counting unreadable ones; None if all are."""
    of = overview["sampled"]["of"] if overview["sampled"] else overview["rows"] + sum((overview["dropped"] or {}).values())
    return {"rows": shown, "of": of} if shown < of else None


def chosen_rows(contents: Contents) -> list[int]:
    """The rows to export: answered ones first, then rows of all classes from the least to the most confident, dropped ones, and errors."""
    view, rows = contents.view, list[int]()
    if contents.reviewing:
        contents.reviewing.refresh()
        rows += contents.reviewing.rows("yes").tolist()[: MOST_IMAGES // 4]
    rows += _spread(view, MOST_IMAGES - len(rows))
    with suppress(UsageError):
        left_out = view.dropped.frame.height
        rows += (view.first_dropped + _evenly(np.arange(left_out), MOST_IMAGES // 4)).tolist()
    rows += range(len(view), len(view) + min(view.errors.height, _MOST_ERRORS))
    return list(dict.fromkeys(rows))


def _spread(view: View, most: int) -> list[int]:
    """Rows of each class, evenly spaced by confidence: the same number from each, and what small classes leave to the larger ones."""
    by = [name for name in ("label", "confidence", "row") if name in view.frame.columns]
    parts = view.frame.select(by).sort(by).select("label", "row").partition_by("label", maintain_order=True)
    shares, left = dict[int, int](), most
    for place, part in enumerate(sorted(parts, key=len)):
        shares[part["label"][0]] = share = min(len(part), max(1, left // (len(parts) - place)))
        left -= share
    chosen = (_evenly(part["row"].to_numpy().astype(np.int64), shares[part["label"][0]]).tolist() for part in parts)
    return [row for rows in chosen for row in rows][:most]


def _evenly(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` rows, evenly spaced, including the first and the last."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _among(detail: dict[str, Any], there: set[int]) -> dict[str, Any]:
    """The details of an image, with links only to other images in the export."""
    similar = [other for other in detail["similar"] if other["id"] in there]
    return detail | {"similar": similar, "near_duplicates": [other for other in detail["near_duplicates"] if other in there]}


def _public(name: str | None) -> str | None:
    """Names separated by commas, with paths of this machine shortened to their last part."""
    return name and ", ".join(public_name(one) for one in name.split(", "))


def _without_names(page: dict[str, Any]) -> dict[str, Any]:
    """Remove keys, hashes, reviewers, and error messages, which may contain a path."""
    numbers = {item["id"]: f"image {number + 1}" for number, item in enumerate(page["items"])}
    hidden: dict[str, Any] = {"hash": None, "answers": [], "pick": None}

    def anonymous(item: dict[str, Any]) -> dict[str, Any]:
        error = None if item["error"] is None else "could not be read"
        return item | {"key": numbers[item["id"]], "error": error} | {name: hidden[name] for name in hidden if name in item}

    review = page["overview"]["review"] and page["overview"]["review"] | {"reviewer": "anonymous"}
    return page | {
        "items": [anonymous(item) for item in page["items"]],
        "images": {row: anonymous(detail) for row, detail in page["images"].items()},
        "overview": page["overview"] | {"review": review},
    }


def _check(folder: Path) -> None:
    """Raises UsageError for a file, and for a folder with anything other than an earlier export."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"`export` {folder}: expected a folder, found a file")
    there = names_in(folder) if folder.exists() else []
    readme = folder / "README.md"
    if there and not (
        set(there) <= {"README.md", "index.html", ".git", ".gitattributes"}
        and readme.is_file()
        and _MARK in readme.read_text("utf-8", "replace")
    ):
        raise UsageError(f"`export` {folder}: has {there[0]!r} and other files of no export; choose a new or an empty folder")

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
from nst_data.store.files import list_names, write_text
from nst_data.store.version import Version

from .contents import Contents
from .numbers import json_number
from .sheet import contact_sheet
from .template import PAGE, page_files, template
from .thumbnails import THUMB_PX

MAX_IMAGES, MAX_BYTES = 600, 12 * 2**20  # of thumbnails
_MAX_ERRORS = 50
_MARK = "exported-by: nst look"
_README = """---
title: {title}
sdk: static
app_file: index.html
pinned: false
---

<!-- {mark} -->
A view of {title}, exported by `nst look`.
"""


def export(contents: Contents, folder: Path, anonymous: bool, progress: Progress, card_version: Version | None = None) -> dict[str, int]:
    """Write `index.html`, and a README.md that makes the folder a static Space; returns the number of `images` and of `bytes` in the page.

    With `anonymous`, keys, hashes and reviewers are left out. A picture of the page is added to the card of `card_version`. Raises
    UsageError for a folder with other content.
    """
    _check_folder(folder)
    page = build_page(contents, anonymous, progress)
    if card_version is not None:
        picture = contact_sheet(page)
        if not picture:
            raise NstError(
                f"{card_version.ref}: none of its images could be read, so its card was not changed; pass their source with `pool`"
            )
        show_on_card(card_version, picture)
    files = {name: (PAGE / name).read_text("utf-8") for name in page_files()}
    data = json.dumps(page, separators=(",", ":")).replace("<", "\\u003c")
    title = page["overview"]["ref"]
    html = template().render(title=title, export={"files": files, "data": data})
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "index.html", html)
    write_text(folder / "README.md", _README.format(title=json.dumps(title), mark=_MARK))
    return {"images": len(page["items"]), "bytes": len(html.encode())}


def build_page(contents: Contents, anonymous: bool, progress: Progress) -> dict[str, Any]:
    """The data of an exported page: {overview, items, images, thumbs}."""
    view = contents.view
    if view.compared is not None:
        wait([view.compared])
    rows = select_rows(contents)
    items = contents.items(rows)
    thumbs: dict[int, str] = {}
    shown, used_bytes = [], 0
    soft = view.columns.margins_and_entropies() if view.columns is not None else None
    with progress.task("export", len(items), "images") as task:
        for item in items:
            task.advance(1)
            if used_bytes >= MAX_BYTES:
                break
            row = item["id"]
            with suppress(NstError, OSError):
                jpeg = contents.jpeg(row, THUMB_PX)[1]
                thumbs[row] = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
                used_bytes += len(thumbs[row])
            values = soft.row(row, named=True) if soft is not None and row < len(view) else {}
            shown.append({**item, **{name: json_number(value) for name, value in values.items()}, "from": item["label2"]})
    exported_rows = {item["id"] for item in shown}
    images = {detail["id"]: _limit_links(detail, exported_rows) for detail in contents.details([item["id"] for item in shown])}
    overview = contents.overview()
    overview |= {
        "ref": _public_names(overview["ref"]),
        "ref2": _public_names(overview["ref2"]),
        "teacher": _public_names(overview["teacher"]),
    }
    overview |= {"sampled": _sample_counts(overview, sum(item["error"] is None for item in shown))}
    overview |= {"can": overview["can"] | {"review": False}, "queues": [], "pending": False}
    overview |= {"compared": _public_names(overview["compared"])}
    if overview["flow"]:
        overview["flow"] = overview["flow"] | {"from": _public_names(overview["flow"]["from"])}
    page = {"overview": overview, "items": shown, "images": images, "thumbs": thumbs}
    return _anonymize(page) if anonymous else page


def _sample_counts(overview: dict[str, Any], shown: int) -> dict[str, int] | None:
    """How many of how many images are in the export, neither counting unreadable ones; None if all are."""
    total = overview["sampled"]["of"] if overview["sampled"] else overview["rows"] + sum((overview["dropped"] or {}).values())
    return {"rows": shown, "of": total} if shown < total else None


def select_rows(contents: Contents) -> list[int]:
    """The rows to export: answered ones first, then rows of all classes from the least to the most confident, dropped ones, and errors."""
    view, rows = contents.view, list[int]()
    if contents.reviewing:
        contents.reviewing.refresh()
        rows += contents.reviewing.answered_rows("yes").tolist()[: MAX_IMAGES // 4]
    rows += _rows_per_class(view, MAX_IMAGES - len(rows))
    with suppress(UsageError):
        left_out = view.dropped.frame.height
        rows += (view.first_dropped_row + _evenly_spaced(np.arange(left_out), MAX_IMAGES // 4)).tolist()
    rows += range(len(view), len(view) + min(view.errors.height, _MAX_ERRORS))
    return list(dict.fromkeys(rows))


def _rows_per_class(view: View, limit: int) -> list[int]:
    """Rows of each class, evenly spaced by confidence: the same number from each, and what small classes leave to the larger ones."""
    by = [name for name in ("label", "confidence", "row") if name in view.frame.columns]
    parts = view.frame.select(by).sort(by).select("label", "row").partition_by("label", maintain_order=True)
    shares, left = dict[int, int](), limit
    for place, part in enumerate(sorted(parts, key=len)):
        shares[part["label"][0]] = share = min(len(part), max(1, left // (len(parts) - place)))
        left -= share
    chosen = (_evenly_spaced(part["row"].to_numpy().astype(np.int64), shares[part["label"][0]]).tolist() for part in parts)
    return [row for rows in chosen for row in rows][:limit]


def _evenly_spaced(rows: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """At most `limit` rows, evenly spaced, including the first and the last."""
    return rows if len(rows) <= limit else rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]


def _limit_links(detail: dict[str, Any], exported_rows: set[int]) -> dict[str, Any]:
    """The details of an image, with links only to other images in the export."""
    similar = [other for other in detail["similar"] if other["id"] in exported_rows]
    return detail | {"similar": similar, "near_duplicates": [other for other in detail["near_duplicates"] if other in exported_rows]}


def _public_names(name: str | None) -> str | None:
    """Names separated by commas, with paths of this machine shortened to their last part."""
    return name and ", ".join(public_name(single_name) for single_name in name.split(", "))


def _anonymize(page: dict[str, Any]) -> dict[str, Any]:
    """Remove keys, hashes, reviewers, and error messages, which may contain a path."""
    numbers = {item["id"]: f"image {number + 1}" for number, item in enumerate(page["items"])}
    hidden: dict[str, Any] = {"hash": None, "answers": [], "pick": None}

    def anonymize_item(item: dict[str, Any]) -> dict[str, Any]:
        error = None if item["error"] is None else "could not be read"
        return item | {"key": numbers[item["id"]], "error": error} | {name: hidden[name] for name in hidden if name in item}

    review = page["overview"]["review"] and page["overview"]["review"] | {"reviewer": "anonymous"}
    return page | {
        "items": [anonymize_item(item) for item in page["items"]],
        "images": {row: anonymize_item(detail) for row, detail in page["images"].items()},
        "overview": page["overview"] | {"review": review},
    }


def _check_folder(folder: Path) -> None:
    """Raises UsageError for a file, and for a folder with anything other than an earlier export."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"`export` {folder}: expected a folder, found a file")
    file_names = list_names(folder) if folder.exists() else []
    readme = folder / "README.md"
    if file_names and not (
        set(file_names) <= {"README.md", "index.html", ".git", ".gitattributes"}
        and readme.is_file()
        and _MARK in readme.read_text("utf-8", "replace")
    ):
        raise UsageError(f"`export` {folder}: has {file_names[0]!r} and other files of no export; choose a new or an empty folder")

"""Dataset and model cards. Names from the data stand in them as text, never as markup."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from nst_data.curves import CURVES
from nst_data.files import write_text
from nst_data.manifest import Manifest, Request
from nst_data.store import Staging

_BOUNDS = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]


def write_generation_card(staging: Staging, class_names: Sequence[str], counts: Mapping[str, Any]) -> None:
    """The card of a labeled pool."""
    _write_dataset_card(staging, "generation.md.jinja", ["pseudo_labels", "errors"], counts["labeled"], class_names, counts)


def write_edition_card(staging: Staging, parent: Manifest, counts: Mapping[str, Any]) -> None:
    """The card of a balanced training set."""
    tables = ["balanced", "errors"] if "errors" in counts else ["balanced"]  # `nst label --like` has errors of its own
    _write_dataset_card(staging, "edition.md.jinja", tables, counts["unique"], parent.class_names, counts)


def write_model_card(
    folder: Path, ref: str, request: Request, class_names: Sequence[str], counts: Mapping[str, Any], metrics: Mapping[str, Any]
) -> None:
    """The card of a teacher. It lies outside the seal: written again when new metrics are measured."""
    front = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "nst", "noisy-student"],
    }
    about = {"class_names": class_names, "counts": counts, "metrics": metrics, "requires_import": _required_import(folder)}
    about["curves"] = CURVES if (folder / CURVES).is_file() else None
    text = _render("teacher.md.jinja", ref=ref, request=request, **about)
    write_text(folder / "README.md", _front_matter(front) + text)


def _required_import(teacher: Path) -> str | None:
    """The module of nst that names a teacher's network to timm; None where timm knows it."""
    config = teacher / "config.json"
    name = json.loads(config.read_text("utf-8")).get("requires_import") if config.is_file() else None
    return name if re.fullmatch(r"nst_train\.\w+", str(name)) else None


def _write_dataset_card(
    staging: Staging, template: str, tables: list[str], rows: int, class_names: Sequence[str], counts: Mapping[str, Any]
) -> None:
    about = f"{staging.ref} {staging.request.digest[:16]}"  # `datasets` caches by folder name and this text: else every gen-1 were one
    configs: list[dict[str, Any]] = [
        {"config_name": table, "description": about, "data_files": [{"split": "train", "path": f"{table}/train-*.parquet"}]}
        for table in tables
    ]
    configs[0]["default"] = True
    front = {
        "configs": configs,
        "task_categories": ["image-classification"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [_size_category(rows)],
        "tags": ["nst", "noisy-student", "pseudo-labels", "self-training"],
    }
    text = _render(
        template,
        ref=staging.ref,
        folder=staging.target,
        request=staging.request,
        class_names=class_names,
        counts=counts,
        top_k=counts.get("top_k"),
    )
    write_text(staging.build / "README.md", _front_matter(front) + text, staging.work)


def _size_category(rows: int) -> str:
    """The Hub's name for a number of rows."""
    power = max(0, len(str(rows)) - 3)
    if power == 0:
        return "n<1K"
    return f"{_BOUNDS[power - 1]}<n<{_BOUNDS[power]}" if power < len(_BOUNDS) else "n>1T"


def _front_matter(content: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(content, sort_keys=False)}---\n\n"


def _render(template: str, **values: Any) -> str:  # noqa: ANN401 - what the template shows
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # markdown: `text` escapes both HTML and markdown
    )
    environment.filters["text"] = as_text
    return environment.get_template(template).render(**values)


def as_text(value: object) -> str:
    """Any value as one line of markdown that shows as it is: no tags, links, tables or headings come out of it."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]()#+!|~$:.-])", r"\\\1", html.escape(line, quote=False))

"""The YAML at the top of a card, as read by the Hub, `datasets`, timm and transformers."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from nst_data.cards.described import Described
from nst_data.cards.own_text import TAG, read_card
from nst_data.cards.published import HubPlace, Published, place_of, public_name
from nst_data.cards.rights import INITIAL_WEIGHTS, input_licenses
from nst_data.hub.licenses import read_front_matter
from nst_data.hub.reference import HubReference
from nst_data.store.counts import EditionCounts, GenerationCounts, ReviewCounts
from nst_data.store.metrics import Metrics, Result

_BOUNDS = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
_MAX_CLASS_NAMES = (
    1_000  # reading 10,000 names from YAML takes `datasets` 0.5 s; with more classes it reads the names from the parquet files
)
_LICENSE_KEYS = ("license", "license_name", "license_link", "license_details")
_OWN_KEY = "nst"  # carried over when the card is rewritten
# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0 artistic-2.0
    bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0
    gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa
    unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 gemma unknown
    """.split()  # noqa: SIM905 - as many lines as a list has names
)


def front_matter(content: Mapping[str, Any]) -> str:
    """The YAML between `---` lines at the top of a card, valid for any values."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return f"---\n{yaml.dump(dict(content), Dumper=dumper, sort_keys=False, width=2**30)}---\n\n"


def license_of(published: Published | None, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The license in the Hub's format: one of its identifiers, or `other` with a name and the user's words.

    If none is given, the license of the earlier card.
    """
    license_text = published.license if published else None
    if license_text is None or not license_text.strip():
        keys = [
            key
            for key in _LICENSE_KEYS
            if isinstance(earlier.get(key), str) or (key == "license" and _is_list_of_strings(earlier.get(key)))
        ]
        return {key: earlier[key] for key in keys}
    return _parse_license(license_text)


def _parse_license(text: str) -> dict[str, Any]:
    text = " ".join(text.split())
    name = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:60].strip("-.")
    if identifier := next((candidate for candidate in (text.lower(), name) if candidate in LICENSES), None):
        return {"license": identifier}
    link = {"license_link": text} if re.fullmatch(r"https?://\S+", text) else {}
    return {"license": "other", "license_name": name or "custom", **link, "license_details": text}


def earlier_metadata(folder: Path, published: Published | None) -> dict[str, Any]:
    """The YAML of the card in a version's folder, overridden by that of the card in the repository.

    A license that the user wrote into the former is converted to the Hub's format, since the Hub refuses cards with other licenses.
    """
    local, remote = read_front_matter(read_card(folder)), read_front_matter(published.earlier_card if published else "")
    license = local.get("license")
    if "license" in remote:
        local = {key: value for key, value in local.items() if key not in _LICENSE_KEYS}
    elif isinstance(license, str) and license.strip() and license not in LICENSES | {"other"}:
        local |= _parse_license(license)
    return local | remote


def pool_source_of(published: Published | None, earlier: Mapping[str, Any]) -> str | None:
    """Where the pool's images come from, in the user's words: those given, or else those in the earlier card."""
    section = earlier.get(_OWN_KEY)
    earlier_source = section.get("pool_source") if isinstance(section, dict) else None
    new_source = published.pool_source if published else None
    return new_source if new_source is not None else earlier_source if isinstance(earlier_source, str) else None


def dataset_metadata(described: Described, published: Published | None, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a version of a corpus."""
    # `datasets` caches by folder name and this text; without it, all versions named gen-1 would share a cache entry
    description = f"{described.ref} {described.manifest.request.digest[:16]}"
    configs: list[dict[str, Any]] = [
        {"config_name": table, "description": description, "data_files": [{"split": "train", "path": f"{table}/train-*.parquet"}]}
        for table in described.tables
    ]
    configs[0]["default"] = True
    counts = described.manifest.counts
    rows = counts.unique if isinstance(counts, EditionCounts) else counts.labeled if isinstance(counts, GenerationCounts) else 0
    is_review = isinstance(counts, ReviewCounts)
    creator = "expert-generated" if is_review else "found" if described.may_be_by_people else "machine-generated"
    rows = counts.answered if isinstance(counts, ReviewCounts) else rows
    places = {role: place_of(role, entry, published) for role, entry in described.inputs.by_role.items()}
    pool_source = pool_source_of(published, earlier)
    return {
        **license_of(published, earlier),
        "pretty_name": f"{published.repo.partition('/')[2] if published else described.target.parent.name} {described.target.name}",
        "task_categories": ["image-classification"],
        "annotations_creators": [creator],
        "source_datasets": _repos(places, "pool") or ["original"],
        "size_categories": [_size_category(rows)],
        "tags": ["nst", TAG, "reviews" if is_review else "pseudo-labels", "self-training"],
        "configs": configs,
        **_dataset_info(described, published),
        **({_OWN_KEY: {"pool_source": pool_source}} if pool_source is not None else {}),
    }


def model_metadata(described: Described, published: Published | None, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a teacher.

    `base_model` is the model whose weights training started from, a finetune in the Hub's terms; the teacher of its labels contributed no
    weights. Its license applies if the user gives none, unless something that the model was trained on has a more restrictive license.
    """
    places = {role: place_of(role, entry, published) for role, entry in described.inputs.by_role.items()}
    base, trained_on = _repos(places, "initial_weights"), _repos(places, "edition", "labeled")
    library, weights = library_of(described.folder), described.inputs.by_role.get("initial_weights")
    is_free = not any(right.restriction for right in input_licenses(described, published) if right.role != INITIAL_WEIGHTS)
    inherited = {"license": weights.license} if weights and weights.license in LICENSES and is_free else {}
    return {
        **(license_of(published, earlier) or inherited),
        "library_name": library,
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", library, "nst", TAG],
        **({"base_model": base, "base_model_relation": "finetune"} if base else {}),
        **({"datasets": trained_on} if trained_on else {}),
        **_model_index(described, published),
    }


def library_of(teacher: Path) -> str:
    """`transformers` for a folder in its format, else `timm`."""
    config = _config(teacher)
    return "transformers" if "model_type" in config and not {"architecture", "pretrained_cfg"} & config.keys() else "timm"


def required_import(teacher: Path) -> str | None:
    """The nst module that registers a teacher's network with timm; None if timm itself knows the network."""
    name = str(_config(teacher).get("requires_import"))
    return name if re.fullmatch(r"nst_train\.\w+", name) else None


def scores(metrics: Metrics) -> dict[str, dict[str, Any]]:
    """Results with a top-1 accuracy, mean corruption error or mean flip rate, by name.

    Each has `top1`, `top5` and `ece` as fractions, `mce`, `mfr`, `epsilon` (the size of an attack), `images`, and the strings
    `relative_to` (the reference for errors) and `source`, as far as they are known.
    """
    results = {}
    for name, result in metrics.root.items():
        if result.partial:  # not comparable with other results reported under this name
            continue
        epsilon = result.by_epsilon[-1].epsilon if result.by_epsilon else None
        numbers = {"top1": result.top1, "top5": result.top5, "ece": result.ece, "mce": result.mce, "mfr": result.mfr, "epsilon": epsilon}
        measured = {key: value for key, value in numbers.items() if value is not None and math.isfinite(value)}
        if not {"top1", "mce", "mfr"} & measured.keys():
            continue
        texts = {"source": result.source, "relative_to": result.relative_to and public_name(result.relative_to)}
        results[name] = {**measured, "images": result.images or 0, **{key: text for key, text in texts.items() if text is not None}}
    return results


_METRICS = {
    "top1": ("accuracy", "top-1 accuracy"),
    "top5": ("accuracy", "top-5 accuracy"),
    "ece": ("expected_calibration_error", "expected calibration error"),
    "mce": ("mean_corruption_error", "mean corruption error"),
    "mfr": ("mean_flip_rate", "mean flip rate"),
}


def _config(teacher: Path) -> dict[str, Any]:
    try:
        content = json.loads((teacher / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _model_index(described: Described, published: Published | None) -> dict[str, Any]:
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    metrics = described.metrics()
    for name, result in scores(metrics).items():
        dataset = _dataset_of(name, result, hub_dataset(metrics.root[name]))
        for key, (kind, label) in _METRICS.items():
            if key in result:
                results.append(
                    EvalResult(
                        task_type="image-classification",
                        task_name="Image Classification",
                        **dataset,
                        metric_type=kind,
                        metric_value=result[key],
                        metric_name=label,
                    )
                )
    if not results:
        return {}
    name = published.repo.partition("/")[2] if published else described.target.parent.name
    data: dict[str, Any] = ModelCardData(model_name=name, eval_results=results).to_dict()  # type: ignore[no-untyped-call]
    return {"model-index": data["model-index"]}


def hub_dataset(result: Result) -> HubReference | None:
    """The Hub dataset, with commit, that a result was measured on; None for other images, for parts, and for images altered by a suite."""
    reference = HubReference.parse_dataset(result.source) if result.source and result.suite is None else None
    return reference if reference and re.fullmatch(r"[0-9a-f]{40}", reference.revision or "") else None


def _dataset_of(name: str, result: Mapping[str, Any], on_hub: HubReference | None) -> dict[str, Any]:
    """The images of a result: for a dataset on the Hub its id, config, split and commit.

    Others use the result's name as split, since the Hub's library would otherwise confuse test and validation results.
    """
    source = result.get("source", name)
    if on_hub is None:
        return {"dataset_type": "imagefolder", "dataset_name": public_name(source), "dataset_split": name}
    hub_fields = {"dataset_config": on_hub.config, "dataset_split": on_hub.split or name, "dataset_revision": on_hub.revision}
    return {"dataset_type": on_hub.repo, "dataset_name": on_hub.repo, **hub_fields}


def _dataset_info(described: Described, published: Published | None) -> dict[str, Any]:
    """Features and sizes of each table, as `datasets` writes them; without features if there are too many classes for YAML."""
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    infos = DatasetInfosDict()
    for table in described.tables:
        files = described.files(table)
        if not files:
            continue
        footers = [pq.read_metadata(file) for file in files]
        schema = footers[0].schema.to_arrow_schema()
        if published and published.anonymous and "key" in schema.names:
            continue  # a different table will be published
        size, rows = sum(_arrow_bytes(footer, schema) for footer in footers), sum(footer.num_rows for footer in footers)
        features = Features.from_arrow_schema(schema) if len(described.manifest.class_names) <= _MAX_CLASS_NAMES else None
        splits = SplitDict({"train": SplitInfo("train", num_bytes=size, num_examples=rows)})
        downloaded = sum(file.stat().st_size for file in files)
        infos[table] = DatasetInfo(features=features, splits=splits, download_size=downloaded, dataset_size=size)
    data = DatasetCardData()
    infos.to_dataset_card_data(data)
    return {"dataset_info": data["dataset_info"]} if infos else {}


def _arrow_bytes(footer: pq.FileMetaData, schema: pa.Schema) -> int:
    """Size of a file's rows in memory: numbers by width, strings and images by their uncompressed size in the footer."""
    if not footer.num_rows:
        return 0
    size: int = footer.num_rows * sum(_bytes_of(field.type) for field in schema)
    texts = {field.name for field in schema if not _bytes_of(field.type)}
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.partition(".")[0] in texts:
                size += column.total_uncompressed_size
    return size


def _bytes_of(kind: pa.DataType) -> int:
    """The size of a value in bytes; 0 if it varies by row."""
    if isinstance(kind, pa.FixedSizeListType):
        return int(kind.list_size) * _bytes_of(kind.value_type)
    return int(kind.bit_width) // 8 if pa.types.is_primitive(kind) else 0


def _repos(places: Mapping[str, HubPlace | None], *roles: str) -> list[str]:
    return list(dict.fromkeys(place.repo for role in roles if (place := places.get(role)) is not None))


def _size_category(rows: int) -> str:
    """The Hub's size category for a number of rows."""
    power = max(0, len(str(rows)) - 3)
    if power == 0:
        return "n<1K"
    return f"{_BOUNDS[power - 1]}<n<{_BOUNDS[power]}" if power < len(_BOUNDS) else "n>1T"


def _is_list_of_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)

"""`croissant.json` of a version on the Hub, for catalogs and search engines: its tables, and who or what produced the labels.

Croissant 1.0 (with the annotation fields of its responsible AI vocabulary, RAI 1.0) and relations of W3C's PROV for what the version was
made from. The Hub generates its own Croissant for every dataset, but only from the tables: it does not know where labels come from.
"""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nst_data.cards.card_metadata import earlier_metadata, license_of
from nst_data.cards.described import Described
from nst_data.cards.known_limits import known_limits
from nst_data.cards.published import HubPlace, Published, place_of, public_ref
from nst_data.cards.reproduction import reproduction_command
from nst_data.store.inputs import EditionInputs, Input
from nst_data.store.manifest import ReviewManifest
from nst_data.store.version import VERSION_REF, Number

CROISSANT = "croissant.json"

_PREFIXES = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
}
_CROISSANT_TERMS = (
    *("citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes"),
    *("isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated", "replace"),
    *("samplingRate", "separator", "source", "subField", "transform"),
)
_CONTEXT = {
    **_PREFIXES,
    **{name: f"cr:{name}" for name in _CROISSANT_TERMS},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}

_COLUMNS = {
    "id": "row of the image in its source",
    "key": "name of the image in its source",
    "image_hash": "xxh3-128 of the image's encoded bytes",
    "image": "the image, as it was encoded",
    "label": "the most probable class or, of a review, the class that people gave",
    "confidence": "probability of the most probable class",
    "probs": "soft label: a probability for each class, in the order of the class names",
    "top_labels": "soft label: the most probable classes",
    "top_probs": "soft label: their probabilities",
    "duplicates": "images of the pool with the same bytes, this one included",
    "copies": "times that a training sees the image in one pass",
    "reason": "why the image has no label",
}


def croissant(described: Described, published: Published) -> str:
    """The text of the file for a generation, an edition or a review. Names only what the public card names, and no local path."""
    manifest = described.manifest
    content = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": described.ref,
        "description": f"{_KINDS[manifest.kind]}, {len(manifest.class_names):,} classes: version {manifest.version} of {published.repo}.",
        "url": HubPlace(published.repo, published.tag, "dataset").url,
        "creator": {"@type": "sc:Organization", "name": published.repo.partition("/")[0]},
        "datePublished": manifest.created,
        "version": _semantic_version(manifest.version),
        **_license(described, published),
        **dict(_annotation(described, published)),
        "prov:wasDerivedFrom": list(_sources(described, published)),
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "prov:wasAssociatedWith": {"@type": "prov:SoftwareAgent", "name": _software(described)},
            **(
                {"description": command_line}
                if (command_line := reproduction_command(described, published)) and not published.anonymous
                else {}
            ),
        },
        "distribution": list(_files(described, published)),
        "recordSet": [_table(described, table) for table in described.tables],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


_KINDS = {
    "generation": "Pseudo-labels of images",
    "edition": "A training set of pseudo-labeled images",
    "review": "Labels of images by people",
}


def _semantic_version(version: str) -> str:
    """The version as Croissant recommends it, `gen-1.2` as `1.2.0`."""
    number = Number.parse(version)
    return f"{number.generation}.{number.edition or 0}.0"


def _software(described: Described) -> str:
    return f"nst {described.manifest.packages.get('nst', '')}".strip()


def _license(described: Described, published: Published) -> dict[str, str]:
    metadata = license_of(published, earlier_metadata(described.folder, published))
    name = metadata.get("license_link") or metadata.get("license_name") or metadata.get("license")
    return {"license": name} if isinstance(name, str) else {}


def _annotation(described: Described, published: Published) -> Iterator[tuple[str, Any]]:
    """Who labeled the images, with which tools, and known limitations."""
    manifest, names = described.manifest, described.manifest.class_names
    classes = ", ".join(names[:_MAX_CLASSES]) + (f" and {len(names) - _MAX_CLASSES:,} more" if len(names) > _MAX_CLASSES else "")
    if isinstance(manifest, ReviewManifest):
        yield "rai:dataAnnotationProtocol", f"People looked at single images and gave a class, or none. Classes: {classes}"
        yield "rai:dataAnnotationPlatform", [_software(described)]
        return
    teachers = [teacher for teacher in described.teachers().values() if _may_be_named(teacher, published)]
    labeled_by = described.labeling_version()
    protocol = "Soft labels by a machine." if labeled_by is None else _TEACHER_PROTOCOL
    if described.is_adopted:
        protocol = "Labels that were made elsewhere and adopted from a table."
    protocol += " This is a selection of them." if isinstance(described.inputs, EditionInputs) else ""
    yield "rai:dataAnnotationProtocol", f"{protocol} Classes: {classes}"
    tools = [public_ref(teacher) + (f" at revision {teacher.revision}" if teacher.revision else "") for teacher in teachers]
    if tools := ([] if described.is_adopted else [_software(described)]) + tools:
        yield "rai:machineAnnotationTools", tools
    yield "rai:annotationsPerItem", f"{max(1, len(described.teachers()))}"
    yield "rai:dataLimitations", known_limits(described, published)


_TEACHER_PROTOCOL = "Soft labels: the class probabilities that the teacher gives, averaged where there are several teachers."


_MAX_CLASSES = 20  # number of classes that are named


def _may_be_named(entry: Input, published: Published) -> bool:
    """For an anonymous version, only inputs that are versions: names omitted from its manifest could still be found through the store."""
    return not published.anonymous or VERSION_REF.fullmatch(entry.ref) is not None


def _sources(described: Described, published: Published) -> Iterator[dict[str, Any]]:
    """The inputs of the version, with their addresses if they are on the Hub."""
    for role, entry in described.inputs.by_role.items():
        if not _may_be_named(entry, published):
            continue
        place = place_of(role, entry, published)
        yield {
            "@type": "prov:Entity",
            **({"@id": place.url} if place else {}),
            "name": public_ref(entry),
            "prov:hadRole": role,
            **({"version": entry.revision} if entry.revision else {}),
            **({"license": entry.license} if entry.license else {}),
        }


def _files(described: Described, published: Published) -> Iterator[dict[str, Any]]:
    """The repository, and the parquet files of each table in it."""
    yield {
        "@type": "cr:FileObject",
        "@id": "repository",
        "name": "repository",
        "description": f"The repository at the tag {published.tag}; sha256 is the digest of `nst.json`, over every file's own.",
        "contentUrl": HubPlace(published.repo, published.tag, "dataset").url,
        "encodingFormat": "git+https",
        "sha256": described.manifest.digest,
    }
    for table in described.tables:
        yield {
            "@type": "cr:FileSet",
            "@id": f"{table}-files",
            "name": f"{table}-files",
            "containedIn": {"@id": "repository"},
            "encodingFormat": "application/x-parquet",
            "includes": f"{table}/train-*.parquet",
        }


def _table(described: Described, table: str) -> dict[str, Any]:
    files = described.files(table)
    columns = pq.read_schema(files[0]) if files else pa.schema([])
    return {
        "@type": "cr:RecordSet",
        "@id": table,
        "name": table,
        "field": [_field(table, column) for column in columns],
    }


def _field(table: str, column: pa.Field) -> dict[str, Any]:
    kind, is_list = column.type, False
    while isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        kind, is_list = kind.value_type, True
    is_image = isinstance(kind, pa.StructType)
    source: dict[str, Any] = {"fileSet": {"@id": f"{table}-files"}, "extract": {"column": column.name}}
    return {
        "@type": "cr:Field",
        "@id": f"{table}/{column.name}",
        "name": column.name,
        **({"description": _COLUMNS[column.name]} if column.name in _COLUMNS else {}),
        "dataType": _data_type(kind),
        **({"repeated": True} if is_list else {}),
        "source": source | ({"transform": {"jsonPath": "bytes"}} if is_image else {}),
    }


def _data_type(kind: pa.DataType) -> str:
    if isinstance(kind, pa.StructType):
        return "sc:ImageObject"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind):
        return "sc:Float"
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    return "sc:DateTime" if pa.types.is_timestamp(kind) else "sc:Text"

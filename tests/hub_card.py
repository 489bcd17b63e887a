"""What the test Hub wants of a README.md's metadata: what the Hub says that it verifies when a card is pushed.

Sources: huggingface/hub-docs `modelcard.md` (required keys of model-index; model-index, datasets and license are verified),
`datasetcard.md` (types), `docs/hub/repositories-licenses.md` (the licenses). That datasets and base_model be ids of repositories is
what users are told when they are not.
"""

import re

import yaml

LICENSES = frozenset(
    re.findall(
        r"\S+",
        """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
        artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
        cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
        cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0
        epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl
        mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2
        gemma unknown other""",
    )
)
_TYPES = {"configs": list, "tags": list, "task_categories": list, "annotations_creators": list, "model-index": list}
_TYPES |= {"dataset_info": (dict, list), "pretty_name": str, "library_name": str, "license_name": str}
_TYPES |= dict.fromkeys(("license", "language", "base_model", "datasets", "source_datasets", "size_categories"), (str, list))
_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def metadata(text):
    """(the metadata of a README.md or None, errors, warnings)."""
    match = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        return None, [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return None, [f"bad indentation or syntax: {str(error).splitlines()[0]}"], []
    if not isinstance(data, dict):
        return None, ["the metadata must be a mapping"], []
    errors = [f'"{key}" must be {kind}' for key, kind in _TYPES.items() if key in data and not isinstance(data[key], kind)]
    return data, errors or [*_wrong_values(data)], []


def _wrong_values(data):
    for license in _listed(data, "license"):
        if license not in LICENSES:
            yield f'"license" with value "{license}" must be one of the Hub\'s identifiers; for others, use "other" and "license_name"'
    for key, place in (("base_model", "models"), ("datasets", "datasets")):
        for value in _listed(data, key):
            if not isinstance(value, str) or not _ID.fullmatch(value):
                yield f'"{key}" with value "{value}" is not valid. Use an id from https://hf.co/{place}.'
    for config in data.get("configs", []):
        if not isinstance(config, dict) or "config_name" not in config:
            yield '"configs[].config_name" is required'
    for model in data.get("model-index", []):
        yield from (f'"model-index[].{key}" is required' for key in ("name", "results") if key not in model)
        for result in model.get("results", []):
            found = {("task", "type"): [result.get("task", {})], ("dataset", "type"): [result.get("dataset", {})]}
            found |= {("dataset", "name"): [result.get("dataset", {})], ("metrics", "type"): result.get("metrics", [{}])}
            found[("metrics", "value")] = result.get("metrics", [{}])
            for (part, key), places in found.items():
                if any(place.get(key) is None for place in places):
                    yield f'"model-index[].results[].{part}.{key}" is required'


def _listed(data, key):
    value = data.get(key, [])
    return value if isinstance(value, list) else [value]

"""Read and write Label Studio's JSON: tasks with predictions of models and answers of people."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from nst_data.errors import NstError

ABOUT = ("image_hash", "picked_by", "seen_in")  # what tasks exported by nst record about an image, in addition to its key
ANSWERS, PREDICTIONS = "annotations", "predictions"
ADDRESS = re.compile(r"\w[\w+.-]*://|/data/(?:local-files|upload)/")
_SERVED = "/data/local-files/"
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # prefix that the server adds to the name of an uploaded file

Task = Mapping[str, Any]


def is_task(row: Task) -> bool:
    """Whether a JSON object is a task with predictions or answers."""
    return isinstance(row.get("data"), dict) and (ANSWERS in row or PREDICTIONS in row)


def row_of(task: Task, location: str) -> dict[str, Any]:
    """A task's `key`, what it records `ABOUT` the image, its prediction and its answer, either of which may be None.

    Both have a `label` and a `score` (None for answers). Raises NstError if several predictions, or several answers, disagree.
    """
    where = f"{location}: task {task.get('id', '')} ({key_of(task)!r})"
    return {
        "key": key_of(task),
        **{name: task["data"][name] for name in ABOUT if isinstance(task["data"].get(name), str)},
        ANSWERS: _one(_of_results(task.get(ANSWERS), where), f"{where}: expected one answer"),
        PREDICTIONS: _one(_of_results(task.get(PREDICTIONS), where), f"{where}: expected the prediction of one model"),
    }


def key_of(task: Task) -> str:
    """The key that `nst export` wrote into a task, or else the path in the address of its image."""
    data = task["data"]
    if isinstance(data.get("key"), str):
        return str(data["key"])
    return path_of(next((value for value in (data.get("image"), *data.values()) if isinstance(value, str)), ""))


def path_of(address: str) -> str:
    """The image path in the address of a served or uploaded file, an object in a bucket, or any URL; other text is returned unchanged."""
    if not ADDRESS.match(address):
        return address
    scheme, _, rest = address.partition("://")
    if rest and scheme not in ("http", "https"):  # the key of an object in a bucket, unchanged
        return rest[rest.find("/") :] if "/" in rest else rest
    parts = urlsplit(address)
    query_paths = parse_qs(parts.query).get("d") if parts.path == _SERVED else None
    path = query_paths[0] if query_paths else unquote(parts.path)
    folder, slash, name = path.rpartition("/")
    return folder + slash + (_UPLOADED.sub("", name) if "/upload/" in address else name)


def served(path: str) -> str:
    """The address of a file below the folder served by Label Studio."""
    return f"{_SERVED}?d={quote(path)}"


def chosen(class_name: str) -> dict[str, Any]:
    """The JSON result of a prediction or an answer that chooses one class."""
    return {"result": [{"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": [class_name]}}]}


def _of_results(results: Any, where: str) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - any JSON value
    for result in results if isinstance(results, list) else ():
        if not isinstance(result, dict) or result.get("was_cancelled"):
            continue
        parts = result.get("result")
        chosen = [choice for part in (parts if isinstance(parts, list) else ()) for choice in _choices(part)]
        if len(chosen) > 1:
            raise NstError(f"{where}: expected one class, found {', '.join(map(repr, chosen))}")
        if chosen:
            yield {"label": chosen[0], "score": result.get("score")}


def _choices(part: Any) -> list[str]:  # noqa: ANN401
    value = part.get("value") if isinstance(part, dict) else None
    choices = value.get("choices") if isinstance(value, dict) else None
    return [str(choice) for choice in choices] if isinstance(choices, list) else []


def _one(found: Iterator[dict[str, Any]], expected: str) -> dict[str, Any] | None:
    different: list[dict[str, Any]] = []
    for result in found:
        if result not in different:
            different.append(result)
    if len(different) > 1:
        raise NstError(f"{expected}, found {', '.join(repr(result['label']) for result in different)}; export one")
    return different[0] if different else None

"""Read and write Label Studio's JSON: tasks with predictions of models and answers of people."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from nst_data.errors import NstError

IMAGE_FIELDS = ("image_hash", "picked_by", "seen_in")  # what tasks exported by nst record about an image, in addition to its key
ANSWERS, PREDICTIONS = "annotations", "predictions"
ADDRESS = re.compile(r"\w[\w+.-]*://|/data/(?:local-files|upload)/")
_SERVED = "/data/local-files/"
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # prefix that the server adds to the name of an uploaded file

Task = Mapping[str, Any]


def is_task(task: Task) -> bool:
    """Whether a JSON object is a task with predictions or answers."""
    return isinstance(task.get("data"), dict) and (ANSWERS in task or PREDICTIONS in task)


def row_of(task: Task, location: str) -> dict[str, Any]:
    """A task's `key`, those of the `IMAGE_FIELDS` that it has, and its prediction and its answer, either of which may be None.

    The last two have a `label` and a `score` (None for answers). Raises NstError if several predictions, or several answers, disagree.
    """
    task_location = f"{location}: task {task.get('id', '')} ({key_of(task)!r})"
    return {
        "key": key_of(task),
        **{name: task["data"][name] for name in IMAGE_FIELDS if isinstance(task["data"].get(name), str)},
        ANSWERS: _single_result(_chosen_labels(task.get(ANSWERS), task_location), f"{task_location}: expected one answer"),
        PREDICTIONS: _single_result(
            _chosen_labels(task.get(PREDICTIONS), task_location), f"{task_location}: expected the prediction of one model"
        ),
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
    url = urlsplit(address)
    query_paths = parse_qs(url.query).get("d") if url.path == _SERVED else None
    path = query_paths[0] if query_paths else unquote(url.path)
    folder, slash, name = path.rpartition("/")
    return folder + slash + (_UPLOADED.sub("", name) if "/upload/" in address else name)


def served_address(path: str) -> str:
    """The address of a file below the folder served by Label Studio."""
    return f"{_SERVED}?d={quote(path)}"


def choice_result(class_name: str) -> dict[str, Any]:
    """The JSON result of a prediction or an answer that chooses one class."""
    return {"result": [{"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": [class_name]}}]}


def _chosen_labels(results: Any, location: str) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - any JSON value
    for result in results if isinstance(results, list) else ():
        if not isinstance(result, dict) or result.get("was_cancelled"):
            continue
        items = result.get("result")
        chosen = [choice for item in (items if isinstance(items, list) else ()) for choice in _choices(item)]
        if len(chosen) > 1:
            raise NstError(f"{location}: expected one class, found {', '.join(map(repr, chosen))}")
        if chosen:
            yield {"label": chosen[0], "score": result.get("score")}


def _choices(part: Any) -> list[str]:  # noqa: ANN401
    value = part.get("value") if isinstance(part, dict) else None
    choices = value.get("choices") if isinstance(value, dict) else None
    return [str(choice) for choice in choices] if isinstance(choices, list) else []


def _single_result(results: Iterator[dict[str, Any]], expected: str) -> dict[str, Any] | None:
    different: list[dict[str, Any]] = []
    for result in results:
        if result not in different:
            different.append(result)
    if len(different) > 1:
        raise NstError(f"{expected}, found {', '.join(repr(result['label']) for result in different)}; export one")
    return different[0] if different else None

"""Label Studio's JSON: tasks with what models predicted and what people answered, read and written."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from nst_data.errors import NstError

ANSWERS, PREDICTIONS = "annotations", "predictions"
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what the server puts before the name of an uploaded file

Task = Mapping[str, Any]


def is_task(row: Task) -> bool:
    """Whether a JSON object is a task, with predictions or answers."""
    return isinstance(row.get("data"), dict) and (ANSWERS in row or PREDICTIONS in row)


def row_of(task: Task, location: str) -> dict[str, Any]:
    """A task's `key`, its prediction and its answer, each with the `label` and, of a prediction, its `score`; None where there is none.

    Raises NstError where several differ: people who disagree, or models.
    """
    where = f"{location}: task {task.get('id', '')} ({key_of(task)!r})"
    return {
        "key": key_of(task),
        "image_hash": task["data"].get("image_hash"),
        ANSWERS: _one(_of_results(task.get(ANSWERS), where), f"{where}: expected one answer"),
        PREDICTIONS: _one(_of_results(task.get(PREDICTIONS), where), f"{where}: expected the prediction of one model"),
    }


def key_of(task: Task) -> str:
    """The key that `written` gave a task, else the path in the address of its image."""
    data = task["data"]
    if isinstance(data.get("key"), str):
        return str(data["key"])
    return path_of(next((value for value in (data.get("image"), *data.values()) if isinstance(value, str)), ""))


def path_of(address: str) -> str:
    """The path of an image in an address: of a file that is served or was uploaded, in a bucket, anywhere."""
    parts = urlsplit(address)
    served = parse_qs(parts.query).get("d")
    path = served[0] if served else unquote(parts.path if parts.scheme or address.startswith("/data/") else address)
    folder, slash, name = path.rpartition("/")
    return folder + slash + (_UPLOADED.sub("", name) if "/upload/" in address else name)


def written(image: str, about: Mapping[str, Any], **results: Mapping[str, Any]) -> dict[str, Any]:
    """A task: an image below the folder that is served, what else is known about it, and `predictions` or `annotations` of one class."""
    data = {"image": f"/data/local-files/?d={quote(image)}", **about}
    return {"data": data, **{kind: [{**rest, "result": [_chosen(rest)]}] for kind, rest in results.items()}}


def _chosen(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": [result["label"]]}}


def _of_results(results: Any, where: str) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - any JSON value
    for one in results if isinstance(results, list) else ():
        if not isinstance(one, dict) or one.get("was_cancelled"):
            continue
        chosen = [choice for part in one.get("result") or () for choice in _choices(part)]
        if len(chosen) > 1:
            raise NstError(f"{where}: expected one class, found {', '.join(map(repr, chosen))}")
        if chosen:
            yield {"label": chosen[0], "score": one.get("score")}


def _choices(part: Any) -> list[str]:  # noqa: ANN401
    value = part.get("value") if isinstance(part, dict) else None
    choices = value.get("choices") if isinstance(value, dict) else None
    return [str(choice) for choice in choices] if isinstance(choices, list) else []


def _one(found: Iterator[dict[str, Any]], expected: str) -> dict[str, Any] | None:
    different: list[dict[str, Any]] = []
    for one in found:
        if one not in different:
            different.append(one)
    if len(different) > 1:
        raise NstError(f"{expected}, found {', '.join(repr(one['label']) for one in different)}; export one")
    return different[0] if different else None

"""Reviewers' answers about single images: `STORE/reviews/CORPUS/REVIEWER.jsonl`, append-only files of one JSON object per line."""

import datetime
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nst_data.errors import NstError, UsageError
from nst_data.safe_names import find_lookalike
from nst_data.store.files import fsync, fsync_folder
from nst_data.store.store import Store, check_name
from nst_data.tables.review_table import EXCLUDED, RANDOM, Excluded, sample_rank

__all__ = ["EXCLUDED", "RANDOM", "Answer", "AnswerLog", "Answers", "Excluded", "ResolvedAnswers", "resolve_answers"]


@dataclass(frozen=True)
class Answer:
    """A reviewer's answer about an image: its class, or why it has none; `undo` retracts their last answer about the image.

    `picked_by` says how the image was chosen, such as `random` or `margin`; None if the reviewer found it while browsing. `seen_in` is the
    version that they looked at, `name@gen-N`.
    """

    image_hash: str
    key: str
    class_name: str | None = None
    excluded: Excluded | None = None
    undo: bool = False
    picked_by: str | None = None
    seen_in: str | None = None
    time: str = ""  # ISO 8601, UTC
    reviewer: str = ""

    @property
    def verdict(self) -> tuple[str | None, Excluded | None]:
        """The part of an answer on which reviewers have to agree."""
        return self.class_name, self.excluded

    @property
    def text(self) -> str:
        """The answer in a word or two, for messages."""
        return self.class_name or self.excluded or "undo"


@dataclass(frozen=True)
class ResolvedAnswers:
    """The combined answers of all reviewers: one per image that they agree on, by image hash, and all answers about each disputed image.

    An image that was ever picked at random remains part of the random sample, however it was picked for later answers; otherwise the sample
    would lose the images that look odd. If it was drawn several times, the draw with the highest `sample_rank` counts.
    """

    answers: Mapping[str, Answer]
    disputed: Mapping[str, Sequence[Answer]]
    reviewers: Mapping[str, Sequence[str]] = field(default_factory=dict)  # the reviewers who agreed on each answer


class Answers:
    """The answers of all reviewers about a corpus; `refresh` reads only what has been added."""

    def __init__(self, store: Store, corpus: str) -> None:
        self.folder = answers_folder(store, corpus)
        self._of_reviewer: dict[str, _ReviewerFile] = {}
        self._changed: set[str] = set()

    def refresh(self) -> None:
        """Read the answers added since the last call. Raises NstError if a file is damaged."""
        for path in reviewer_files(self.folder):
            self._changed |= self._of_reviewer.setdefault(path.stem, _ReviewerFile(path)).refresh()

    def pop_changed(self) -> set[str]:
        """Return the hashes of the images with new answers since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def has_answer(self, image_hash: str, reviewer: str) -> bool:
        """Whether a reviewer has an answer about an image."""
        file = self._of_reviewer.get(reviewer)
        return bool(file and file.standing.get(image_hash))

    def current_answers(self, image_hash: str) -> list[Answer]:
        """The current answer of each reviewer who has one about an image."""
        return [file.standing[image_hash][-1] for file in self._of_reviewer.values() if file.standing.get(image_hash)]

    def random_draws(self, image_hash: str) -> set[str | None]:
        """The versions from which an image was picked at random, over all answers that were given to such picks."""
        return {answer.seen_in for answer in self._all_answers(image_hash) if answer.picked_by == RANDOM}

    def images(self) -> list[str]:
        """The hashes of all images with an answer, ordered by reviewer and then by when each image was first answered."""
        return list(dict.fromkeys(image for file in self._of_reviewer.values() for image, answers in file.standing.items() if answers))

    def resolve(self) -> ResolvedAnswers:
        """The agreed answers and the disputed images."""
        agreed, disputed, reviewers = dict[str, Answer](), dict[str, Sequence[Answer]](), dict[str, Sequence[str]]()
        for image_hash in self.images():
            answers, settled_answer = self.resolve_image(image_hash)
            if settled_answer is None:
                disputed[image_hash] = answers
            else:
                agreed[image_hash], reviewers[image_hash] = settled_answer, [answer.reviewer for answer in answers]
        return ResolvedAnswers(agreed, disputed, reviewers)

    def resolve_image(self, image_hash: str) -> tuple[list[Answer], Answer | None]:
        """Each reviewer's answer about an image, and the settled answer: None if they differ or there are none.

        If reviewers agree, the latest of their answers is used.
        """
        answers = self.current_answers(image_hash)
        if len({answer.verdict for answer in answers}) != 1:
            return answers, None
        latest = max(answers, key=lambda answer: answer.time)
        draws = [answer for answer in self._all_answers(image_hash) if answer.picked_by == RANDOM]
        draw = max(reversed(draws), key=lambda answer: sample_rank(answer.seen_in), default=latest)
        return answers, latest if draw is latest else replace(latest, picked_by=draw.picked_by, seen_in=draw.seen_in)

    def _all_answers(self, image_hash: str) -> Iterator[Answer]:
        """All answers about an image that were not undone, including superseded ones."""
        return (answer for file in self._of_reviewer.values() for answer in file.standing.get(image_hash, ()))


class AnswerLog:
    """The file to which one reviewer's answers about a corpus are appended."""

    def __init__(self, store: Store, corpus: str, reviewer: str = "reviewer", *, class_names: Sequence[str] | None = None) -> None:
        """`append` accepts only `class_names`, if given. Raises UsageError if the reviewer's name is not a safe and unique file name."""
        self._path = answers_folder(store, corpus) / f"{_check_reviewer(reviewer)}.jsonl"
        if existing := find_lookalike(reviewer, [path.stem for path in reviewer_files(self._path.parent)]):
            raise UsageError(
                f"reviewer {reviewer!r}: {existing!r} has answered, which is the same name on file systems that do not distinguish case; "
                f"use {existing!r}, or choose another"
            )
        self._file, self._class_names = _ReviewerFile(self._path), class_names

    def append(
        self,
        image_hash: str,
        key: str,
        *,
        class_name: str | None = None,
        excluded: Excluded | None = None,
        undo: bool = False,
        picked_by: str | None = None,
        seen_in: str | None = None,
    ) -> Answer | None:
        """Append an answer, which replaces the reviewer's earlier ones about the image; it is on disk when this returns.

        Args:
            image_hash: Hash of the image's encoded bytes.
            key: Where the image was seen; informational only.
            class_name: What the image shows.
            excluded: Why it shows none of the classes.
            undo: Retract this reviewer's last answer about the image; the one before it counts again.
            picked_by: How the image was chosen for review.
            seen_in: The version that the reviewer looked at, `name@gen-N`.

        Returns:
            The reviewer's answer that now counts; None if the only one was retracted.

        Raises:
            UsageError: Not exactly one of `class_name`, `excluded` and `undo` is given, the class is unknown, or there is nothing to undo.
            NstError: The answer could not be written.
        """
        if (class_name is not None) + (excluded is not None) + undo != 1:
            raise UsageError("expected exactly one of a class, `excluded` and `undo`")
        if class_name is not None and self._class_names is not None:
            check_class(class_name, self._class_names)
        if excluded is not None and excluded not in EXCLUDED:
            raise UsageError(f"`excluded`: expected {' or '.join(map(repr, EXCLUDED))}, found {excluded!r}")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        answer = Answer(image_hash, key, class_name, excluded, undo, picked_by, seen_in, now)
        if undo:
            self._file.refresh()
            if not self._file.standing.get(image_hash):
                raise UsageError(f"{key}: there is no answer to undo")
        self.extend([answer])
        self._file.refresh()
        answers = self._file.standing.get(image_hash)
        return answers[-1] if answers else None

    def contains(self, answer: Answer) -> bool:
        """Whether this is already the reviewer's answer and, if the image was picked at random, the same draw has been answered before."""
        self._file.refresh()
        answers = self._file.standing.get(answer.image_hash, [])
        is_known_draw = answer.picked_by != RANDOM or any((reply.picked_by, reply.seen_in) == (RANDOM, answer.seen_in) for reply in answers)
        return is_known_draw and bool(answers) and answers[-1].verdict == answer.verdict

    def extend(self, answers: Sequence[Answer]) -> None:
        """Append many validated answers at once; they are on disk when this returns. Raises NstError."""
        lines = "".join(_as_line(answer) for answer in answers).encode()
        try:
            is_new = not self._path.exists()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                _append_lines(descriptor, lines)
                fsync(descriptor)
            finally:
                os.close(descriptor)
            if is_new:
                for folder in (self._path.parent, *self._path.parent.parents[:2]):
                    fsync_folder(folder)
        except OSError as error:
            raise NstError(f"{self._path}: the answer could not be written ({error.strerror}); fix that and answer again") from None


def resolve_answers(store: Store, corpus: str) -> ResolvedAnswers:
    """The combined answers of all reviewers of a corpus so far. Raises NstError if a file is damaged."""
    answers = Answers(store, corpus)
    answers.refresh()
    return answers.resolve()


def answers_folder(store: Store, corpus: str) -> Path:
    """The folder of the answers about a corpus."""
    return store.root / "reviews" / check_name(corpus)


def reviewer_files(folder: Path) -> list[Path]:
    """The files of all reviewers, sorted by name, without the `._NAME` files that macOS adds on foreign file systems."""
    return sorted(folder.glob("[!.]*.jsonl"))


def check_class(class_name: str, class_names: Sequence[str]) -> None:
    """Raises UsageError if the corpus does not have this class."""
    if class_name not in class_names:
        choices = ", ".join(class_names[:20]) + ", ..." * (len(class_names) > 20)
        raise UsageError(f"the corpus has no class {class_name!r}; expected one of {choices}")


def _check_reviewer(reviewer: str) -> str:
    try:
        return check_name(reviewer)
    except UsageError as error:
        raise UsageError(f"reviewer's {error}") from None


class _ReviewerFile:
    """The answers in one file: `standing` maps each image to its answers that were not undone, the last of which counts."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self._lines = path, 0, 0
        self.standing: dict[str, list[Answer]] = {}

    def refresh(self) -> set[str]:
        """Read new lines and return the hashes of the images they answer.

        Whatever follows the last newline is skipped: it is still being written, or its writer was killed.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                added = file.read()
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise NstError(f"{self._path}: {error.strerror}") from None
        complete, changed = added[: added.rfind(b"\n") + 1], set[str]()
        for line in complete.splitlines():
            self._lines += 1
            answer = self._parse(line)
            if answer is None:
                continue
            changed.add(answer.image_hash)
            answers = self.standing.setdefault(answer.image_hash, [])
            if not answer.undo:
                answers.append(answer)
            elif answers:
                answers.pop()
        self._read += len(complete)
        return changed

    def _parse(self, line: bytes) -> Answer | None:
        """Parse a line; None for a line cut short when its writer was killed (the next writer starts a new line)."""
        try:
            value = json.loads(line)
        except ValueError:  # covers UnicodeDecodeError, too
            if not line.strip(b"\0") or line.startswith(b"{"):
                return None
            raise NstError(f"{self._path}, line {self._lines}: expected an answer as a JSON object; delete the line") from None
        answer = _from_json(value, self._path.stem)
        if answer is None:
            raise NstError(f"{self._path}, line {self._lines}: expected an answer with an image and one class, found another object")
        return answer


def _as_line(answer: Answer) -> str:
    values = asdict(answer) | {"class": answer.class_name}
    names = ("time", "image_hash", "key", "class", "excluded", "undo", "picked_by", "seen_in")
    required = ("time", "image_hash", "key", "class", "excluded")
    return json.dumps({name: values[name] for name in names if name in required or values[name]}) + "\n"


def _from_json(value: Any, reviewer: str) -> Answer | None:  # noqa: ANN401 - any JSON value
    """Parse a JSON value; None if it is not an answer."""
    if not isinstance(value, dict):
        return None
    texts = [value.get(name) for name in ("class", "picked_by", "seen_in", "time")]
    class_name, excluded, undo = value.get("class"), value.get("excluded"), value.get("undo", False)
    is_answer = (class_name is not None) + (excluded is not None) + (undo is True) == 1 and excluded in (None, *EXCLUDED)
    image_hash, key = value.get("image_hash"), value.get("key")
    if not (is_answer and isinstance(image_hash, str) and isinstance(key, str)):
        return None
    if not all(isinstance(text, str | None) for text in texts):
        return None
    return Answer(image_hash, key, class_name, excluded, bool(undo), texts[1], texts[2], texts[3] or "", reviewer)


def _append_lines(descriptor: int, lines: bytes) -> None:
    """Append lines in a single write, so that concurrent writers do not interleave; start a new line after one that was cut short."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        lines = b"\n" + lines
    written = os.write(descriptor, lines)
    while written < len(lines):  # the disk is full, in which case the next write raises
        written += os.write(descriptor, lines[written:])

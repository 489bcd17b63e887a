"""Reviewers' answers about the images of a view: which rows are answered, excluded or disputed, and writing new answers."""

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import UsageError
from nst_data.inspection.view import View
from nst_data.review.answers import RANDOM, Answer, AnswerLog, Answers, reviewer_files
from nst_data.review.queues import Queue, list_queues, read_queue
from nst_data.store.store import Store
from nst_data.tables.review_table import is_of_edition, sample_rank

_Pick = tuple[str, float | None, str | None]  # the criterion, the score, and the version it was picked from


class ReviewSession:
    """The answers of all reviewers about a corpus, and the log to which those of one reviewer are written."""

    def __init__(self, store: Store, view: View, corpus: str, reviewer: str) -> None:
        self.corpus, self.reviewer, self._view = corpus, reviewer, view
        self._answers = Answers(store, corpus)
        self._log = AnswerLog(store, corpus, reviewer, class_names=view.class_names)
        self._rows, self._dropped_rows = dict[str, list[int]](), dict[str, list[int]]()
        self._lock, self._sizes = threading.Lock(), dict[str, int]()
        self._agreed, self._disputed, self._store = dict[str, Answer](), set[str](), store
        self._uncounted, self._counted, self._counts = set[str](), dict[str, list[str]](), Counter[str]()
        self._counted_with = (False, False)
        self._seen_in = view.version.ref if view.version else None
        self._queues: dict[str, dict[str, _Pick]] = {}
        self._pools: dict[str | None, str | None] = {}

    def refresh(self) -> None:
        """Read the answers that any reviewer has given since the last time."""
        with self._lock:
            sizes = {path.name: path.stat().st_size for path in reviewer_files(self._answers.folder)}
            if sizes != self._sizes:
                self._answers.refresh()
                changed = self._answers.pop_changed()
                self._resolve_changed(changed)
                self._uncounted |= changed
                self._sizes = sizes

    def _resolve_changed(self, changed: Iterable[str]) -> None:
        """Update the images with changed answers, and only these: the time for an answer does not depend on how many there are."""
        for image_hash in changed:
            self._agreed.pop(image_hash, None)
            self._disputed.discard(image_hash)
            answers, agreed = self._answers.resolve_image(image_hash)
            if agreed is not None:
                self._agreed[image_hash] = agreed
            elif answers:
                self._disputed.add(image_hash)

    def summary(self) -> dict[str, Any]:
        """How many images of the view have an answer, and one by this reviewer; how many that an edition left out have one."""
        with self._lock:  # others may be answering
            self._update_counts()
            counts = {kind: self._counts[kind] for kind in ("answered", "excluded", "disputed", "own", "of_dropped")}
        return {"corpus": self.corpus, "reviewer": self.reviewer, **counts}

    def _update_counts(self) -> None:
        """Recount the images that changed, and all images once it is known which are in the view, or which an edition left out."""
        known = self._view.has_hashes, self._view.knows_dropped
        if known != self._counted_with:
            self._uncounted |= {*self._agreed, *self._disputed}
            self._counted, self._counts, self._counted_with = {}, Counter(), known
        kept = self._hashes_in_view(self._uncounted)
        dropped = self._dropped_among(self._uncounted - set(kept))
        kinds = {hashed: self._kinds_of(hashed) for hashed in kept}
        kinds |= {hashed: ["of_dropped"] if self._kinds_of(hashed) else [] for hashed in dropped}
        for image_hash, counted in kinds.items():
            self._counts.subtract(self._counted.get(image_hash, ()))
            self._counted[image_hash] = counted
            self._counts.update(counted)
        self._uncounted = set()

    def _kinds_of(self, image_hash: str) -> list[str]:
        """The kinds of answers that an image counts as."""
        kinds = ["own"] if self._answers.has_answer(image_hash, self.reviewer) else []
        if image_hash in self._disputed:
            return [*kinds, "disputed"]
        agreed = self._agreed.get(image_hash)
        return kinds if agreed is None else [*kinds, "answered" if agreed.excluded is None else "excluded"]

    @property
    def has_answers_or_queues(self) -> bool:
        """Whether there are answers or queues, of which only those about images of the view count."""
        return bool(reviewer_files(self._answers.folder)) or bool(list_queues(self._store, self.corpus))

    def shown_answer(self, image_hash: str) -> tuple[dict[str, str] | None, bool]:
        """The answer to show for an image, preferably this reviewer's own, and whether reviewers disagree."""
        answers = self._current_answers(image_hash)
        preferred = [answer for answer in answers if answer.reviewer == self.reviewer] or answers
        return (_as_json(preferred[0]) if preferred else None), image_hash in self._disputed

    def all_answers(self, image_hash: str) -> list[dict[str, str]]:
        """The answer of each reviewer."""
        return [{"reviewer": answer.reviewer, "time": answer.time, **_as_json(answer)} for answer in self._current_answers(image_hash)]

    def answered_rows(self, state: str) -> NDArray[np.int64]:
        """The rows that are answered (`yes`, which includes disputed ones) or `disputed`, in increasing order."""
        return self._rows_of(self._answered(state))

    def dropped_rows(self, which: str) -> NDArray[np.int64]:
        """The rows that an edition left out and that are answered or `disputed`; none as long as nobody has asked which were left out."""
        dropped = self._dropped_among(self._answered(which))
        return np.array(sorted({row for hashed in dropped for row in self._dropped_rows[hashed]}), np.int64)

    def _answered(self, which: str) -> list[str]:
        """The hashes of images with an answer (`yes`), or of `disputed` ones."""
        with self._lock:
            return [*(self._agreed if which == "yes" else ()), *self._disputed]

    def completed_rows(self, queue: str | None) -> NDArray[np.int64]:
        """The rows that need no further answer, in general or in a queue. Raises UsageError if there is no such queue."""
        if queue is None:
            return self.answered_rows("yes")
        picks = self._picks_by_hash(read_queue(self._store, self.corpus, queue))
        return self._rows_of(hashed for hashed, pick in picks.items() if self._is_completed(hashed, pick))

    def queue_summaries(self) -> list[dict[str, Any]]:
        """The queues of the corpus that have images of the view, with their numbers of such images and of those left."""
        summaries = []
        for queue in list_queues(self._store, self.corpus):
            picks = self._picks_by_hash(queue)
            hashes = self._hashes_in_view(picks)
            remaining = sum(not self._is_completed(hashed, picks[hashed]) for hashed in hashes)
            summaries.append({"name": queue.name, "images": remaining, "of": len(hashes)})
        return [queue for queue in summaries if queue["of"]]

    def queue_rows(self, name: str) -> NDArray[np.int64]:
        """The rows of a queue in its order, each image once. Raises UsageError if there is no such queue."""
        picks = self._picks_by_hash(read_queue(self._store, self.corpus, name))
        self._rows_of(picks)
        return np.array([self._rows[hashed][0] for hashed in picks if self._rows[hashed]], np.int64)

    def pick_of(self, image_hash: str) -> dict[str, Any] | None:
        """How an image was picked; a random draw takes precedence over other queues that the image is in."""
        pick = self._find_pick(image_hash)
        return {"by": pick[0], "score": pick[1]} if pick else None

    def _find_pick(self, image_hash: str) -> "_Pick | None":
        picks = [
            self._picks_by_hash(queue)[image_hash]
            for queue in list_queues(self._store, self.corpus)
            if image_hash in self._picks_by_hash(queue)
        ]
        random_picks = [pick for pick in picks if pick[0] == RANDOM]
        random_picks.sort(key=lambda pick: (self._is_completed(image_hash, pick), -sample_rank(pick[2])))
        return next(iter([*random_picks, *picks]), None)

    def _is_completed(self, image_hash: str, pick: _Pick) -> bool:
        """Whether the queue with this pick need not ask about an image.

        A random draw asks again about images that were answered for another reason: it would be no sample without the odd-looking ones.
        """
        if image_hash not in self._agreed and image_hash not in self._disputed:
            return False
        with self._lock:
            draws = self._answers.random_draws(image_hash)
        return pick[0] != RANDOM or any(self._draw_counts_for(drawn_from, pick[2]) for drawn_from in draws)

    def _draw_counts_for(self, drawn_from: str | None, other: str | None) -> bool:
        """Whether an answer about an image drawn from one version also counts for a draw from another."""
        if drawn_from == other or sample_rank(drawn_from) > sample_rank(other):
            return True
        pools = self._pool_digest(drawn_from), self._pool_digest(other)
        return not is_of_edition(drawn_from) and not is_of_edition(other) and (None in pools or pools[0] == pools[1])

    def _pool_digest(self, ref: str | None) -> str | None:
        """The digest of a version's pool, or None if it is not known."""
        if ref not in self._pools:
            versions = self._store.versions((ref or "").partition("@")[0]) if ref else []
            pools = [version.manifest.request.inputs.pool for version in versions if version.ref == ref and version.is_readable]
            self._pools[ref] = pools[0].digest if pools and pools[0] else None
        return self._pools[ref]

    def _picks_by_hash(self, queue: Queue) -> "dict[str, _Pick]":
        """How each image was picked, by image hash, in the order of the queue, which never changes."""
        if queue.name not in self._queues:
            rows = queue.rows().select("image_hash", "by", "score", "seen_in")
            self._queues[queue.name] = {hashed: (by, score, seen_in) for hashed, by, score, seen_in in rows.iter_rows()}
        return self._queues[queue.name]

    def _current_answers(self, image_hash: str) -> list[Answer]:
        """The answer of each reviewer. The lock is needed since several threads read while one may be adding new answers."""
        with self._lock:
            return self._answers.current_answers(image_hash)

    def append(self, image_hash: str, key: str, class_name: str | None, excluded: Any, undo: bool) -> None:  # noqa: ANN401 - checked by the log
        """Write an answer; it is on disk when this returns."""
        if not image_hash:
            raise UsageError(f"{key}: this image has no hash, which identifies answers")
        picked_by, _, picked_from = self._find_pick(image_hash) or (None, None, None)
        seen_in = (picked_from if picked_by == RANDOM else None) or self._seen_in
        with self._lock:
            answer: dict[str, Any] = {"class_name": class_name, "excluded": excluded, "undo": undo}
            self._log.append(image_hash, key, **answer, picked_by=picked_by, seen_in=seen_in)
        self.refresh()

    def _hashes_in_view(self, hashes: Iterable[str]) -> list[str]:
        """The hashes of images in the view; all of them as long as this is not known, since computing it takes long for many images."""
        image_hashes = list(hashes)
        if not self._view.has_hashes:
            return image_hashes
        self._rows_of(image_hashes)
        return [hashed for hashed in image_hashes if self._rows[hashed]]

    def _dropped_among(self, hashes: Iterable[str]) -> list[str]:
        """Those of the hashes whose images an edition left out, as far as that is known."""
        image_hashes = list(hashes)
        if not self._view.knows_dropped:
            return []
        new = [hashed for hashed in image_hashes if hashed not in self._dropped_rows]
        new_rows = self._view.dropped_rows_of(new)
        self._dropped_rows |= {hashed: new_rows.get(hashed, []) for hashed in new}
        return [hashed for hashed in image_hashes if self._dropped_rows[hashed]]

    def _rows_of(self, hashes: Iterable[str]) -> NDArray[np.int64]:
        image_hashes = list(hashes)
        new = [hashed for hashed in image_hashes if hashed not in self._rows]
        new_rows = self._view.rows_of(new)
        self._rows |= {hashed: new_rows.get(hashed, []) for hashed in new}
        return np.array(sorted({row for hashed in image_hashes for row in self._rows[hashed]}), np.int64)


def _as_json(answer: Answer) -> dict[str, str]:
    return {"class": answer.class_name} if answer.class_name is not None else {"excluded": str(answer.excluded)}

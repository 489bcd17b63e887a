"""`nst review freeze`: seal the reviewers' answers as a version, `CORPUS@review-N`."""

import time
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from nst_data.arguments import with_checked_arguments
from nst_data.cards import cards
from nst_data.corpora import label_versions, labels_with_classes
from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress, escape_unprintable, terminal_progress
from nst_data.review.answers import Answer, ResolvedAnswers, answers_folder, check_class, resolve_answers
from nst_data.store.counts import ReviewCounts
from nst_data.store.inputs import Input, ReviewInputs
from nst_data.store.manifest import ReviewRequest, json_digest
from nst_data.store.store import Staging, Store, Version
from nst_data.tables.review_table import EXCLUDED, REVIEW
from nst_data.tables.schema import review_schema
from nst_data.tables.shards import ShardPlan, write_parquet

_ROWS_PER_SHARD = 1_000_000
_MAX_NAMED = 20


@with_checked_arguments
def freeze(
    store: Store,
    corpus: str,
    *,
    anonymous: bool = False,
    class_names: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Version:
    """Seal the answers about the images of a corpus. If nothing has changed since the last review, that version is returned.

    Args:
        store: Where the answers are kept.
        corpus: The corpus the answers are about.
        anonymous: Leave out the reviewers' names.
        class_names: The classes, if no version of the corpus in the store defines them; by default those that occur in the answers.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        The sealed review: its table `review` has one row per image, and `manifest.counts` says how many labels people have given.

    Raises:
        NstError: There are no answers; reviewers disagree about an image, which is named; or an answer has a class unknown to the corpus.
    """
    progress = progress or terminal_progress()
    answers = resolve_answers(store, corpus)
    _check_undisputed(corpus, answers)
    if not answers.answers:
        raise NstError(f"{answers_folder(store, corpus)}: there is no answer about {corpus} yet; give answers on the review page")
    answered = {a.class_name for a in answers.answers.values() if a.class_name}
    labels = labels_with_classes(store, corpus, answered)
    classes = labels.manifest.class_names if labels else list(class_names or sorted(answered))
    if labels and (newest := label_versions(store, corpus)[-1]).manifest.class_names != classes:
        progress.say(f"{corpus}: {newest.ref} lacks classes that were answered; the review has those of {labels.ref}")
    for answer in answers.answers.values():
        if answer.class_name is not None:
            try:
                check_class(answer.class_name, classes)
            except UsageError as error:
                raise NstError(
                    f"{corpus}: {answer.reviewer}'s answer about {escape_unprintable(answer.key)!r}: {error}; answer it again"
                ) from None
    staging = store.find_or_stage(_build_request(answers, not anonymous), corpus)
    if isinstance(staging, Version):
        progress.say(f"{staging.ref} already exists: same answers")
        return staging
    return staging.run_as_worker(lambda: _write_review(staging, answers, classes, not anonymous))


def _check_undisputed(corpus: str, answers: ResolvedAnswers) -> None:
    if not answers.disputed:
        return
    descriptions = [
        f"{escape_unprintable(dispute[-1].key)!r} "
        f"({', '.join(f'{answer.reviewer}: {escape_unprintable(answer.text)}' for answer in dispute)})"
        for dispute in answers.disputed.values()
    ]
    remainder = f" and {len(descriptions) - _MAX_NAMED:,} more" if len(descriptions) > _MAX_NAMED else ""
    images = f"{len(descriptions):,} images are" if len(descriptions) > 1 else "1 image is"
    raise NstError(
        f"{corpus}: {images} disputed: {', '.join(descriptions[:_MAX_NAMED])}{remainder}; one of the reviewers must change or undo their "
        "answer"
    )


def _build_request(answers: ResolvedAnswers, with_reviewers: bool) -> ReviewRequest:
    """The request is identified by the answers themselves, not by when they were given."""
    rows = [
        [image_hash, *answer.verdict, answer.picked_by, answer.seen_in, sorted(answers.reviewers[image_hash]) if with_reviewers else []]
        for image_hash, answer in sorted(answers.answers.items())
    ]
    people = sorted({name for names in answers.reviewers.values() for name in names})
    reviewers = ", ".join(people) if with_reviewers else f"{len(people):,} reviewer{'s' * (len(people) > 1)}"
    entry = Input(ref=f"answers of {reviewers}", digest=json_digest(rows))
    return ReviewRequest(settings={"reviewers_named": with_reviewers}, inputs=ReviewInputs(answers=entry))


def _write_review(staging: Staging, answers: ResolvedAnswers, classes: list[str], with_reviewers: bool) -> Version:
    since = time.monotonic()
    rows = sorted(answers.answers.items())
    schema = review_schema(classes, with_reviewers)
    places = {name: place for place, name in enumerate(classes)}
    plan, files = ShardPlan(len(rows), _ROWS_PER_SHARD, REVIEW), {}
    with staging.discard_on_error():
        for shard in range(len(plan)):
            records = [
                _review_row(answer, places, sorted(answers.reviewers[answer.image_hash])) for _, answer in rows[slice(*plan.bounds(shard))]
            ]
            table = pa.Table.from_pylist(records, schema=schema)
            files[plan.file(shard)] = write_parquet(staging.build / plan.file(shard), [table], schema, staging.work)
    staging.add_seconds(since)
    manifest = staging.build_manifest(files, classes, _count_answers(answers, classes, with_reviewers))
    cards.write_dataset_card(staging, manifest)
    return staging.seal(manifest)


def _review_row(answer: Answer, class_indices: dict[str, int], reviewers: list[str]) -> dict[str, object]:
    return {
        "image_hash": answer.image_hash,
        "key": answer.key,
        "label": None if answer.class_name is None else class_indices[answer.class_name],
        "excluded": answer.excluded,
        "picked_by": answer.picked_by,
        "seen_in": answer.seen_in,
        "reviewers": reviewers,
        "time": answer.time,
    }


def _count_answers(answers: ResolvedAnswers, classes: list[str], with_reviewers: bool) -> ReviewCounts:
    all_answers = answers.answers.values()
    label_counts = Counter(answer.class_name for answer in all_answers)
    reason_counts = Counter(answer.excluded for answer in all_answers)
    reviewer_counts = Counter(name for names in answers.reviewers.values() for name in names)
    return ReviewCounts(
        answered=len(all_answers),
        excluded={reason: reason_counts[reason] for reason in EXCLUDED},
        per_class={name: label_counts[name] for name in classes},
        picked_by=dict(sorted(Counter(answer.picked_by or "browsing" for answer in all_answers).items())),
        reviewers=dict(sorted(reviewer_counts.items())) if with_reviewers else {},
    )

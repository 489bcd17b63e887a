"""What readers of a card must know before trusting the labels of this particular version."""

from collections.abc import Iterator

from nst_data.cards.described import Described
from nst_data.cards.published import Published
from nst_data.settings import default_top_k
from nst_data.store.counts import EditionCounts, GenerationCounts
from nst_data.store.inputs import EditionInputs, GenerationInputs
from nst_data.store.manifest import EditionManifest, GenerationManifest
from nst_data.tables.review_table import REASONS as OF_REVIEW


def known_limits(described: Described, published: Published | None = None) -> list[str]:
    """The limits, one or two sentences of markdown each."""
    limits = [*_label_limits(described)]
    match described.manifest:
        case EditionManifest():
            limits += _selection_limits(described, described.manifest)
        case GenerationManifest():
            limits += _pool_limits(described.manifest)
    if published and published.anonymous:
        limits.append(_anonymity_limit(described))
    return limits


def _label_limits(described: Described) -> Iterator[str]:
    review_note = _review_sentence(described)
    unchecked_note = "" if review_note and isinstance(described.manifest, GenerationManifest) else " and nobody has checked them"
    if described.may_be_by_people:
        yield "The labels were made elsewhere, by a machine or by people: nst has checked their form, not where they come from."
    else:
        yield (
            f"The labels are machine-made{unchecked_note}: they carry the teacher's mistakes and biases, "
            "and images that belong to no class are labeled anyway."
        )
    if review_note:
        yield review_note
    labeled_by = described.labeling_version()
    if described.is_adopted and not described.may_be_by_people:
        yield "How they were made is what the user who adopted them says: nst has checked their form, not where they come from."
    if labeled_by is None:
        yield "Whether the confidences are calibrated is not known here: the generation they come from says so."
    elif described.is_adopted:
        yield "Whether the confidences are calibrated is not known."
    elif described.calibration:
        images = described.calibration.images
        yield f"The confidences are calibrated by one temperature on {images:,} labeled images; on images of another kind they need not be."
    else:
        yield "The confidences are not calibrated: networks are usually overconfident."
    counts = described.manifest.counts
    top_k = counts.top_k if isinstance(counts, GenerationCounts | EditionCounts) else None
    classes = len(described.manifest.class_names)
    is_whole = labeled_by is not None and described.is_adopted and not labeled_by.manifest.request.settings.get("top_k")
    is_cut = top_k and not (is_whole and top_k != default_top_k(classes))  # otherwise the table has everything the adopted rows listed
    truncation_note = f" Of {classes:,} classes the {top_k:,} most probable ones are kept; the rest is lost." if is_cut else ""
    yield f"Soft labels are rounded to float16: they add up to 1 within rounding only, and what is below 6e-8 is 0.{truncation_note}"
    if labeled_by is not None and labeled_by.manifest.request.is_noised:
        yield "The teacher was noised while it labeled, which costs accuracy."


def _review_sentence(described: Described) -> str:
    """How many labels people have seen: for an edition when it was drawn, for a generation when its card was written."""
    inputs, counts = described.inputs, described.manifest.counts
    if isinstance(inputs, EditionInputs) and isinstance(counts, EditionCounts) and inputs.reviews:
        with_class, *excluded = (counts.dropped.get(reason, 0) for reason in OF_REVIEW.values())
        return (
            f"People have seen {with_class + sum(excluded):,} images of the pool, none of which is among these labels: {with_class:,} they "
            f"gave a class, {sum(excluded):,} they left out."
        )
    review = described.newest_review if isinstance(inputs, GenerationInputs) else None
    return f"People have seen {review.counts.answered:,} images of this corpus: `{review.version}` has what they say." if review else ""


def _pool_limits(generation: GenerationManifest) -> Iterator[str]:
    counts = generation.counts
    if limit := generation.first_images:
        yield f"Only the first {limit:,} images of the pool were labeled."
    if counts.errors > counts.no_answer:
        yield f"{counts.errors - counts.no_answer:,} pool images could not be read; they are listed in `errors`."
    if counts.no_answer:
        yield f"For {counts.no_answer:,} pool images the teacher's output was not finite; they are listed in `errors`."
    if counts.unlabeled:
        yield f"{counts.unlabeled:,} images of the pool have no label in it."
    yield "Nothing was excluded: it may contain duplicates, and images of a labeled or test set."


def _selection_limits(described: Described, edition: EditionManifest) -> Iterator[str]:
    inputs, counts = edition.request.inputs, edition.counts
    yield (
        "Byte-identical images appear once, counted in `duplicates`; resized or re-encoded copies of an image count as different images."
    )
    yield from _exclusion_limits(described)
    rows = described.per_class()
    copied = sum(row["copies"] > row["unique"] > 0 for row in rows.values())
    if inputs.like:
        repeated = f" Images of {copied:,} of {len(rows):,} classes are repeated (`copies`)." if copied else ""
        yield f"The images were selected by another teacher's labels and then relabeled: the classes are no longer balanced.{repeated}"
    elif copied:
        yield f"It is balanced only with `copies`: {copied:,} of {len(rows):,} classes had too few images, which are repeated."
    if counts.classes_without_images:
        yield f"{len(counts.classes_without_images):,} of {len(rows):,} classes have no image."


def _exclusion_limits(described: Described) -> Iterator[str]:
    """What was kept out when the images were selected: for a relabeled edition, when the one that it relabels was drawn."""
    edition = described.manifest
    assert isinstance(edition, EditionManifest), "nothing else is selected"
    inputs, counts, selection = edition.request.inputs, edition.counts, edition.request.selection
    if inputs.like:
        if described.parent:
            yield from _exclusion_limits(Described.from_version(described.parent))
        else:
            yield "Whether images that you test on were excluded is not known here: the edition that it relabels says so."
        return
    if not inputs.excluded:
        yield "No labeled, validation or test images were excluded: it may contain images that you test on."
    elif selection and selection.exact_overlap_only:
        yield "Only byte-identical copies of excluded images were left out: it may contain resized or re-encoded ones."
    elif (near := counts.near_duplicates) and near.unreadable:
        yield f"{near.unreadable:,} candidate duplicates of excluded images could not be compared with them and were kept."
    if counts.held_out_unreadable:
        yield f"{counts.held_out_unreadable:,} excluded images could not be read: this edition may contain copies of them."


def _anonymity_limit(described: Described) -> str:
    cost = (
        "It is anonymous: keys are left out and the hashes of the images are row numbers, so that nobody can test by them whether an image "
        "is in it. That costs the join: the rows cannot be matched with a copy of the pool, or with another generation"
    )
    if described.has_images:
        return f"{cost}. Training is possible since the images are included."
    return f"{cost}; without its images it shows what the labels are like, and nothing can be trained on it."

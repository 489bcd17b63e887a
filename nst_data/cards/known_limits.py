"""What a reader of a card must know before trusting its labels: what is true of this very version."""

from collections.abc import Iterator

from nst_data.cards.described import Described, whole
from nst_data.cards.published import Published


def known_limits(described: Described, published: Published | None = None) -> list[str]:
    """A sentence or two each, as markdown."""
    limits = [*_of_labels(described)]
    if described.request.kind == "edition":
        limits += _of_selection(described)
    else:
        limits += _of_pool(described)
    if published and published.anonymous:
        limits.append(_of_anonymity(described))
    return limits


def _of_labels(described: Described) -> Iterator[str]:
    yield (
        "The labels are machine-made and nobody has checked them: they carry the teacher's mistakes and biases, "
        "and an image of none of the classes has a label too."
    )
    labeled_by = described.labeled_by()
    if labeled_by is not None and "adopted" in labeled_by.request.inputs:
        yield "How they were made is what the user who adopted them says: nst has checked their form, not where they come from."
    if labeled_by is None:
        yield "Whether the confidences are calibrated is not known here: the generation they come from says so."
    elif described.calibration:
        images = whole(described.calibration.get("images"))
        yield f"The confidences are calibrated by one temperature on {images:,} labeled images; on images of another kind they need not be."
    else:
        yield "The confidences are not calibrated: networks are usually surer than they are right."
    top_k = described.counts.get("top_k")
    cut = f" Of {len(described.class_names):,} classes the {whole(top_k):,} most probable ones are kept; the rest is lost." if top_k else ""
    yield f"Soft labels are rounded to float16: they add up to 1 within rounding only, and what is below 6e-8 is 0.{cut}"
    if labeled_by is not None and labeled_by.request.settings.get("noise") is True:
        yield "The teacher was noised while it labeled, which costs accuracy."


def _of_pool(described: Described) -> Iterator[str]:
    if limit := whole(described.request.settings.get("limit")):
        yield f"Only the first {limit:,} images of the pool were labeled."
    if errors := described.count("errors"):
        lost = described.count("no_answer") or 0
        if errors > lost:
            yield f"{errors - lost:,} pool images could not be read; they are listed in `errors`."
        if lost:
            yield f"For {lost:,} pool images the teacher's output was not finite; they are listed in `errors`."
    if unlabeled := described.count("unlabeled"):
        yield f"{unlabeled:,} images of the pool have no label in it."
    yield "Nothing was excluded: it may contain duplicates, and images of a labeled or test set."


def _of_selection(described: Described) -> Iterator[str]:
    settings, inputs, counts = described.request.settings, described.request.inputs, described.counts
    yield (
        "Byte-identical images appear once, counted in `duplicates`; resized or re-encoded copies of an image count as different images."
    )
    near = counts.get("near_duplicates")
    if not any(role.startswith("exclude") for role in inputs) and "like" not in inputs:
        yield "No labeled, validation or test images were held out: it may contain images that you test on."
    elif settings.get("exact_overlap_only") is True:
        yield "Only byte-identical copies of held-out images were excluded: it may contain resized or re-encoded ones."
    elif isinstance(near, dict) and whole(near.get("unreadable")):
        yield f"{whole(near['unreadable']):,} candidate duplicates of held-out images could not be compared with them and were kept."
    if unread := described.count("held_out_unreadable"):
        yield f"{unread:,} held-out images could not be read: this edition may contain copies of them."
    if "like" in inputs:
        yield "The images were selected by another teacher's labels and then relabeled: the classes are no longer balanced."
    rows = described.per_class()
    copied = sum(row["copies"] > row["unique"] > 0 for row in rows.values())
    if copied:
        yield f"It is balanced only with `copies`: {copied:,} of {len(rows):,} classes had too few images, which are repeated."
    empty = counts.get("classes_without_images")
    if isinstance(empty, list) and empty:
        yield f"{len(empty):,} of {len(rows):,} classes have no image."


def _of_anonymity(described: Described) -> str:
    cost = (
        "It is anonymous: keys are left out and the hashes of the images are row numbers, so that nobody can test by them whether an image "
        "is in it. That costs the join: the rows cannot be matched with a copy of the pool, or with another generation"
    )
    if described.has_images:
        return f"{cost}. Training is possible since the images are in it."
    return f"{cost}; without its images it shows what the labels are like, and nothing can be trained on it."

"""How good labels are according to people's answers, with an interval that accounts for how the images were picked.

Randomly picked images represent everything they were drawn from. Images that looked odd, or that somebody came across, represent only
themselves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nst_data.store.store import Store, Version
from nst_data.tables.label_tables import collect, scan_labels
from nst_data.tables.review_table import EXCLUDED, RANDOM, is_of_edition, read_review

_Z = 1.959964  # for a two-sided 95% interval
BROWSING = "browsing"  # images that were not picked but found while browsing


@dataclass(frozen=True)
class Share:
    """Of `images`, the number that is `correct`: the fraction in [0, 1], and the 95% interval of the fraction it estimates."""

    images: int
    correct: int
    accuracy: float
    low: float
    high: float

    @classmethod
    def from_counts(cls, correct: int, images: int, population: int | None = None) -> "Share | None":
        """Wilson's interval (1927), with a finite-population correction if the sample was drawn without replacement from a `population`."""
        if not images:
            return None
        share, n = correct / images, float(images)
        if population is not None:
            if images >= population:
                return cls(images, correct, share, share, share)
            n *= (population - 1) / (population - images)
        center = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half_width = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
        return cls(images, correct, share, max(0.0, center - half_width), min(1.0, center + half_width))


@dataclass(frozen=True)
class ReviewQuality:
    """The `answered` ones among the `images` of a version; images with the same bytes count once.

    `by_pick` covers answers with a class, by how the images were picked. `estimate` is the accuracy over those of the `estimated` images
    that show one of the classes, based on the randomly picked ones; None if there are none. `estimated` counts all images, or those from
    an earlier pool if images were picked from one. `excluded_at_random` counts randomly picked images without a class, by reason.
    """

    images: int
    answered: int
    excluded: Mapping[str, int]
    by_pick: Mapping[str, Share]
    estimate: Share | None
    estimated: int
    excluded_at_random: Mapping[str, int]


def measure_review_quality(store: Store, version: Version, review: Version, class_indices: NDArray[np.int64]) -> ReviewQuality:
    """Measure a generation or an edition; `class_indices` maps the review's classes to the version's."""
    answers = read_review(review)
    answers = answers.with_columns(truth=pl.Series(class_indices).gather(answers["label"])).drop("label", "key")
    labels = scan_labels(version).select("image_hash", "label")
    joined, images = collect(
        version.ref,
        labels.join(answers.lazy(), on="image_hash").unique("image_hash", keep="first", maintain_order=True),
        labels.select(pl.col("image_hash").n_unique()),
    )
    drawn = joined.filter(pl.col("picked_by") == RANDOM)
    stands_for = {seen_in: _images_represented(store, seen_in, version, int(images.item())) for seen_in in drawn["seen_in"].unique()}
    population = max(stands_for.values(), default=0)  # of several draws use what represents most: the pool may have grown
    drawn_from = [seen_in for seen_in, number in stands_for.items() if number == population > 0]
    at_random = drawn.filter(pl.col("seen_in").is_in(drawn_from, nulls_equal=True))
    picked = joined.with_columns(picked_by=pl.col("picked_by").fill_null(BROWSING))
    by_pick = {str(picked_by): _measure_share(rows) for (picked_by,), rows in sorted(picked.group_by("picked_by"))}
    n_with_class = population - at_random["excluded"].count() * population // max(
        1, at_random.height
    )  # the estimated number that show a class
    return ReviewQuality(
        images=int(images.item()),
        answered=joined.height,
        excluded=_count_excluded(joined),
        by_pick={picked_by: share for picked_by, share in by_pick.items() if share},
        estimate=_measure_share(at_random, n_with_class),
        estimated=population,
        excluded_at_random=_count_excluded(at_random),
    )


def _images_represented(store: Store, seen_in: str | None, version: Version, images: int) -> int:
    """How many of a version's `images` a random draw from the version `seen_in` represents.

    All if that is the same version, unknown, or not in the store; none if it is another edition, which is a selection. For a generation of
    the same pool it is all, or nearly all, and for a pool that has grown since, a part.
    """
    if seen_in == version.ref:
        return images
    if is_of_edition(seen_in):
        return 0
    matches = [v for v in store.versions(seen_in.partition("@")[0]) if v.ref == seen_in] if seen_in else []
    if not matches or not matches[0].is_readable or matches[0].manifest.kind != "generation":
        return images
    hashes = [scan_labels(v).select("image_hash") for v in (version, matches[0])]
    refs = f"{version.ref} and {seen_in}"
    (shared,) = collect(refs, hashes[0].join(hashes[1], on="image_hash", how="semi").select(pl.col("image_hash").n_unique()))
    return int(shared.item())


def _measure_share(rows: pl.DataFrame, population: int | None = None) -> Share | None:
    judged = rows.drop_nulls("truth")
    return Share.from_counts(int((judged["label"] == judged["truth"]).sum()), judged.height, population)


def _count_excluded(rows: pl.DataFrame) -> dict[str, int]:
    return {reason: int((rows["excluded"] == reason).sum()) for reason in EXCLUDED}

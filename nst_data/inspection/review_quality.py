"""How good labels are by the answers of people, with an interval that accounts for how the images were picked.

Images that were picked at random stand for all that they were drawn from; those that looked odd, or that somebody came upon, for
themselves alone.
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

_Z = 1.959964  # of a two-sided interval of 95%
BROWSING = "browsing"  # images that nobody picked


@dataclass(frozen=True)
class Share:
    """Of `images`, the `correct` ones: the share in [0, 1], and the 95% interval of what it is an estimate of."""

    images: int
    correct: int
    accuracy: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: int, images: int, population: int | None = None) -> "Share | None":
        """Wilson's interval (1927); of a sample without replacement from a `population`, narrower by how much of it was seen."""
        if not images:
            return None
        share, seen = correct / images, float(images)
        if population is not None:
            if images >= population:
                return cls(images, correct, share, share, share)
            seen *= (population - 1) / (population - images)
        middle = (share + _Z**2 / (2 * seen)) / (1 + _Z**2 / seen)
        half = _Z / (1 + _Z**2 / seen) * math.sqrt(share * (1 - share) / seen + _Z**2 / (4 * seen**2))
        return cls(images, correct, share, max(0.0, middle - half), min(1.0, middle + half))


@dataclass(frozen=True)
class ReviewQuality:
    """Of the `images` of a version, those that people `answered`; each counts once, however many equal ones there are.

    `by_pick` has the ones with a class by how they were picked. `estimate` is of the accuracy over the `estimated` images of the version,
    as far as they show one of the classes, from those that were picked at random; None where none was. `estimated` are all images, or those
    of an earlier pool from which images were picked. `excluded_at_random` counts the others that were picked so, by reason.
    """

    images: int
    answered: int
    excluded: Mapping[str, int]
    by_pick: Mapping[str, Share]
    estimate: Share | None
    estimated: int
    excluded_at_random: Mapping[str, int]


def review_quality(store: Store, version: Version, review: Version, places: NDArray[np.int64]) -> ReviewQuality:
    """Measure a generation or an edition; `places` are those of the review's classes among the version's."""
    answers = read_review(review)
    answers = answers.with_columns(truth=pl.Series(places).gather(answers["label"])).drop("label", "key")
    labels = scan_labels(version).select("image_hash", "label")
    joined, images = collect(
        version.ref,
        labels.join(answers.lazy(), on="image_hash").unique("image_hash", keep="first", maintain_order=True),
        labels.select(pl.col("image_hash").n_unique()),
    )
    drawn = joined.filter(pl.col("picked_by") == RANDOM)
    stands_for = {seen_in: _images_stood_for(store, seen_in, version, int(images.item())) for seen_in in drawn["seen_in"].unique()}
    population = max(stands_for.values(), default=0)  # where images were drawn again from a pool that has grown, these are the sample
    drawn_from = [seen_in for seen_in, number in stands_for.items() if number == population > 0]
    at_random = drawn.filter(pl.col("seen_in").is_in(drawn_from, nulls_equal=True))
    picked = joined.with_columns(picked_by=pl.col("picked_by").fill_null(BROWSING))
    by_pick = {str(how): _share(rows) for (how,), rows in sorted(picked.group_by("picked_by"))}
    shown = population - at_random["excluded"].count() * population // max(1, at_random.height)  # those that show a class, as far as known
    return ReviewQuality(
        images=int(images.item()),
        answered=joined.height,
        excluded=_excluded(joined),
        by_pick={how: share for how, share in by_pick.items() if share},
        estimate=_share(at_random, shown),
        estimated=population,
        excluded_at_random=_excluded(at_random),
    )


def _images_stood_for(store: Store, seen_in: str | None, version: Version, images: int) -> int:
    """How many of the `images` of a version are among those that were drawn from another one, if it is known which.

    Of an edition none: it is a selection. Of a generation of the same pool all, or nearly so; of a pool that has grown since a part.
    """
    if seen_in == version.ref:
        return images
    if is_of_edition(seen_in):
        return 0
    named = [one for one in store.versions(seen_in.partition("@")[0]) if one.ref == seen_in] if seen_in else []
    if not named or not named[0].is_readable or named[0].manifest.kind != "generation":
        return images
    hashes = [scan_labels(one).select("image_hash") for one in (version, named[0])]
    refs = f"{version.ref} and {seen_in}"
    (there,) = collect(refs, hashes[0].join(hashes[1], on="image_hash", how="semi").select(pl.col("image_hash").n_unique()))
    return int(there.item())


def _share(rows: pl.DataFrame, population: int | None = None) -> Share | None:
    judged = rows.drop_nulls("truth")
    return Share.of(int((judged["label"] == judged["truth"]).sum()), judged.height, population)


def _excluded(rows: pl.DataFrame) -> dict[str, int]:
    return {reason: int((rows["excluded"] == reason).sum()) for reason in EXCLUDED}

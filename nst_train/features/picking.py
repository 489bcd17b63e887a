"""`nst pick`: which images of a generation, an edition or a labeled set a person should review."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError, UsageError
from nst_data.features.features import Features
from nst_data.inspection.row_columns import hash_numbers
from nst_data.progress import Progress, on_this_terminal
from nst_data.review.answers import settled
from nst_data.review.distinct_images import DistinctImages, image_numbers, soft_labels_of
from nst_data.review.feature_scores import mixed, outliers, outliers_within, suspicion_by_neighbors
from nst_data.review.featured_images import FeaturedImages
from nst_data.review.label_errors import confident_joint, estimated_errors, suspicion_of_labels
from nst_data.review.label_scores import churn, earlier_generations, ensemble_suspicion, uncertainties
from nst_data.review.neighbors import MOST_REFERENCES
from nst_data.review.picks import Picks, described, hashes_of, with_labels
from nst_data.review.queues import LABELED, keep_queue, keep_suspicion
from nst_data.review.spreading import Spread, candidates, drawn, spread
from nst_data.review.uncertainty import UNCERTAINTIES, uncertainty
from nst_data.settings import PickSettings
from nst_data.sources import Source, check_trainable, labels_in
from nst_data.store.files import is_writable
from nst_data.store.store import Store, Version
from nst_data.store.version import check_names_images
from nst_train.features.linear_probe import cross_validated
from nst_train.features.picking_sources import features_model, labeled_images, pool_of
from nst_train.settings import EmbedSettings, ReadSettings

DEFAULT_BY, DEFAULT_BY_OF_LABELED = "mixed", "suspicion"  # what teaches most according to benchmarks/results/pick.md
_FINDS, _TEACHES = 2, 10  # candidates per pick: few if the score itself is the goal

Scores = NDArray[np.float32]


@with_checked_arguments
def pick(
    store: Store,
    candidates: Version | Source | str,
    settings: PickSettings | None = None,
    *,
    model: str | None = None,
    labeled: Source | None = None,
    pool: Source | None = None,
    corpus: str | None = None,
    queue: str | None = None,
    embedding: EmbedSettings | None = None,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> Picks:
    """Pick the images that a person should review. If the store is writable, they are kept as a queue, which `nst look` opens.

    Memory: about 100 bytes per image of a version, whatever the size of its features; for labeled images, all features.

    Args:
        store: The store that holds the version, the features and the queues.
        candidates: The images to pick from: a generation or an edition, or its `name@gen-N`; or labeled images.
        settings: The number of picks, and the criterion.
        model: The model whose features tell images apart, as for `embed`; by default the labels' teacher. Required for labeled images.
        labeled: The labeled images to which distances of outliers are measured; by default those that the teacher was trained on.
        pool: The images of the version, if they have moved since labeling.
        corpus: The corpus whose queues the picks of labeled images join; without it these are not kept.
        queue: The name of the queue; by default the criterion.
        embedding: Settings that determine the features.
        run: How images are read; changes no result.
        progress: How progress is shown; by default as lines on standard error.

    Returns:
        The picks, in the order in which to review them.

    Raises:
        UsageError: The arguments do not go together, or one is missing.
        NstError: The images are not in the pool, no image is left, or a table is damaged.
    """
    progress = progress or on_this_terminal()
    arguments, can_write = (settings or PickSettings(), model, embedding or EmbedSettings(), run or ReadSettings()), is_writable(store.root)
    if queue and not can_write:
        raise NstError(f"{store.location} cannot be written to; remove `queue`")
    with tempfile.TemporaryDirectory(prefix="nst-pick-") as scratch:
        picking = _Picking(store, Path(scratch), *arguments, progress)
        if isinstance(candidates, Source):
            if labeled or pool:
                raise UsageError(f"{candidates.location}: is labeled images, to which `labeled` and `pool` do not apply; remove them")
            if queue and not corpus:
                raise UsageError("`queue` of labeled images requires `corpus`, whose queue it is")
            picks = picking.of_labeled(candidates, corpus)
        else:
            version = store.open(candidates, "generation", "edition")
            if corpus is not None:
                raise UsageError(f"`corpus` is for labeled images, and {version.ref} has one of its own; remove it")
            picks, corpus = picking.of_version(version, labeled, pool), version.name
    if corpus and not can_write:
        progress.say(f"{store.location} cannot be written to: these picks are not kept as a queue")
    return replace(picks, queue=keep_queue(store, corpus, picks.rows, queue)) if corpus and can_write else picks


def candidates_per_pick(by: str) -> int:
    """The number of candidates per pick."""
    return _FINDS if by in ("suspicion", "outlier") else _TEACHES


@dataclass(frozen=True)
class _Beside:
    """What the images of a version are compared with; features are None if they are not needed."""

    earlier: list[Version]
    featured: FeaturedImages | None = None
    labeled: Scores | None = None


@dataclass(frozen=True)
class _Picking:
    """The request, and how to compute features; if the store is read-only, they are kept temporarily in `scratch`."""

    store: Store
    scratch: Path
    settings: PickSettings
    model: str | None
    embedding: EmbedSettings
    run: ReadSettings
    progress: Progress

    def of_version(self, version: Version, labeled: Source | None, pool: Source | None) -> Picks:
        check_names_images(version, "pick from")
        by, images = self.settings.by or DEFAULT_BY, DistinctImages.of(version)
        if not len(images):
            raise NstError(f"{version.ref}: expected labels to pick from, found none: no image was labeled; its table errors says why")
        if by == "random":
            picked = drawn(images.numbers, self.settings.number, self.settings.seed)
            return Picks(version.ref, described(version, images.numbers[picked], None, by), len(images))
        beside = self._beside(version, images, by, labeled, pool)
        scores, featured = self._scores(version, images, by, beside), beside.featured
        if by == "suspicion":
            self._keep_suspicion(version.name, str(version.number), hashes_of(version, images, scores))
        is_missing = np.zeros(len(images), bool) if featured is None else ~featured.is_here
        is_answered = self._are_answered(images, version.name)
        scores = np.where(is_missing | is_answered, -np.inf, scores).astype(np.float32)
        picked = self._chosen(scores, images.labels, featured, by)
        rows = described(version, images.numbers[picked], scores[picked], by)
        return Picks(version.ref, rows, len(images), int(is_answered.sum()), int(is_missing.sum()))

    def _beside(self, version: Version, images: DistinctImages, by: str, labeled: Source | None, pool: Source | None) -> _Beside:
        earlier = earlier_generations(self.store, version) if by in ("churn", "suspicion") else []
        if by == "churn" and not earlier:
            raise UsageError(f"{version.ref}: `by` churn requires an earlier generation of the corpus, and the store has none")
        if self._spread(by) == "classes" and (by not in ("outlier", "mixed") and (by != "suspicion" or earlier)):
            return _Beside(earlier)
        model = features_model(version, self.store, self.model)
        source = pool or pool_of(version, self.store)
        labeled_source = (labeled or labeled_images(version, self.store)) if by == "outlier" else None
        featured = FeaturedImages(images, self._embedded(model, source))
        if not featured.is_here.any():
            raise NstError(f"{source.location}: contains none of the images of {version.ref}; pass the pool that was labeled, with `pool`")
        return _Beside(earlier, featured, None if labeled_source is None else self._sample(self._embedded(model, labeled_source)))

    def _sample(self, features: Features) -> Scores:
        matrix, rng = features.matrix(), np.random.default_rng(self.settings.seed)
        return matrix if len(matrix) <= MOST_REFERENCES else rng.choice(matrix, MOST_REFERENCES, replace=False)

    def _scores(self, version: Version, images: DistinctImages, by: str, beside: _Beside) -> Scores:
        classes = version.manifest.class_names
        if by == "churn":
            return churn(images, (DistinctImages.of(generation, classes) for generation in beside.earlier))
        if by == "suspicion" and beside.earlier:
            return ensemble_suspicion(images, (soft_labels_of(generation, classes) for generation in [*beside.earlier, version]))
        soft_labels, seed = soft_labels_of(version), self.settings.seed
        if by in UNCERTAINTIES:
            return uncertainties(images, soft_labels, by)
        assert beside.featured is not None
        if by == "mixed":
            return mixed(uncertainties(images, soft_labels, "margin"), beside.featured, seed)
        if by == "suspicion":
            return suspicion_by_neighbors(images, soft_labels, len(classes), beside.featured, seed)
        assert beside.labeled is not None
        return outliers(beside.featured, beside.labeled, seed)

    def of_labeled(self, source: Source, corpus: str | None) -> Picks:
        by = self.settings.by or DEFAULT_BY_OF_LABELED
        if by == "churn":
            raise UsageError(f"{source.location}: `by` churn compares generations of pseudo-labels, and these are labeled images")
        if self.model is None:
            raise UsageError(f"{source.location}: picking from labeled images requires `model`, a network with published weights")
        check_trainable(source)
        features = self._embedded(self.model, source)
        table, names = features.rows(), source.class_names or []
        numbers, first_rows = np.unique(image_numbers(table["image_hash"]), return_index=True)
        labels = labels_in(source)[table["id"].to_numpy()[first_rows]].astype(np.int64)
        images = DistinctImages(numbers, labels, np.full(len(labels), np.nan, np.float32))
        featured, scores, errors = FeaturedImages(images, features), None, None
        is_answered = self._are_answered(images, corpus) if corpus and by != "random" else np.zeros(len(images), bool)
        if by == "random":
            picked = drawn(numbers, self.settings.number, self.settings.seed)
        elif by == "outlier":
            scores = outliers_within(featured, self.settings.seed)
        else:
            probs = cross_validated(features.matrix()[first_rows], labels, len(names), self.settings.seed)
            if not np.isfinite(probs).any():
                raise NstError(
                    f"{source.location}: expected a class with two images that differ, to tell by the one what the other is; found none; "
                    "add images, or pick `by` outlier or random"
                )
            images, errors = replace(images, confidences=1 - suspicion_of_labels(probs, labels)), self._errors(probs, labels)
            scores = self._scores_of_labeled(by, probs, images, featured)
        if scores is not None:
            picked = self._chosen(np.where(is_answered, -np.inf, scores), labels, featured, by)
        if corpus and by == "suspicion":
            hashes = pl.Series(table["image_hash"]).gather(first_rows)
            self._keep_suspicion(corpus, LABELED, pl.DataFrame({"image_hash": hashes, "suspicion": scores}))
        rows = pl.DataFrame(table.select(["image_hash", "key"]).take(first_rows[picked]))
        rows = with_labels(rows, labels[picked], images.confidences[picked], names, None if scores is None else scores[picked], by)
        return Picks(source.location, rows, len(images), int(is_answered.sum()), estimated_errors=errors)

    def _errors(self, probs: Scores, labels: NDArray[np.int64]) -> float:
        is_known = np.isfinite(probs).all(axis=1)
        return estimated_errors(confident_joint(probs[is_known], labels[is_known]), labels[is_known])

    def _scores_of_labeled(self, by: str, probs: Scores, images: DistinctImages, featured: FeaturedImages) -> Scores:
        if by == "suspicion":
            return suspicion_of_labels(probs, images.labels)
        if by == "mixed":
            return mixed(uncertainty("margin", probs), featured, self.settings.seed)
        return uncertainty(by, probs)

    def _chosen(self, scores: Scores, labels: NDArray[np.int64], featured: FeaturedImages | None, by: str) -> NDArray[np.int64]:
        settings = self.settings
        places = candidates(scores, labels, settings.number, candidates_per_pick(by))
        if not len(places):
            raise NstError(f"no image is left to pick by {by}: all of them have been reviewed, or are missing from the pool")
        how = self._spread(by)
        features = None if featured is None or how == "classes" else featured.of(places)
        return places[spread(how, features, labels[places], scores[places], settings.number, settings.seed)]

    def _spread(self, by: str) -> Spread:
        """How picks are diversified. Wrong labels are looked for by rank: k-means among twice as many images drops some of the first."""
        return self.settings.spread or ("classes" if by == "suspicion" else "k-means")

    def _are_answered(self, images: DistinctImages, corpus: str) -> NDArray[np.bool_]:
        """Which images a person has already answered about."""
        settled_answers = settled(self.store, corpus)
        hashes = pl.Series([*settled_answers.answers, *settled_answers.disputed], dtype=pl.String)
        return np.isin(images.numbers, hash_numbers(hashes).to_numpy())

    def _keep_suspicion(self, corpus: str, version: str, suspicion: pl.DataFrame) -> None:
        if is_writable(self.store.root):
            keep_suspicion(self.store, corpus, version, suspicion)

    def _embedded(self, model: str, source: Source) -> Features:
        from nst_train.features.backbone import load_backbone  # imports torch, which picking by labels only does not need
        from nst_train.features.embed import embed_by

        backbone = load_backbone(model, self.store, self.embedding.image_size, self.embedding.crop_pct)
        return embed_by(self.store, backbone, source, self.embedding, self.run, self.progress, self.scratch)

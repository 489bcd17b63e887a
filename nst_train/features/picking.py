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
from nst_data.progress import Progress, terminal_progress
from nst_data.review.answers import resolve_answers
from nst_data.review.distinct_images import DistinctImages, image_numbers, iter_soft_labels
from nst_data.review.feature_scores import mixed_scores, outliers, outliers_within, suspicion_by_neighbors
from nst_data.review.featured_images import FeaturedImages
from nst_data.review.label_errors import confident_joint, estimate_errors, suspicion_of_labels
from nst_data.review.label_scores import churn_scores, earlier_generations, ensemble_suspicion, uncertainties
from nst_data.review.neighbors import MAX_REFERENCES
from nst_data.review.picks import Picks, pick_rows, suspicion_table, to_pick_rows
from nst_data.review.queues import LABELED, save_queue, save_suspicion
from nst_data.review.spreading import Spread, sample_images, select_candidates, select_diverse
from nst_data.review.uncertainty import UNCERTAINTIES, uncertainty
from nst_data.settings import PickSettings
from nst_data.sources import Source, check_trainable, labels_in
from nst_data.store.files import is_writable
from nst_data.store.store import Store, Version
from nst_data.store.version import check_not_anonymous
from nst_train.features.linear_probe import cross_validated_probs
from nst_train.features.picking_sources import features_model, open_labeled_images, open_pool
from nst_train.settings import EmbedSettings, ReadSettings

DEFAULT_BY, DEFAULT_BY_OF_LABELED = "mixed", "suspicion"  # what teaches most according to benchmarks/results/pick.md
_CANDIDATES_OF_A_SEARCH, _CANDIDATES_OF_A_LESSON = 2, 10  # candidates per pick: few if the score itself is the goal

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
    progress = progress or terminal_progress()
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
            picks = picking.pick_from_labeled(candidates, corpus)
        else:
            version = store.open(candidates, "generation", "edition")
            if corpus is not None:
                raise UsageError(f"`corpus` is for labeled images, and {version.ref} has one of its own; remove it")
            picks, corpus = picking.pick_from_version(version, labeled, pool), version.name
    if corpus and not can_write:
        progress.say(f"{store.location} cannot be written to: these picks are not kept as a queue")
    return replace(picks, queue=save_queue(store, corpus, picks.rows, queue)) if corpus and can_write else picks


def candidates_per_pick(by: str) -> int:
    """The number of candidates per pick."""
    return _CANDIDATES_OF_A_SEARCH if by in ("suspicion", "outlier") else _CANDIDATES_OF_A_LESSON


@dataclass(frozen=True)
class _References:
    """What the images of a version are compared with; features are None if they are not needed."""

    earlier: list[Version]
    featured_images: FeaturedImages | None = None
    labeled_features: Scores | None = None


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

    def pick_from_version(self, version: Version, labeled: Source | None, pool: Source | None) -> Picks:
        check_not_anonymous(version, "pick from")
        by, images = self.settings.by or DEFAULT_BY, DistinctImages.from_version(version)
        if not len(images):
            raise NstError(f"{version.ref}: expected labels to pick from, found none: no image was labeled; its table errors says why")
        if by == "random":
            picked = sample_images(images.numbers, self.settings.number, self.settings.seed)
            return Picks(version.ref, pick_rows(version, images.numbers[picked], None, by), len(images))
        references = self._load_references(version, images, by, labeled, pool)
        scores, featured = self._score_version(version, images, by, references), references.featured_images
        if by == "suspicion":
            self._save_suspicion(version.name, str(version.number), suspicion_table(version, images, scores))
        is_missing = np.zeros(len(images), bool) if featured is None else ~featured.has_features
        is_answered = self._are_answered(images, version.name)
        scores = np.where(is_missing | is_answered, -np.inf, scores).astype(np.float32)
        picked = self._select(scores, images.labels, featured, by)
        rows = pick_rows(version, images.numbers[picked], scores[picked], by)
        return Picks(version.ref, rows, len(images), int(is_answered.sum()), int(is_missing.sum()))

    def _load_references(
        self, version: Version, images: DistinctImages, by: str, labeled: Source | None, pool: Source | None
    ) -> _References:
        earlier = earlier_generations(self.store, version) if by in ("churn", "suspicion") else []
        if by == "churn" and not earlier:
            raise UsageError(f"{version.ref}: `by` churn requires an earlier generation of the corpus, and the store has none")
        if self._spread_method(by) == "classes" and (by not in ("outlier", "mixed") and (by != "suspicion" or earlier)):
            return _References(earlier)
        model = features_model(version, self.store, self.model)
        source = pool or open_pool(version, self.store)
        labeled_source = (labeled or open_labeled_images(version, self.store)) if by == "outlier" else None
        featured = FeaturedImages(images, self._compute_features(model, source))
        if not featured.has_features.any():
            raise NstError(f"{source.location}: contains none of the images of {version.ref}; pass the pool that was labeled, with `pool`")
        return _References(
            earlier, featured, None if labeled_source is None else self._sample(self._compute_features(model, labeled_source))
        )

    def _sample(self, features: Features) -> Scores:
        matrix, rng = features.matrix(), np.random.default_rng(self.settings.seed)
        return matrix if len(matrix) <= MAX_REFERENCES else rng.choice(matrix, MAX_REFERENCES, replace=False)

    def _score_version(self, version: Version, images: DistinctImages, by: str, references: _References) -> Scores:
        classes = version.manifest.class_names
        if by == "churn":
            return churn_scores(images, (DistinctImages.from_version(generation, classes) for generation in references.earlier))
        if by == "suspicion" and references.earlier:
            return ensemble_suspicion(images, (iter_soft_labels(generation, classes) for generation in [*references.earlier, version]))
        soft_labels, seed = iter_soft_labels(version), self.settings.seed
        if by in UNCERTAINTIES:
            return uncertainties(images, soft_labels, by)
        assert references.featured_images is not None
        if by == "mixed":
            return mixed_scores(uncertainties(images, soft_labels, "margin"), references.featured_images, seed)
        if by == "suspicion":
            return suspicion_by_neighbors(images, soft_labels, len(classes), references.featured_images, seed)
        assert references.labeled_features is not None
        return outliers(references.featured_images, references.labeled_features, seed)

    def pick_from_labeled(self, source: Source, corpus: str | None) -> Picks:
        by = self.settings.by or DEFAULT_BY_OF_LABELED
        if by == "churn":
            raise UsageError(f"{source.location}: `by` churn compares generations of pseudo-labels, and these are labeled images")
        if self.model is None:
            raise UsageError(f"{source.location}: picking from labeled images requires `model`, a network with published weights")
        check_trainable(source)
        features = self._compute_features(self.model, source)
        table, names = features.rows(), source.class_names or []
        numbers, first_rows = np.unique(image_numbers(table["image_hash"]), return_index=True)
        labels = labels_in(source)[table["id"].to_numpy()[first_rows]].astype(np.int64)
        images = DistinctImages(numbers, labels, np.full(len(labels), np.nan, np.float32))
        featured, scores, errors = FeaturedImages(images, features), None, None
        is_answered = self._are_answered(images, corpus) if corpus and by != "random" else np.zeros(len(images), bool)
        if by == "random":
            picked = sample_images(numbers, self.settings.number, self.settings.seed)
        elif by == "outlier":
            scores = outliers_within(featured, self.settings.seed)
        else:
            probs = cross_validated_probs(features.matrix()[first_rows], labels, len(names), self.settings.seed)
            if not np.isfinite(probs).any():
                raise NstError(
                    f"{source.location}: expected a class with two images that differ, to tell by the one what the other is; found none; "
                    "add images, or pick `by` outlier or random"
                )
            images, errors = replace(images, confidences=1 - suspicion_of_labels(probs, labels)), self._estimate_errors(probs, labels)
            scores = self._score_labeled(by, probs, images, featured)
        if scores is not None:
            picked = self._select(np.where(is_answered, -np.inf, scores), labels, featured, by)
        if corpus and by == "suspicion":
            hashes = pl.Series(table["image_hash"]).gather(first_rows)
            self._save_suspicion(corpus, LABELED, pl.DataFrame({"image_hash": hashes, "suspicion": scores}))
        rows = pl.DataFrame(table.select(["image_hash", "key"]).take(first_rows[picked]))
        rows = to_pick_rows(rows, labels[picked], images.confidences[picked], names, None if scores is None else scores[picked], by)
        return Picks(source.location, rows, len(images), int(is_answered.sum()), estimated_errors=errors)

    def _estimate_errors(self, probs: Scores, labels: NDArray[np.int64]) -> float:
        is_known = np.isfinite(probs).all(axis=1)
        return estimate_errors(confident_joint(probs[is_known], labels[is_known]), labels[is_known])

    def _score_labeled(self, by: str, probs: Scores, images: DistinctImages, featured: FeaturedImages) -> Scores:
        if by == "suspicion":
            return suspicion_of_labels(probs, images.labels)
        if by == "mixed":
            return mixed_scores(uncertainty("margin", probs), featured, self.settings.seed)
        return uncertainty(by, probs)

    def _select(self, scores: Scores, labels: NDArray[np.int64], featured: FeaturedImages | None, by: str) -> NDArray[np.int64]:
        settings = self.settings
        places = select_candidates(scores, labels, settings.number, candidates_per_pick(by))
        if not len(places):
            raise NstError(f"no image is left to pick by {by}: all of them have been reviewed, or are missing from the pool")
        method = self._spread_method(by)
        features = None if featured is None or method == "classes" else featured.gather(places)
        return places[select_diverse(method, features, labels[places], scores[places], settings.number, settings.seed)]

    def _spread_method(self, by: str) -> Spread:
        """How picks are diversified. Wrong labels are looked for by rank: k-means among twice as many images drops some of the first."""
        return self.settings.spread or ("classes" if by == "suspicion" else "k-means")

    def _are_answered(self, images: DistinctImages, corpus: str) -> NDArray[np.bool_]:
        """Which images a person has already answered about."""
        resolved_answers = resolve_answers(self.store, corpus)
        hashes = pl.Series([*resolved_answers.answers, *resolved_answers.disputed], dtype=pl.String)
        return np.isin(images.numbers, hash_numbers(hashes).to_numpy())

    def _save_suspicion(self, corpus: str, version: str, suspicion: pl.DataFrame) -> None:
        if is_writable(self.store.root):
            save_suspicion(self.store, corpus, version, suspicion)

    def _compute_features(self, model: str, source: Source) -> Features:
        from nst_train.features.backbone import load_backbone  # imports torch, which picking by labels only does not need
        from nst_train.features.embed import embed_with

        backbone = load_backbone(model, self.store, self.embedding.image_size, self.embedding.crop_pct)
        return embed_with(self.store, backbone, source, self.embedding, self.run, self.progress, self.scratch)

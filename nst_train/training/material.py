"""What a network is trained on, and the images that decide which weights are kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nst_data.errors import UsageError
from nst_data.progress import Progress
from nst_data.review.labeled_part import LabeledPart, answered_images_pattern, check_edition_review
from nst_data.self_contained.images import needs_pool
from nst_data.self_contained.remote import StreamedEdition
from nst_data.sources import Source, check_trainable, labels_in, open_source
from nst_data.sources.labeled_pool import EDITION_HINT, open_labeled_pool
from nst_data.store.store import Staging, Store, Version
from nst_train.device import this_process


@dataclass(frozen=True)
class TrainingData:
    """The arguments of `train` that name images and their labels, after opening."""

    labeled: Source | None
    edition: Version | StreamedEdition | None = None
    pool: Source | None = None
    reviews: Version | None = None
    exclude: Sequence[Source] = ()
    validation: Source | None = None

    def check(self, progress: Progress) -> None:
        """Raises UsageError for images without labels and arguments that do not go together, NstError if all labels are of one class."""
        self._check_pool()
        if self.exclude and (self.reviews is None or self.edition is not None):
            raise UsageError("`exclude` applies to `reviews` without `pseudo`, whose edition already leaves them out; remove it")
        if isinstance(self.edition, Version):
            check_edition_review(self.edition, self.reviews, progress)
        elif self.edition is not None and self.reviews is not None:
            raise UsageError(
                f"`reviews` {self.reviews.ref} requires the reviewed images, which are not here; pull {self.edition.ref} and train on that"
            )
        for line in [line for source in self.labeled_sources.values() for line in source.remarks()]:
            progress.say_once(line)
        if self.labeled is not None:
            check_trainable(self.labeled)
        if self.validation is not None:
            labels_in(self.validation)

    def _check_pool(self) -> None:
        """Raises UsageError for a pool from which nothing would be read."""
        if self.pool is not None and self.edition is None and self.reviews is None:
            raise UsageError(f"`pool` {self.pool.location}: there are no pseudo-labeled images without `pseudo`; add it, or remove `pool`")
        if self.pool is not None and self.edition is not None and not needs_pool(self.edition):
            raise UsageError(f"`pool` {self.pool.location}: {self.edition.ref} already contains its images; remove `pool`")

    @property
    def labeled_sources(self) -> dict[str, Source]:
        """The labeled sources, by role."""
        return {role: source for role, source in (("labeled", self.labeled), ("validation", self.validation)) if source is not None}

    def with_pool(self, store: Store) -> "TrainingData":
        """A copy with the pool that the edition needs, if any: the one the user named, or else the one that was labeled."""
        if self.pool is not None or self.edition is None or not needs_pool(self.edition):
            return self
        return replace(self, pool=open_labeled_pool(self.edition, store.indexes, EDITION_HINT))

    def with_answers(self, store: Store, staging: Staging, progress: Progress) -> tuple["TrainingData", int]:
        """A copy with human answers merged into the labeled images, and the number of labels that people gave."""
        if self.reviews is None or self.labeled is None:
            return self, 0
        assert not isinstance(self.edition, StreamedEdition), "refused"
        edition, pool, review = self.edition, self.pool, self.reviews

        def open_pool() -> Source:
            if edition is not None and not needs_pool(edition):
                return open_source(answered_images_pattern(edition, store), labeled=True)
            if pool is not None:
                return pool
            hint = f"has labels for images of it that are not among the labeled ones: {review.ref} names them; pass their place with `pool`"
            return open_labeled_pool(store.open(review.name, "generation"), store.indexes, hint)

        measured = [*self.exclude, *([self.validation] if self.validation else [])]
        with this_process().main_process_first():
            part = LabeledPart.from_review(self.labeled, review, edition, store, open_pool, staging.work, measured, progress)
        return replace(self, labeled=part.source), part.reviewed

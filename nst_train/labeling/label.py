"""The un-noised teacher over a pool: soft labels, shard by shard (Algorithm 1, step 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nst_data.arguments import with_checked_arguments
from nst_data.corpora import newest_labels
from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress, on_this_terminal
from nst_data.sources import Source, labels_in, match_classes
from nst_data.sources.labeled_pool import open_labeled_pool
from nst_data.store.inputs import Input
from nst_data.store.manifest import EditionRequest, Request
from nst_data.store.store import Store, Version
from nst_train.classifiers.lineage import calibration_input, teacher_entries
from nst_train.labeling.begin import begin
from nst_train.labeling.earlier_labels import Reused
from nst_train.labeling.grown import Grown
from nst_train.labeling.like import Like
from nst_train.labeling.plan import Plan, Whole
from nst_train.labeling.task import LabelTask
from nst_train.settings import LabelRunSettings, LabelSettings, ReadSettings
from nst_train.teacher_names import TeacherName
from nst_train.zero_shot_settings import ZeroShot

if TYPE_CHECKING:
    from nst_train.labeling.prepared import Prepared

_POOL_HINT = "was made from it; give its current location as `pool`"
Teachers = str | Version | ZeroShot | Sequence[str | Version | ZeroShot]


@with_checked_arguments
def label(
    store: Store,
    corpus: str,
    teacher: Teachers,
    pool: Source,
    settings: LabelSettings | None = None,
    *,
    calibration: Source | None = None,
    generation: int | None = None,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> Version:
    """Label every image of a pool with an un-noised teacher (Algorithm 1, step 2) and seal the soft labels as a generation of `corpus`.

    What was labeled before, also by a run that was killed, is not labeled again. Any number of processes may run this at once: they share
    the shards, and the bytes are the same.

    Args:
        store: Where the generation is kept.
        corpus: The name that gets a new generation.
        teacher: A version of the store or its `name@gen-N`, `hf-hub:OWNER/NAME`, OWNER/NAME of transformers, `local-dir:FOLDER` or a timm
            name; or `ZeroShot(...)`, an image-text model with the words of the classes. Several are an ensemble: the mean of their
            probabilities.
        pool: Images, whose labels are not read.
        settings: What shapes the labels.
        calibration: Labeled images, unseen by the teacher, to fit the temperature on.
        generation: Use this generation number, from 1, instead of the next free one.
        run: How the labeling runs; changes no result.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        The sealed generation. Each image is in its table `pseudo_labels`, with a float16 probability for each class, or with the reason in
        `errors`.

    Raises:
        UsageError: There is no such teacher, or the arguments do not go together.
        NstError: The pool has changed on the way, or too many of its images cannot be read.
    """
    settings = settings or LabelSettings()
    if calibration is not None and settings.noise:
        raise UsageError("`calibration` requires a teacher without `noise`; remove one of them")
    if calibration is not None:
        labels_in(calibration)
    for ref, request in _of_all(store, corpus).items():
        if (
            ref.startswith(f"{corpus}@gen-{generation}.") and isinstance(request, EditionRequest) and request.inputs.like
        ):  # it would seem to be drawn from this one
            raise NstError(f"{ref} is a relabeled edition without its pool; omit the generation to get the next one")
    driver = _Driver(store, _names_of(teacher, store), settings, LabelRunSettings.of(run), progress or on_this_terminal(), calibration)
    return driver.make(Whole(pool, settings.limit), corpus, generation)


@with_checked_arguments
def extend(
    store: Store,
    version: Version | str,
    pool: Source | None = None,
    *,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> Version:
    """Label only the images added to a pool since a generation of labels, by the same teacher and settings, into a new generation.

    The whole of the grown pool stands in it: rows with the bytes of an image that was labeled are taken over, joined by `image_hash`.
    An index of that generation's images lies in the store meanwhile: 48 bytes for each row, of which memory holds a part.

    Args:
        store: Where both generations are kept.
        version: The generation to go on from, or its `name@gen-N`.
        pool: The grown pool; by default what lies where the earlier one was.
        run: How the labeling runs; changes no result.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        The new generation, of the same corpus.

    Raises:
        UsageError: The generation was adopted, or its teacher comes from a downloaded manifest and is not in the store.
        NstError: The teacher has other weights by now, or too many images cannot be read.
    """
    run, generation = LabelRunSettings.of(run), store.open(version, "generation")
    plan = Grown(pool or open_labeled_pool(generation, store.indexes, _POOL_HINT, as_labeled=False), generation, run.decode_threads)
    progress, before = progress or on_this_terminal(), [version.ref for version in store.versions(generation.name)]
    driver = _Driver(store, plan.teachers(store), plan.settings(), run, progress)
    plan.check_same(driver.teachers)
    extended = driver.make(plan, generation.name)
    if extended.ref not in before and store.address is None and run.share[0] == 0:  # at an address its tables would be brought here
        progress.say(_what_was_reused(generation, extended, store.root))
    return extended


@with_checked_arguments
def label_like(
    store: Store,
    version: Version | str,
    teacher: Teachers,
    pool: Source | None = None,
    settings: LabelSettings | None = None,
    *,
    generation: int | None = None,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> Version:
    """New soft labels for the images of an edition, with the same copies: the first edition of a new generation.

    As the paper does after its one selection (section 3.1), and the released code's "reassign".

    Args:
        store: Where both editions are kept.
        version: The edition whose images are labeled again, or its `name@gen-N.K`.
        teacher: As for `label`.
        pool: Where the images are; by default where they were labeled.
        settings: What shapes the labels.
        generation: Use this generation number instead of the next free one.
        run: How the labeling runs; changes no result.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        The new edition, of the same corpus.

    Raises:
        UsageError: There is no such edition or teacher.
        NstError: The teacher has other classes than the edition, the pool lacks images of it, or too many cannot be read.
    """
    settings, edition = settings or LabelSettings(), store.open(version, "edition")
    pool, corpus = pool or open_labeled_pool(edition, store.indexes, _POOL_HINT, as_labeled=False), edition.name
    if generation is not None and f"{corpus}@gen-{generation}" in _of_all(store, corpus):
        raise NstError(f"{corpus}@gen-{generation} labels the whole pool; omit the generation to get the next one")
    driver = _Driver(store, _names_of(teacher, store), settings, LabelRunSettings.of(run), progress or on_this_terminal())
    driver.check_same_classes(edition, f"Name a teacher with the classes of {edition.ref}, or label the pool as another corpus")
    return driver.make(Like(pool, edition, settings.limit), corpus, generation)


def _what_was_reused(earlier: Version, extended: Version, scratch: Path) -> str:
    reused = Reused.between(earlier, extended, scratch)
    if not reused.taken_over:
        return (
            f"warning: {extended.ref}: no labels were taken over, since the pool has none of the {reused.gone:,} images of {earlier.ref}; "
            f"if it is another pool, `store.remove({extended.ref!r})` and label it under another corpus name"
        )
    return (
        f"{extended.ref}: labels taken over from {earlier.ref}: {reused.taken_over:,}, newly made: {reused.new:,}; "
        f"images of {earlier.ref} that are not in this pool: {reused.gone:,}"
    )


def _names_of(teacher: Teachers, store: Store) -> list[TeacherName]:
    """What the teachers are called. Raises UsageError for a version that is none, and for none at all."""
    teachers = [teacher] if isinstance(teacher, str | Version | ZeroShot) else teacher
    if not teachers:
        raise UsageError("`teacher`: expected a teacher or several, found none")
    return [store.open(one, "teacher").ref if isinstance(one, Version) else one for one in teachers]


def _of_all(store: Store, corpus: str) -> dict[str, Request]:
    """What each version of a corpus was asked to be, by its reference; those under way too."""
    under_way = {staging.ref: staging.request for staging in store.stagings(corpus)}
    return under_way | {version.ref: version.manifest.request for version in store.versions(corpus) if version.is_readable}


@dataclass
class _Driver(LabelTask):
    """What all ways of labeling have in common: the version is found, or begun, and what is missing labeled.

    A finished one is found without a network library where its teachers are in the store.
    """

    @property
    def teachers(self) -> dict[str, Input]:
        """Their entries in the lineage."""
        entries = teacher_entries(self.names, self.store)
        return self._prepared.teachers if entries is None else entries

    def check_same_classes(self, version: Version, advice: str) -> None:
        """Raises NstError, which ends in `advice`, where the teacher has other classes than a version. Nothing in the store is loaded."""
        entries = list(self.teachers.values())
        in_store = teacher_entries(self.names[:1], self.store) is not None
        names = self.store.open(entries[0].ref, "teacher").manifest.class_names if in_store else self._prepared.class_names
        match_classes(names, version.manifest.class_names, entries[0].ref, advice=advice)

    def _say_other_classes(self, corpus: str) -> None:
        """Warn where the newest labels of a corpus have other classes than the teacher."""
        newest = newest_labels(self.store, corpus)
        if newest is None:
            return
        advice = (
            f"These are the classes of {newest.ref}; choose another `corpus` name, unless the classes of {corpus!r} are meant to change"
        )
        try:
            self.check_same_classes(newest, advice)
        except NstError as error:
            self.progress.say(f"warning: {error}")

    @cached_property
    def _prepared(self) -> "Prepared":
        from nst_train.labeling.prepared import Prepared

        return Prepared(self.store, self.names, self.settings, self.run, self.progress, self.calibration)

    def make(self, plan: Plan, corpus: str, generation: int | None = None) -> Version:
        """Label what is missing and seal; where another process seals first, its version is the result."""
        inputs, read = {**self.teachers, "pool": plan.pool.lineage, **plan.inputs}, {"pool": plan.pool}
        if self.calibration is not None:
            inputs["calibration"] = calibration_input(self.store, inputs, self.settings, self.calibration)
            read["calibration"] = self.calibration
        request = plan.request(self.settings.for_request(), inputs)
        staged = begin(self.store, request, corpus, generation, read, self.settings.limit, self.run, self.progress)
        if isinstance(staged, Version):
            return staged
        self._say_other_classes(corpus)
        from nst_train.labeling.make import make

        return staged.shared(lambda: make(self._prepared, staged, plan, read))

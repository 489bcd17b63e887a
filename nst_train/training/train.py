"""Training a teacher or a student: what comes before the steps, the loop over them, and the seal (Algorithm 1, steps 1 and 3)."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress, as_text, on_this_terminal
from nst_data.review.labeled_part import LabeledPart, answered_images, check_drawn_with
from nst_data.self_contained.images import needs_pool
from nst_data.self_contained.remote import StreamedEdition
from nst_data.sources import Source, check_trainable, labels_in, open_source
from nst_data.sources.labeled_pool import OF_EDITION, open_labeled_pool
from nst_data.store.ownership import Sign
from nst_data.store.store import Staging, Store, Version
from nst_train.batches.batches import worker_failures
from nst_train.device import DEFAULT_THREADS, agreed_text, memory_failures, set_threads, settled_precision, this_process
from nst_train.networks.models import check_names
from nst_train.settings import RunSettings, TrainSettings
from nst_train.teacher_names import settled
from nst_train.training.loop import Training
from nst_train.training.probing import fit_probe
from nst_train.training.readable import check_unchanged
from nst_train.training.request import begin, request_of
from nst_train.training.seal import seal
from nst_train.training.trackers import check_trackers

_NAMES_SHOWN = 3


@with_checked_arguments
def train(
    store: Store,
    name: str,
    labeled: Source | None,
    settings: TrainSettings,
    *,
    edition: Version | StreamedEdition | str | None = None,
    pool: Source | None = None,
    reviews: Version | str | None = None,
    exclude: Sequence[Source] = (),
    validation: Source | None = None,
    generation: int | None = None,
    run: RunSettings | None = None,
    progress: Progress | None = None,
) -> Version:
    """Train a network on labeled images and, with `edition`, on pseudo-labeled ones too (Algorithm 1, steps 1 and 3).

    Its averaged weights are sealed as a teacher. The same call finds a finished teacher; a killed run resumes at its last checkpoint and
    ends, on the CPU, with the same weights.

    Args:
        store: Where the teacher is kept, and what it is made from.
        name: The teacher's name; each training of it is a new generation.
        labeled: Images with their labels, `open_source(..., labeled=True)`. None: a student is trained on the edition alone, whose classes
            are its own. Then a step has `batch_size` times `ratio` images, and an epoch passes each entry of the edition once.
        settings: What shapes the network; the defaults are the paper's. Epochs and batch size count labeled images. With `probe` the
            network stays as it is, and only its last layer is fitted.
        edition: Pseudo-labeled images from `balance` or `label_like`, as a version or `name@gen-N.K`. One of the Hub may be streamed:
            the same training as on the pulled one.
        pool: The edition's images, if they have moved since labeling. One that holds its images takes none.
        reviews: What people answered, `name@review-N`: they override the labels of `labeled`, images of the pool that they gave a class
            join it, excluded images are dropped. The `edition` must have been drawn with the same.
        exclude: Sources whose images are not trained on because somebody answered about them, such as test images; an edition knows those
            that it was drawn without.
        validation: Labeled images of the same classes that decide which weights are kept: those that do best; else the last ones are.
        generation: Use this generation number, from 0, instead of the next free one.
        run: How the training runs; changes no result.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        The sealed teacher; `manifest.counts` has its parameters and steps.

    Raises:
        UsageError: A source was opened without labels, or the arguments do not go together.
        NstError: The data or the network refuse the settings, before any work starts; or a loss is not finite.
        KeyboardInterrupt: A signal asked to stop, and a checkpoint is written. Its `status` is the exit status of a command, such as 130.
    """
    run, progress = run or RunSettings(), progress or on_this_terminal()
    if edition is not None and not isinstance(edition, StreamedEdition):
        edition = store.open(edition, "edition")
    reviews = None if reviews is None else store.open(reviews, "review")
    _check_pool(edition, pool, reviews)
    if exclude and (reviews is None or edition is not None):
        raise UsageError("`exclude` applies to `reviews` without an `edition`, which already leaves them out; remove it")
    if isinstance(edition, Version):
        check_drawn_with(edition, reviews, progress)
    elif edition is not None and reviews is not None:
        raise UsageError(f"`reviews` {reviews.ref} requires the reviewed images, which are not here; pull {edition.ref} and train on that")
    for line in [line for source in filter(None, (labeled, validation)) for line in source.remarks()]:
        progress.say(line)
    if labeled is not None:
        check_trainable(labeled)
    else:
        settings = _of_pseudo_labels_alone(settings, edition, reviews)
    if validation is not None:
        labels_in(validation)
    check_names(settings)
    trackers = check_trackers(run.tracker)
    if settings.probe:
        if edition is not None:
            raise UsageError("`probe` trains on labeled images only; remove it, or the `edition`")
        settings, validation = settings.of_probe(), None  # whose images would decide nothing
    if edition is None:
        settings = settings.of_labeled_alone()
    if validation is None:
        settings = settings.without_validation()
    if settings.start:  # with its version: the newest one may soon be another
        settings = settings.model_copy(update={"start": settled(settings.start, store)})
    state = this_process()
    with state.main_process_first():
        staging = begin(store, request_of(store, settings, labeled, edition, pool, validation, reviews, exclude), name, generation)
        for line in [] if isinstance(staging, Version) else store.unfinished_beside(staging):
            progress.say(line)
        read = {"labeled": labeled, "validation": validation}
        check_unchanged(staging, {role: source for role, source in read.items() if source is not None}, progress)
    if isinstance(staging, Version):
        progress.say(f"{staging.ref} already exists: same images, labels and settings")
        return staging
    with _alone(staging, progress) as sign:
        _train(store, staging, sign, settings, labeled, edition, pool, reviews, exclude, run, progress, validation, trackers)
    return staging.version


def _of_pseudo_labels_alone(settings: TrainSettings, edition: Version | StreamedEdition | None, reviews: Version | None) -> TrainSettings:
    """The settings of a training without labeled images. Raises UsageError for what needs some."""
    needed_for = {
        "a teacher, which has no pseudo-labels (`edition`),": edition is None,
        f"`reviews` {reviews.ref if reviews else ''}": reviews is not None,
        "`probe`": settings.probe,
        "`class_weights`": settings.class_weights is not None,
    }
    if lacking := next((what for what, is_asked in needed_for.items() if is_asked), None):
        raise UsageError(f"`labeled` is missing: {lacking} needs labeled images")
    return settings.of_pseudo_alone()


def _check_pool(edition: Version | StreamedEdition | None, pool: Source | None, reviews: Version | None) -> None:
    """Raises UsageError for a pool that nothing would be read from."""
    if pool is not None and edition is None and reviews is None:
        raise UsageError(f"`pool` {pool.location}: there are no pseudo-labeled images without an `edition`; add it, or remove `pool`")
    if pool is not None and edition is not None and not needs_pool(edition):
        raise UsageError(f"`pool` {pool.location}: {edition.ref} already contains its images; remove `pool`")


def _pool_of(store: Store, edition: Version | StreamedEdition | None, pool: Source | None) -> Source | None:
    """The pool that the user names, else the one that was labeled; None where none is needed."""
    if pool is not None or edition is None or not needs_pool(edition):
        return pool
    return open_labeled_pool(edition, store.indexes, OF_EDITION)


def _labeled_part(
    store: Store,
    staging: Staging,
    labeled: Source | None,
    reviews: Version | None,
    edition: Version | StreamedEdition | None,
    pool: Source | None,
    measured: Sequence[Source],
    progress: Progress,
) -> tuple[Source | None, int]:
    """The labeled images with what people answered, and how many of their labels people gave."""
    if reviews is None or labeled is None:
        return labeled, 0
    assert not isinstance(edition, StreamedEdition), "refused"
    drawn, name = edition, reviews.name

    def open_pool() -> Source:
        if drawn is not None and not needs_pool(drawn):
            return open_source(answered_images(drawn, store), labeled=True)
        if pool is not None:
            return pool
        hint = f"has labels for images of it that are not among the labeled ones: {reviews.ref} names them; pass their place with `pool`"
        return open_labeled_pool(store.open(name, "generation"), store.indexes, hint)

    with this_process().main_process_first():
        part = LabeledPart.of(labeled, reviews, drawn, store, open_pool, staging.work, measured, progress)
    return part.source, part.reviewed


def _in_short(class_names: Sequence[str]) -> str:
    """How many classes, and the first of their names: of a wrong folder they are not what was meant."""
    shown = ", ".join(map(as_text, class_names[:_NAMES_SHOWN])) + ", ..." * (len(class_names) > _NAMES_SHOWN)
    return f"{len(class_names):,} class{'es' * (len(class_names) > 1)} ({shown})"


@contextmanager
def _alone(staging: Staging, progress: Progress) -> Iterator[Sign | None]:
    """The processes of one training together own it: the first of them for all. Raises AtWorkError, in all, where others train it."""
    with ExitStack() as stack:
        sign, refused = None, ""
        if this_process().is_main_process:
            try:
                sign = stack.enter_context(staging.owned(progress.say))
            except NstError as error:
                refused = str(error)
        if refused := agreed_text(refused):
            raise NstError(refused)
        yield sign


def _train(
    store: Store,
    staging: Staging,
    sign: Sign | None,
    settings: TrainSettings,
    labeled: Source | None,
    edition: Version | StreamedEdition | None,
    pool: Source | None,
    reviews: Version | None,
    exclude: Sequence[Source],
    run: RunSettings,
    progress: Progress,
    validation: Source | None,
    trackers: list[str],
) -> None:
    """Train what is left, and seal. `sign` is the main process's."""
    since, state = time.monotonic(), this_process()
    chosen = {"device": state.device.type, "precision": settled_precision(settings.precision, state.device)}
    machine = staging.remembered("machine", {"threads": settings.compute_threads or DEFAULT_THREADS, **chosen})
    if machine["device"] != state.device.type:
        raise NstError(
            f"{staging.ref} was started on {machine['device']}, this process uses {state.device.type}; resume it where it was started, "
            f"or `store.remove({staging.ref!r})` first"
        )
    settings = settings.model_copy(update={"precision": machine["precision"]})
    with staging.refusable():
        pool = _pool_of(store, edition, pool)
        measured = [*exclude, *([validation] if validation else [])]
        labeled, reviewed = _labeled_part(store, staging, labeled, reviews, edition, pool, measured, progress)
    if settings.probe:
        assert labeled is not None, "refused"
        with staging.refusable():
            if sign is not None:
                fit_probe(store, staging, settings, labeled, run, progress, machine, since, reviewed)
        state.wait_for_everyone()
        return
    set_threads(machine["threads"])
    with staging.refusable():
        training = Training.prepare(store, staging, settings, labeled, edition, pool, run, progress, validation)
    training.sign = sign
    steps, images, pseudo = training.step.schedule.steps, len(training.labeled), len(training.pseudo) if training.pseudo else 0
    parts = [f"{images:,} labeled image{'s' * (images > 1)} of {_in_short(training.class_names)}"] if images else []
    parts += [f"{pseudo:,} pseudo-labeled {'entries' if pseudo > 1 else 'entry'}"] if pseudo else []
    progress.say(f"{staging.ref}: {steps:,} step{'s' * (steps > 1)} over {' and '.join(parts)}")
    if images and settings.batch_size > images:
        progress.say(
            f"{staging.ref}: warning: each step takes {settings.batch_size:,} labeled images, more than the {images:,} there are; "
            f"set `batch_size` to at most {images:,}, or `preset` pretrained"
        )
    words = "warmup_epochs" if settings.warmup_steps is None else "warmup_steps", "steps" if settings.steps else "epochs"
    warmup = f"{settings.warmup_epochs:g} epochs" if settings.warmup_steps is None else f"{settings.warmup_steps:,} steps"
    if training.step.schedule.warmup_steps >= training.step.schedule.skipped_steps + steps:
        progress.say(
            f"{staging.ref}: the learning rate rises for {warmup}, at least as long as the training, "
            f"so it never reaches `learning_rate`; set fewer `{words[0]}`, or more `{words[1]}`"
        )
    with staging.refusable(lambda _: training.is_begun), worker_failures(), memory_failures():
        training.run(run, progress, since, trackers)
    if sign is not None:
        sign.check(staging.ref)
        seal(staging, settings, training, machine, reviewed)
    state.wait_for_everyone()

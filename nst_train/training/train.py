"""Training a teacher or a student: preparation, the loop over the steps, and the seal (Algorithm 1, steps 1 and 3)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError, UsageError
from nst_data.freed_memory import keep_freed_memory
from nst_data.progress import Progress, terminal_progress
from nst_data.reuse import reuse
from nst_data.self_contained.remote import StreamedEdition
from nst_data.sources import Source
from nst_data.store.ownership import Sign
from nst_data.store.store import Number, Staging, Store, Version
from nst_train.batches.batches import translate_worker_errors
from nst_train.device import DEFAULT_THREADS, broadcast_text, resolve_precision, set_threads, this_process, translate_memory_errors
from nst_train.networks.models import check_model_and_optimizer
from nst_train.settings import RunSettings, TrainSettings
from nst_train.teacher_names import pin_version
from nst_train.training.loop import Training
from nst_train.training.material import TrainingData
from nst_train.training.probing import fit_probe
from nst_train.training.readable import check_unchanged
from nst_train.training.request import build_request, find_or_stage
from nst_train.training.seal import seal
from nst_train.training.trackers import resolve_trackers


@with_checked_arguments
def train(
    store: Store,
    name: str,
    labeled: Source | None,
    settings: TrainSettings,
    *,
    pseudo: Version | StreamedEdition | str | None = None,
    pool: Source | None = None,
    reviews: Version | str | None = None,
    exclude: Sequence[Source] = (),
    validation: Source | None = None,
    generation: int | None = None,
    run: RunSettings | None = None,
    progress: Progress | None = None,
) -> Version:
    """Train a network on labeled images and, with `pseudo`, on pseudo-labeled ones too (Algorithm 1, steps 1 and 3).

    The averaged weights are sealed as a teacher. If the same call has already finished, its teacher is returned; a killed run resumes from
    its last checkpoint and, on the CPU, ends with the same weights.

    Args:
        store: The store that holds the teacher and the versions it is made from.
        name: The teacher's name; each training of it is a new generation.
        labeled: Images with their labels, `open_source(..., labeled=True)`. None trains a student on `pseudo` only, with the classes of
            `pseudo`. A step then has `batch_size` times `ratio` images, and an epoch uses each entry of the edition once.
        settings: Settings that determine the network; the defaults are the paper's. Epochs and batch size count labeled images. With
            `probe` the network is frozen and only its last layer is fitted.
        pseudo: Pseudo-labeled images: an edition from `balance` or `label_like`, or its `name@gen-N.K`. An edition on the Hub may be
            streamed, which gives the same training as pulling it first.
        pool: The images of the edition, if they have moved since labeling. Not accepted for an edition that contains its images.
        reviews: Human answers, `name@review-N`: they override the labels of `labeled`, pool images that were given a class are added, and
            excluded images are dropped. The edition must have been drawn with the same review.
        exclude: Sources whose images, such as test images, must not be trained on even if somebody answered about them; an edition knows
            the ones that it was drawn without.
        validation: Labeled images of the same classes. The weights that score best on them are kept, instead of the last ones.
        generation: Use this generation number, from 0, instead of the next free one.
        run: How the training runs; changes no result.
        progress: How progress is shown; by default as lines on standard error.

    Returns:
        The sealed teacher; `manifest.counts` has its number of parameters and steps.

    Raises:
        UsageError: A source was opened without labels, or the arguments do not go together.
        NstError: The settings do not suit the data or the network, found before any work starts; or the loss is not finite.
        KeyboardInterrupt: A signal asked to stop, and a checkpoint was written. Its `status` is the exit status of a command, such as 130.
    """
    run, progress = run or RunSettings(), progress or terminal_progress()
    edition = pseudo if pseudo is None or isinstance(pseudo, StreamedEdition) else store.open(pseudo, "edition")
    reviews = None if reviews is None else store.open(reviews, "review")
    data = TrainingData(labeled, edition, pool, reviews, exclude, validation)
    data.check(progress)
    if labeled is None:
        settings = _pseudo_only_settings(settings, data)
    check_model_and_optimizer(settings)
    trackers = resolve_trackers(run.tracker)
    settings, data = _drop_unused(settings, data, store)
    with this_process().main_process_first():
        request, number = build_request(store, settings, data), None if generation is None else Number(generation)
        status = reuse(store, request, name, number, progress, lambda reused: check_unchanged(reused, data.labeled_sources, progress))
        staging = find_or_stage(store, request, name, generation)
        for line in [] if isinstance(staging, Version) else store.other_unfinished(staging):
            progress.say(line)
        check_unchanged(staging, data.labeled_sources, progress)
    if isinstance(staging, Version):
        progress.say(f"{staging.ref} {status}: same images, labels and settings")
        return staging
    with _claim_training(staging, progress) as sign:
        _train(store, staging, sign, settings, data, run, progress, trackers)
    return staging.version


def _pseudo_only_settings(settings: TrainSettings, data: TrainingData) -> TrainSettings:
    """The settings of a training without labeled images. Raises UsageError for options that need some."""
    reviews = data.reviews
    needed_for = {
        "a teacher, which has no pseudo-labels (`pseudo`),": data.edition is None,
        f"`reviews` {reviews.ref if reviews else ''}": reviews is not None,
        "`probe`": settings.probe,
        "`class_weights`": settings.class_weights is not None,
    }
    if unmet_option := next((option for option, is_requested in needed_for.items() if is_requested), None):
        raise UsageError(f"`labeled` is missing: {unmet_option} needs labeled images")
    return settings.for_pseudo_only()


def _drop_unused(settings: TrainSettings, data: TrainingData, store: Store) -> tuple[TrainSettings, TrainingData]:
    """Drop what has no effect, so that runs with and without it are the same training. Raises UsageError for a probe on pseudo-labels."""
    if settings.probe:
        if data.edition is not None:
            raise UsageError("`probe` trains on labeled images only; remove it, or `pseudo`")
        settings, data = settings.for_probe(), replace(data, validation=None)  # which would have no effect
    if data.edition is None:
        settings = settings.for_labeled_only()
    if data.validation is None:
        settings = settings.without_validation()
    if settings.start:  # pin the version, because a newer one may appear
        settings = settings.model_copy(update={"start": pin_version(settings.start, store)})
    return settings, data


@contextmanager
def _claim_training(staging: Staging, progress: Progress) -> Iterator[Sign | None]:
    """Own the training for all of its processes, through the main one. Raises NstError in all of them if others are training it."""
    with ExitStack() as stack:
        sign, refused = None, ""
        if this_process().is_main_process:
            try:
                sign = stack.enter_context(staging.hold_ownership(progress.say))
            except NstError as error:
                refused = str(error)
        if refused := broadcast_text(refused):
            raise NstError(refused)
        yield sign


def _train(
    store: Store,
    staging: Staging,
    sign: Sign | None,
    settings: TrainSettings,
    data: TrainingData,
    run: RunSettings,
    progress: Progress,
    trackers: list[str],
) -> None:
    """Train the remaining steps, and seal. `sign` belongs to the main process."""
    since, machine = time.monotonic(), _resolve_machine(staging, settings)
    settings = settings.model_copy(update={"precision": machine["precision"]})
    with staging.discard_on_error():
        data, reviewed = data.with_pool(store).with_answers(store, staging, progress)
    if settings.probe:
        assert data.labeled is not None, "refused"
        with staging.discard_on_error():
            if sign is not None:
                fit_probe(store, staging, settings, data.labeled, run, progress, machine, since, reviewed)
        this_process().wait_for_everyone()
        return
    set_threads(machine["threads"])
    with staging.discard_on_error():
        training = Training.prepare(store, staging, settings, data, run, progress)
    training.sign = sign
    training.report_size(progress)
    with (
        staging.discard_on_error(lambda _: training.has_started),
        translate_worker_errors(),
        translate_memory_errors(),
        keep_freed_memory(),
    ):
        training.run(run, progress, since, trackers)
    if sign is not None:
        sign.check(staging.ref)
        seal(staging, settings, training, machine, reviewed)
    this_process().wait_for_everyone()


def _resolve_machine(staging: Staging, settings: TrainSettings) -> dict[str, Any]:
    """How the process that started this training computes it. Raises NstError like `check_device`."""
    device = this_process().device
    chosen = {"device": device.type, "precision": resolve_precision(settings.precision, device)}
    machine = staging.get_or_store("machine", {"threads": settings.compute_threads or DEFAULT_THREADS, **chosen})
    check_device(staging.ref, machine, device.type)
    return machine


def check_device(ref: str, machine: Mapping[str, Any], device_type: str) -> None:
    """Raises NstError if the training was started on another kind of device than this process uses."""
    if machine["device"] != device_type:
        raise NstError(
            f"{ref} was started on {machine['device']}, this process uses {device_type}; resume it where it was started, "
            f"or `store.remove({ref!r})` first"
        )

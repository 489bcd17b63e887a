"""Accuracy of a classifier on labeled images, with its own clean transform, and the results of suites in a teacher's metrics.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nst_data.arguments import with_checked_arguments
from nst_data.cards import cards
from nst_data.cards.described import Described
from nst_data.errors import UsageError
from nst_data.progress import Progress, terminal_progress
from nst_data.sources import Source, labels_in, open_source
from nst_data.store.files import is_writable
from nst_data.store.metrics import Metrics, Result
from nst_data.store.ownership import hold_ownership, ownership_path
from nst_data.store.places import METRICS_NAME
from nst_data.store.store import Store, Version, check_name
from nst_train.classifiers.inference import Computation, plain_batches, predict
from nst_train.classifiers.teachers import Teacher, load_classifier
from nst_train.device import broadcast_text, this_process
from nst_train.evaluation.accuracy import Accuracy
from nst_train.evaluation.measuring import Measurement, Suite, SuiteRunner
from nst_train.evaluation.metrics import Score
from nst_train.evaluation.outcomes import OUTCOME, compute_outcomes
from nst_train.evaluation.plots import write_plots
from nst_train.evaluation.suites import open_suite
from nst_train.evaluation.trials import Candidate
from nst_train.evaluation_settings import CLEAN, EvaluateSettings, result_name
from nst_train.settings import ReadSettings
from nst_train.teacher_names import TeacherName, is_in_store, pin_version
from nst_train.zero_shot_settings import ZeroShot

_NOT_RECORDED = ("classes", "confusions")  # measured, but not recorded


@with_checked_arguments
def evaluate(
    store: Store,
    model: Version | str | ZeroShot,
    data: Source | str | Path,
    settings: EvaluateSettings | None = None,
    *,
    record: str | None = None,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure accuracy, calibration and robustness of a model on labeled images. Resumes where it stopped when called again.

    Args:
        store: The store with the teacher, which also caches outcomes.
        model: A teacher of the store or its `name@gen-N`, `hf-hub:OWNER/NAME`, OWNER/NAME of transformers, `local-dir:FOLDER` or a timm
            name; or `ZeroShot(...)`, an image-text model with class names.
        data: Labeled images or their location. Classes are matched by name and may be a subset of the model's. For a published suite,
            its folder.
        settings: What to measure; by default accuracy on the clean images.
        record: Record the result under this name, such as `test`, in the teacher's metrics.json and card.
        run: How images are read; does not affect results.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        `top1` and, with more than five classes, `top5` as fractions; `nll` in nats; `ece`; `images` scored and `errors` that could not be
        read. The metrics of each suite other than `clean` are next to them, under its name.

    Raises:
        UsageError: There is no such model, or `data` was opened without labels or does not fit the suite.
        NstError: The model has other classes, or no image can be read.
    """
    name = store.open(model, "teacher").ref if isinstance(model, Version) else model
    measured = measure_all(store, [name], data, settings or EvaluateSettings(), record=record, run=run, progress=progress)
    (by_suite,) = metrics_by_model(measured).values()
    return by_suite


def measure_all(
    store: Store,
    models: Sequence[TeacherName],
    data: Source | str | Path,
    settings: EvaluateSettings,
    *,
    record: str | None = None,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, Measurement]]:
    """What `evaluate` measures, and the values of each image, by suite and by model (a teacher of the store with its version)."""
    runner = SuiteRunner(outcome_cache_folder(store), run or ReadSettings(), progress or terminal_progress())
    names = list(dict.fromkeys(pin_version(model, store) for model in models))
    if record is not None:
        _check_recordable(store, names, record, settings.suite)
    if settings.is_published:
        if isinstance(data, Source):
            raise UsageError(f"{data.location}: expected the folder of {settings.suite[0]} as it was published, found a source")
        data = Path(data)
    else:
        data = data if isinstance(data, Source) else open_source(data, labeled=True)
        labels_in(data)
        for line in data.remarks():
            runner.progress.say_once(line)
    reference = load_candidate(pin_version(settings.relative_to, store), store) if settings.relative_to else None
    suites = [open_suite(name, data, settings, reference) for name in settings.suite]
    if not is_writable(outcome_cache_folder(store)):
        runner.progress.say(f"{outcome_cache_folder(store)} cannot be written to: results are not cached for the next run")
    measured: dict[str, dict[str, Measurement]] = {suite.name: {} for suite in suites}
    for model in names:
        candidate = load_candidate(model, store)
        for suite in suites:
            measured[suite.name][str(model)] = suite.measure(candidate, runner)
    for suite in suites if record is not None else []:
        for name, measurement in measured[suite.name].items():
            record_result(store.open(name, "teacher"), suite, result_name(str(record), suite.name), measurement.result)
    return measured


def _check_recordable(store: Store, models: Sequence[TeacherName], name: str, suites: Sequence[str]) -> None:
    """Raises UsageError if results cannot be recorded under this name, or if two would be."""
    check_name(name)
    if len({result_name(name, suite) for suite in suites}) < len(suites):
        raise UsageError(
            f"`record` {name}: the results of {CLEAN} and of {name} would both be recorded under this name, and one of them be lost; "
            "choose another name, such as test"
        )
    for model in models:
        if isinstance(model, ZeroShot) or not is_in_store(model, store):
            raise UsageError(f"`record`: {model} is not a teacher in the store, so results cannot be recorded for it; remove `record`")
        if not all(map(is_writable, ((folder := store.open(model, "teacher").folder), folder.parent))):
            raise UsageError(f"`record`: {folder} is not writable; remove `record`, or make the store writable")


def metrics_by_model(measured: Mapping[str, Mapping[str, Measurement]]) -> dict[str, dict[str, Any]]:
    """For each model the metrics of `clean`, and next to them those of each other suite under its name."""
    results: dict[str, dict[str, Any]] = {}
    for suite, models in measured.items():
        for model, measurement in models.items():
            results.setdefault(model, {}).update(measurement.result if suite == CLEAN else {suite: measurement.result})
    return results


def score(
    teacher: Teacher,
    computation: Computation,
    source: Source,
    rows: range,
    columns: NDArray[np.int64],
    threads: int | None = None,
) -> Score:
    """Score a teacher on some rows of a source, whose class i is the teacher's class columns[i]."""
    truth, outcomes = labels_in(source), [np.empty(0, OUTCOME)]
    batches = plain_batches(source, computation.batch_size, rows)
    for batch, prediction in predict(teacher, computation, batches, hashes=False, threads=threads):
        readable = prediction.images.readable
        labels = columns[truth[np.array([batch.rows[position].id for position in readable], dtype=np.int64)]]
        outcomes.append(compute_outcomes(prediction.log_probs, torch.from_numpy(labels), readable, len(batch.rows)))
    return Score.from_outcomes(np.concatenate(outcomes))


def outcome_cache_folder(store: Store) -> Path:
    """The folder of a store where outcomes are cached, by the digest of all that they depend on. It may be deleted at any time."""
    return store.root / "evaluations"


def load_candidate(name: TeacherName, store: Store) -> Candidate:
    """Load a classifier by name, with exactly the transform of its own code. See `teachers.load_classifier`."""
    classifier, entry = load_classifier(name, store, exact=True)
    return Candidate(str(name), classifier, entry.digest)


def measure_and_record(
    store: Store,
    teacher: Version,
    data: Source | Suite,
    name: str,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a teacher of the store and record the result as `name` in its metrics.json and card, once for each suite on its data.

    A labeled source stands for the suite `clean` on it.
    """
    suite = Accuracy(CLEAN, data) if isinstance(data, Source) else data
    previous = recorded_result(teacher, name)
    kind = "modified" if previous and "modified" in previous else "stamp"  # as recorded by earlier versions of nst
    stamp = _source_stamp(suite, kind)
    this_process().wait_for_everyone()  # all look before one writes: otherwise one might wait for a process that has already returned
    if previous and previous["fingerprint"] == suite.identity and previous.get(kind, stamp) == stamp:
        return previous
    runner = SuiteRunner(outcome_cache_folder(store), run or ReadSettings(), progress or Progress())
    return record_result(teacher, suite, name, suite.measure(load_candidate(teacher.ref, store), runner).result, progress)


def recorded_result(teacher: Version, name: str) -> dict[str, Any]:
    """The result in a teacher's metrics.json under a name, or an empty dict."""
    result = Metrics.read(teacher.local_folder).root.get(name)
    return result.model_dump() if result else {}


def _is_generated_file(path: Path) -> bool:
    """Whether a file next to a teacher is its metrics, card or a plot."""
    return path.name in (METRICS_NAME, "README.md") or path.suffix == ".png"


def _source_stamp(suite: Suite, kind: str = "stamp") -> str:
    """The stamp of a suite's source, from file times: if images change without changing in size, it is measured again."""
    source = getattr(suite, "source", None)
    return broadcast_text(getattr(source, kind)) if isinstance(source, Source) else ""


def record_result(teacher: Version, suite: Suite, name: str, result: dict[str, Any], progress: Progress | None = None) -> dict[str, Any]:
    """Record a result as `name` in a teacher's metrics.json, card and plots; only the main process writes."""
    state, stamp = this_process(), _source_stamp(suite)
    if state.is_main_process:
        shown = {key: value for key, value in result.items() if key not in _NOT_RECORDED}
        kind = {} if suite.name == CLEAN else {"suite": suite.name}
        with hold_ownership(
            ownership_path(teacher.folder), teacher.ref, wait=True
        ):  # two that record at once do not lose each other's results
            teacher.refresh()
            metrics, times = Metrics.read(teacher.folder), {"stamp": stamp} if stamp else {}
            source = getattr(suite, "source", None)
            part = source.lineage.part if isinstance(source, Source) else None
            origin = {"source": suite.location + (f" ({part})" if part else ""), "fingerprint": suite.identity}
            metrics.root[name] = Result.model_validate(kind | shown | origin | times)
            metrics.write(teacher.folder)
            write_plots(teacher.folder, suite.name, {teacher.ref: result}, name)
            card = cards.write_model_card(Described.from_version(teacher))
            teacher.publish_unsealed(*(path.name for path in teacher.local_folder.iterdir() if _is_generated_file(path)))
        if card.problem and progress:
            progress.say(f"{teacher.folder / 'README.md'}: {card.problem}")
    state.wait_for_everyone()
    return recorded_result(teacher, name)

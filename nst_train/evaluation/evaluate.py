"""Accuracy of a classifier on labeled images, with its own clean transform, and what a teacher's metrics.json keeps of any suite."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nst_data.cards import cards
from nst_data.cards.described import Described
from nst_data.progress import Progress
from nst_data.sources import Source
from nst_data.store.metrics import Metrics, Result
from nst_data.store.ownership import beside, owned
from nst_data.store.store import Store, Version
from nst_train.classifiers.inference import Computation, batches_of, predict
from nst_train.classifiers.teachers import Classifier, Teacher, load_classifier
from nst_train.device import agreed_text, this_process
from nst_train.evaluation.accuracy import Accuracy
from nst_train.evaluation.measuring import Effort, Suite
from nst_train.evaluation.metrics import Score
from nst_train.evaluation.outcomes import OUTCOME, outcomes_of
from nst_train.evaluation.plots import write_plots
from nst_train.evaluation.trials import Candidate
from nst_train.evaluation_settings import CLEAN
from nst_train.settings import ReadSettings

_IN_FULL_ONLY = ("classes", "confusions")  # what `nst evaluate --json` has beside what is recorded


def evaluate(classifier: Classifier, source: Source, run: ReadSettings | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """`top1` and, above five classes, `top5` as fractions; `nll` in nats; `ece`; `images` scored and `errors` that could not be read.

    The source's classes are matched by name and may be some of the classifier's. Raises NstError for others, and where no image could
    be read.
    """
    effort = Effort(run=run or ReadSettings(), progress=progress or Progress())
    result = Accuracy(CLEAN, source).measure(Candidate("", classifier, ""), effort).result
    return {name: value for name, value in result.items() if not isinstance(value, list | dict)}


def score(
    teacher: Teacher,
    computation: Computation,
    source: Source,
    rows: range,
    columns: NDArray[np.int64],
    threads: int | None = None,
) -> Score:
    """Count what the teacher gets right on some rows of a source whose class i is its class columns[i]."""
    assert source.labels is not None, "scores need labels"
    found = [np.empty(0, OUTCOME)]
    batches = batches_of(source, computation.batch_size, rows)
    for batch, prediction in predict(teacher, computation, batches, hashes=False, threads=threads):
        readable = prediction.images.readable
        labels = columns[source.labels[np.array([batch.rows[position].id for position in readable], dtype=np.int64)]]
        found.append(outcomes_of(prediction.log_probs, torch.from_numpy(labels), readable, len(batch.rows)))
    return Score.of(np.concatenate(found))


def kept_outcomes(store: Store) -> Path:
    """The folder of a store where outcomes are kept, by the digest of what they follow from. It may be deleted at any time."""
    return store.root / "evaluations"


def load_candidate(name: str, store: Store) -> Candidate:
    """A classifier by name, with the transform of its own code, exactly. See `teachers.load_classifier`."""
    classifier, entry = load_classifier(name, store, exact=True)
    return Candidate(name, classifier, entry.digest)


def measure(
    store: Store,
    teacher: Version,
    data: Source | Suite,
    name: str,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a teacher of the store and keep the result as `name` in its metrics.json and card; done once for each suite on its data.

    A labeled source stands for the suite `clean` on it.
    """
    suite = Accuracy(CLEAN, data) if isinstance(data, Source) else data
    known = recorded(teacher, name)
    kind = "modified" if known and "modified" in known else "stamp"  # as an earlier nst kept it
    stamp = _stamp(suite, kind)
    this_process().wait_for_everyone()  # all have looked before one writes: else one might wait for a process that has already gone on
    if known and known["fingerprint"] == suite.identity and known.get(kind, stamp) == stamp:
        return known
    effort = Effort(kept_outcomes(store), run or ReadSettings(), progress or Progress())
    return record(teacher, suite, name, suite.measure(load_candidate(teacher.ref, store), effort).result, progress)


def recorded(teacher: Version, name: str) -> dict[str, Any]:
    """What stands in a teacher's metrics.json under a name; empty where nothing does."""
    result = Metrics.read(teacher.folder).root.get(name)
    return result.model_dump() if result else {}


def _stamp(suite: Suite, kind: str = "stamp") -> str:
    """The stamp of a suite with one source, of its files' times: one whose images changed at their size is measured again."""
    source = getattr(suite, "source", None)
    return agreed_text(getattr(source, kind)) if isinstance(source, Source) else ""


def record(teacher: Version, suite: Suite, name: str, result: dict[str, Any], progress: Progress | None = None) -> dict[str, Any]:
    """Keep what was measured as `name` in a teacher's metrics.json, card and pictures; of several processes the first writes."""
    state, stamp = this_process(), _stamp(suite)
    if state.is_main_process:
        shown = {key: value for key, value in result.items() if key not in _IN_FULL_ONLY}
        kind = {} if suite.name == CLEAN else {"suite": suite.name}
        with owned(beside(teacher.folder), teacher.ref, wait=True):  # of two that record at once none loses what the other wrote
            metrics, times = Metrics.read(teacher.folder), {"stamp": stamp} if stamp else {}
            about = {"source": suite.location, "fingerprint": suite.identity}
            metrics.root[name] = Result.model_validate(kind | shown | about | times)
            metrics.write(teacher.folder)
            write_plots(teacher.folder, suite.name, {teacher.ref: result}, name)
            own = cards.write_model_card(Described.of(teacher))
        if own.problem and progress:
            progress.say(f"{teacher.folder / 'README.md'}: {own.problem}")
    state.wait_for_everyone()
    return recorded(teacher, name)

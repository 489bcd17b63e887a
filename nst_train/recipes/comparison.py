"""How the newest student of a recipe compares with its other networks on the test images."""

from collections.abc import Sequence
from dataclasses import replace

from nst_data.progress import Progress
from nst_data.sources import Source
from nst_data.store.store import Store
from nst_train.evaluation.accuracy import Accuracy
from nst_train.evaluation.chance import paired_bootstrap
from nst_train.evaluation.evaluate import load_candidate, outcome_cache_folder
from nst_train.evaluation.measuring import SuiteRunner
from nst_train.evaluation_settings import CLEAN
from nst_train.recipes.finished_run import Generation
from nst_train.settings import RunSettings


def compare_with_newest(
    generations: Sequence[Generation], test: Source | None, store: Store, run: RunSettings, progress: Progress
) -> list[Generation]:
    """The generations with `to_newest`: the difference in top-1 to the newest student, over the same images (paired bootstrap).

    Every network was measured before, and the outcomes that the store keeps are used. Without test images nothing changes.
    """
    if test is None:
        return list(generations)
    newest = next(generation for generation in reversed(generations) if generation.edition is not None)
    suite, effort = Accuracy(CLEAN, test), SuiteRunner(outcome_cache_folder(store), run, progress)
    outcomes = [suite.measure(load_candidate(generation.teacher.ref, store), effort).by_image["top1"] for generation in generations]
    newest_outcome = outcomes[generations.index(newest)]
    return [
        generation if generation is newest else replace(generation, to_newest=paired_bootstrap(outcome, newest_outcome))
        for generation, outcome in zip(generations, outcomes, strict=True)
    ]

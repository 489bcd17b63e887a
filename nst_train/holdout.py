"""Held-out images among processes that run together, and models that may have seen them."""

from collections.abc import Iterable

from nst_data.progress import Progress
from nst_data.selection.holdout import hold_out, kept_holdouts
from nst_data.sources import Source
from nst_data.store.store import Store
from nst_train.device import this_process
from nst_train.teacher_names import is_in_store


def held_out_together(
    labeled: Source, share: float, seed: int, store: Store, progress: Progress, writes: bool = True
) -> tuple[Source, Source]:
    """(images that stay labeled, held-out images), as `hold_out`; processes that run together read the images once."""
    with this_process().main_process_first():
        return hold_out(labeled, share=share, seed=seed, kept=kept_holdouts(store), writes=writes, progress=progress)


def say_leaks(models: Iterable[str], store: Store, labeled: Source, progress: Progress) -> None:
    """Say which models of the store were trained on other labeled images than those that stay after a holdout: perhaps on held-out ones."""
    for name in [one for one in dict.fromkeys(models) if is_in_store(one, store)]:
        inputs = store.open(name, "teacher").manifest.request.inputs.by_role
        if "labeled" in inputs and inputs["labeled"].digest != labeled.fingerprint:
            progress.say(
                f"warning: {name} was not trained on just the labeled images that are not held out; it may have seen held-out ones, "
                "whose score is then too high"
            )

"""A classifier's outcome for each image under each condition, and the cache of outcomes.

Work is split into chunks of whole batches; each is written atomically once it is done. Processes share the chunks, and chunks that exist
are not computed again: killed and run again, with any number of processes, the numbers are the same. Chunks with unreadable images are
computed again by the next run, in case the images have been repaired.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from nst_data.errors import NstError, first_line
from nst_data.store.files import atomic_write, is_writable, write_text
from nst_data.store.manifest import json_digest
from nst_train.device import broadcast_text, this_process

# one image under one condition: `label` is -1 if it could not be read, `nll` is in nats, and `top5` says whether the label is among
# the five most probable classes
OUTCOME = np.dtype([("label", "<i4"), ("predicted", "<i4"), ("confidence", "<f4"), ("nll", "<f4"), ("top5", "?")])
Outcomes = NDArray[np.void]  # of OUTCOME, shape (images,) or (conditions, images)
UNREADABLE = -1


def compute_outcomes(
    log_probs: Float[Tensor, "readable classes"],
    labels: Int[Tensor, " readable"],
    readable: list[int] | None = None,
    images: int | None = None,
) -> Outcomes:
    """The outcomes of a batch of `images`, of which those at positions `readable` could be read (by default all).

    Raises NstError like `check_finite`.
    """
    top = log_probs.max(dim=1)
    nll = -log_probs.gather(1, labels[:, None]).squeeze(1)
    check_finite(log_probs)
    outcomes = np.zeros(images or len(labels), OUTCOME)
    outcomes["label"] = UNREADABLE
    places = slice(None) if readable is None else readable
    ranked = log_probs.topk(min(5, log_probs.shape[1]), dim=1).indices == labels[:, None]
    columns = {"label": labels, "predicted": top.indices, "confidence": top.values.exp(), "nll": nll, "top5": ranked.any(dim=1)}
    for name, values in columns.items():
        outcomes[name][places] = values.numpy()
    return outcomes


def check_finite(log_probs: Float[Tensor, "images classes"]) -> None:
    """Raises NstError if the output for an image is not finite: accuracy over the others would not be that of the network."""
    unanswered = int(log_probs.isnan().any(dim=1).sum())
    if unanswered:
        raise NstError(
            f"expected probabilities, but the network's output is not finite for {unanswered} of {len(log_probs)} images in a batch: "
            "its weights are damaged, or it overflows on these images; retrain it"
        )


def is_correct(outcomes: Outcomes) -> NDArray[np.bool_]:
    """Whether the most probable class is the label; False for unreadable images."""
    correct: NDArray[np.bool_] = outcomes["predicted"] == outcomes["label"]
    return correct


def is_readable(outcomes: Outcomes) -> NDArray[np.bool_]:
    """Whether each image could be read."""
    readable: NDArray[np.bool_] = outcomes["label"] != UNREADABLE
    return readable


@dataclass(frozen=True)
class OutcomeCache:
    """The cache of the outcomes of one piece of work, which depend only on `identity`.

    Without a folder, or in a read-only store, outcomes are only kept in memory.
    """

    root: Path | None
    identity: dict[str, Any]

    @property
    def _folder(self) -> Path | None:
        return self.root / json_digest(self.identity)[:32] if self.root else None

    def collect(
        self,
        conditions: int,
        images: int,
        chunk_size: int,
        compute: Callable[[range], Outcomes],
        show_progress: Callable[[int], AbstractContextManager[Any]],
    ) -> Outcomes:
        """All outcomes, shape (conditions, images); `compute` computes ranges of rows that are not cached yet.

        `chunk_size` is a multiple of the batch size. Each process computes its share, and all processes get the whole. `show_progress` is
        entered with the number of rows that this process will compute, if there are any.
        """
        chunks = [range(start, min(start + chunk_size, images)) for start in range(0, images, chunk_size)]
        state = this_process()
        if self._folder is None:
            with show_progress(images):
                return np.concatenate([compute(rows) for rows in chunks], axis=1)
        missing = [rows for rows in chunks if not self._path(rows).exists() or not is_readable(self._read(rows, conditions)).all()]
        state.wait_for_everyone()  # all look before one writes, so that they divide the same chunks
        if not broadcast_text("kept" if is_writable(self._folder) else ""):  # each process then computes all missing chunks
            with show_progress(sum(map(len, missing))) if missing else nullcontext():
                computed = {rows: compute(rows) for rows in missing}
            return np.concatenate([computed[rows] if rows in computed else self._read(rows, conditions) for rows in chunks], axis=1)
        first, last = (len(missing) * (state.process_index + offset) // state.num_processes for offset in (0, 1))
        share = missing[first:last]  # consecutive, so that `compute` can continue reading where it stopped
        if share:
            with show_progress(sum(map(len, share))):
                for rows in share:
                    self._write(rows, compute(rows))
        state.wait_for_everyone()
        complete = np.empty((conditions, images), OUTCOME)
        for rows in chunks:
            complete[:, rows.start : rows.stop] = self._read(rows, conditions)
        return complete

    def _path(self, rows: range) -> Path:
        assert self._folder is not None
        return self._folder / f"{rows.start:010d}-{rows.stop:010d}.npy"

    def _write(self, rows: range, outcomes: Outcomes) -> None:
        path = self._path(rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = path.with_name("about.json")
        if not about.exists():
            write_text(about, json.dumps(self.identity, indent=2) + "\n")
        with atomic_write(path) as file:
            np.save(file, outcomes)

    def _read(self, rows: range, conditions: int) -> Outcomes:
        path = self._path(rows)
        problem = f"{path}: expected outcomes of {len(rows)} images, found {{}}; delete it and run the same command again"
        try:
            outcomes: Outcomes = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise NstError(problem.format(first_line(error))) from None
        if outcomes.dtype != OUTCOME or outcomes.shape != (conditions, len(rows)):
            raise NstError(problem.format(f"shape {outcomes.shape}"))
        return outcomes

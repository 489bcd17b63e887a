"""The logs of a training: `metrics.jsonl`, `summary.csv`, trackers, and a note for the live progress line.

A resumed training truncates its logs to the checkpoint and continues with the sums stored there: apart from the times, it writes the same
rows as a run that never stopped. The logs are outside the seal and name no file or machine.
"""

import csv
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nst_data.cards.curves import METRICS_LOG
from nst_data.store.files import write_text
from nst_train.device import all_reduce, this_process
from nst_train.training.schedule import Schedule
from nst_train.training.trackers import Trackers

SUMMARY = "summary.csv"
SUMMARY_COLUMNS = ("epoch", "step", "loss_labeled", "loss_pseudo", "learning_rate", "validation_top1", "seconds")
LOG_EVERY_STEPS = 20
_NOTE_EVERY_SECONDS = 5.0


class TrainingLog:
    """The log of a training in progress. Only the main process writes; a step counts as done once it is logged.

    `metrics.jsonl` has a row every 20 steps (means since the previous row) and one for each validation. `summary.csv` has a row at each
    validation, each end of an epoch (for epochs shorter than 20 steps, only if 20 steps have passed since the last row), and the last step.
    """

    def __init__(
        self,
        folder: Path,
        schedule: Schedule,
        images_per_step: int,
        start_step: int,
        notes: dict[str, Any],
        trackers: Trackers,
    ) -> None:
        self._metrics, self._summary = folder / METRICS_LOG, folder / SUMMARY
        self._schedule, self._images_per_step, self.trackers = schedule, images_per_step, trackers
        empty_sums = {
            "window": [0.0] * 3,
            "counts": [0, 0],
            "folded": start_step,
            "line": [0.0] * 4,
            "row": [0.0] * 4,
            "row_began": start_step,
        }
        sums = notes.get("log", empty_sums)
        self._window = torch.tensor(sums["window"])  # loss of both parts and number of finite steps, since the last fold
        self._counts, self._folded = list(sums["counts"]), int(sums["folded"])
        self._line, self._row, self._row_began = list(sums["line"]), list(sums["row"]), int(sums["row_began"])
        self._line_began, self._line_time = start_step, time.monotonic()
        self._noted = time.monotonic()
        self._scores: dict[str, Any] = {}
        self._top1: float | None = None
        self.note = ""
        if this_process().is_main_process:
            self._truncate_logs(start_step)

    def add(self, steps_done: int, labeled: Tensor, pseudo: Tensor) -> int | None:
        """Count the losses of step `steps_done` (counted from 1), each of shape (images of the part,).

        Return the first step whose loss is not finite, if this step checks for that: every 20 steps, alike in all processes.
        """
        sums = torch.stack([labeled.sum(), pseudo.sum()]).float()
        self._window = self._window.to(sums.device)
        self._window[:2] += sums
        self._window[2] += self._window[:2].isfinite().all()
        self._counts = [total + len(part) for total, part in zip(self._counts, (labeled, pseudo), strict=True)]
        if steps_done % LOG_EVERY_STEPS == 0 or steps_done == self._schedule.steps:
            if (bad_step := self.fold(steps_done)) is not None:
                return bad_step
            self._write_metrics(steps_done)
        elif time.monotonic() - self._noted > _NOTE_EVERY_SECONDS:
            self._update_note([total + increment for total, increment in zip(self._line, self._sums.tolist(), strict=False)], steps_done)
        return None

    def fold(self, steps_done: int) -> int | None:
        """Add the sums of all processes. Return the first step with a non-finite loss, or None. All processes must call it."""
        *sums, finite = all_reduce(self._sums, "sum").tolist()
        began, self._folded = self._folded, steps_done
        self._window.zero_()
        self._counts = [0, 0]
        if not all(map(math.isfinite, sums)):
            return began + int(finite / this_process().num_processes) + 1
        self._line = [total + increment for total, increment in zip(self._line, sums, strict=True)]
        self._row = [total + increment for total, increment in zip(self._row, sums, strict=True)]
        return None

    def log_validation(self, steps_done: int, scores: dict[str, Any]) -> None:
        """Log the scores of the averaged weights after step `steps_done`."""
        self._scores, self._top1 = scores, scores["top1"]
        values = {f"validation_{name}": scores[name] for name in ("top1", "nll")}
        self._append({"step": steps_done, "epoch": self._epoch(steps_done), **values})
        self.trackers.log({name.replace("_", "/", 1): value for name, value in values.items()}, steps_done)

    def is_row_due(self, steps_done: int) -> bool:
        """Whether the summary gets a row after step `steps_done`, apart from those of validations."""
        per_epoch = self._schedule.steps_per_epoch
        is_long_enough = per_epoch >= LOG_EVERY_STEPS or steps_done - self._row_began >= LOG_EVERY_STEPS
        return steps_done == self._schedule.steps or (self._schedule.ends_epoch(steps_done) and is_long_enough)

    def write_row(self, steps_done: int, seconds: float) -> int | None:
        """Write a summary row after `seconds` of training: means since the previous row. Returns what `fold` does; all must call it."""
        if (bad_step := self.fold(steps_done)) is not None:
            return bad_step
        loss_labeled, loss_pseudo = _mean_losses(self._row)
        top1 = self._scores.get("top1")
        row = (self._epoch(steps_done), steps_done, loss_labeled, loss_pseudo, self._learning_rate(steps_done), top1, round(seconds, 1))
        if this_process().is_main_process:
            with self._summary.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(["" if value is None else value for value in row])
        self._row, self._row_began, self._scores = [0.0] * 4, steps_done, {}
        return None

    @property
    def notes(self) -> dict[str, Any]:
        """What a checkpoint keeps of the log. With several processes, the steps since the last fold are those of the main process only."""
        since_fold = {"window": self._window.tolist(), "counts": self._counts, "folded": self._folded}
        return {**since_fold, "line": self._line, "row": self._row, "row_began": self._row_began}

    @property
    def is_finite(self) -> bool:
        """Whether all losses of this process since the last fold were finite."""
        return bool(self._window[:2].isfinite().all())

    @property
    def _sums(self) -> Tensor:
        """Loss and number of labeled images, the same for pseudo-labeled ones, and finite steps, in this process since the last fold."""
        labeled, pseudo, finite = self._window
        images, pseudo_images = (torch.tensor(float(count), device=self._window.device) for count in self._counts)
        return torch.stack([labeled, images, pseudo, pseudo_images, finite])

    def _write_metrics(self, steps_done: int) -> None:
        now = time.monotonic()
        rate = (steps_done - self._line_began) * self._images_per_step / max(now - self._line_time, 1e-9)
        loss_labeled, loss_pseudo = _mean_losses(self._line)
        values = {"learning_rate": self._learning_rate(steps_done), "loss_labeled": loss_labeled, "loss_pseudo": loss_pseudo}
        self._append({"step": steps_done, "epoch": self._epoch(steps_done), **values, "images_per_second": round(rate, 1)})
        logged = {name.replace("loss_", "loss/"): value for name, value in values.items() if value is not None}
        self.trackers.log(logged | {"images_per_second": rate, "epoch": self._epoch(steps_done)}, steps_done)
        self._update_note(self._line, steps_done)
        self._line, self._line_began, self._line_time = [0.0] * 4, steps_done, now

    def _update_note(self, sums: list[float], steps_done: int) -> None:
        losses = zip(("loss", "pseudo"), _mean_losses(sums), strict=True)
        shown = [f"{name} {value:.3f}" for name, value in losses if value is not None]
        top1 = [] if self._top1 is None else [f"validation {100 * self._top1:.1f}%"]
        self.note = ", ".join([*shown, f"lr {self._learning_rate(steps_done):.3g}", *top1])
        self._noted = time.monotonic()

    def _epoch(self, steps_done: int) -> float:
        return round(steps_done / self._schedule.steps_per_epoch, 4)

    def _learning_rate(self, steps_done: int) -> float:
        return self._schedule.learning_rate(steps_done - 1)

    def _append(self, row: dict[str, Any]) -> None:
        if this_process().is_main_process:
            with self._metrics.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def _truncate_logs(self, start_step: int) -> None:
        """Keep complete rows up to the checkpoint: a kill can truncate the last row, and later rows are written again."""
        complete = [line for line in _read_lines(self._metrics) if line.endswith("}\n") and json.loads(line)["step"] <= start_step]
        write_text(self._metrics, "".join(complete))
        rows = [line for line in _read_lines(self._summary)[1:] if line.endswith("\n") and int(line.split(",")[1]) <= start_step]
        header = io.StringIO()
        csv.writer(header, lineterminator="\n").writerow(SUMMARY_COLUMNS)
        write_text(self._summary, header.getvalue() + "".join(rows))


def _mean_losses(sums: list[float]) -> tuple[float | None, float | None]:
    """Mean loss of labeled and of pseudo-labeled images; None for a kind that has no images."""
    labeled, images, pseudo, pseudo_images = sums[:4]
    return labeled / images if images else None, pseudo / pseudo_images if pseudo_images else None


def _read_lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []

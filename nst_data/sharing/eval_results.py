"""A teacher's scores for the leaderboards of the Hub: `.eval_results/nst.yaml` in its repository.

The Hub accepts scores on datasets that are benchmarks, declared by an `eval.yaml` in the dataset with tasks by config and split
(https://huggingface.co/docs/hub/eval-results). `model-index` in the card has all measurements.
"""

from typing import Any

import yaml

from nst_data.cards.card_metadata import hub_dataset
from nst_data.errors import OTHER_YAML_ERRORS, NstError
from nst_data.hub.repository import Repository
from nst_data.store.metrics import Metrics

EVAL_RESULTS = ".eval_results/nst.yaml"


def eval_results(metrics: Metrics) -> str | None:
    """The text of the file, with accuracies on the clean images of benchmarks on the Hub; None if there are none."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries = []
    for result in metrics.root.values():
        dataset = hub_dataset(result)
        if dataset is None or result.top1 is None or result.partial:
            continue
        for task in _tasks(dataset.repo, dataset.revision or ""):
            if (task.get("config") or "default", task.get("split")) == (dataset.config or "default", dataset.split):
                notes = f"top-1 accuracy in percent on {result.images or 0:,} images, by nst evaluate"
                value, revision = round(100 * result.top1, 4), dataset.revision
                entries.append(EvalResultEntry(dataset.repo, task["id"], value, dataset_revision=revision, notes=notes))
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False) if entries else None


def _tasks(repo: str, commit: str) -> list[dict[str, Any]]:
    """The tasks of a benchmark; empty for any other dataset, or if its `eval.yaml` cannot be read now."""
    try:
        text = Repository.from_id(repo, "dataset").read_text("eval.yaml", commit)
        content = yaml.safe_load(text) if text else None
    except (NstError, yaml.YAMLError, *OTHER_YAML_ERRORS):
        return []
    tasks = content.get("tasks") if isinstance(content, dict) else None
    return [task for task in tasks or () if isinstance(task, dict) and isinstance(task.get("id"), str)] if isinstance(tasks, list) else []

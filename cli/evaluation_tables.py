"""What `nst evaluate` prints: models side by side, suite by suite."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nst_data.progress import escape_unprintable
from nst_train.evaluation_settings import CLEAN, CORRUPTED, EXTRA_CORRUPTED, FGSM, IMAGENET_C, IMAGENET_P, PGD

from .tables import NAME_WIDTH, Cell, join_names, print_table, print_wrapped

_WORST = 5
ByModel = Mapping[str, Mapping[str, Any]]


def print_results(results: Mapping[str, ByModel]) -> None:
    """Print a table for each suite; for a single model also its worst classes and most frequent mistakes."""
    for number, (suite, by_model) in enumerate(results.items()):
        if number:
            print()
        if suite in (CORRUPTED, EXTRA_CORRUPTED, IMAGENET_C):
            _print_corruptions(suite, by_model)
        elif suite in (FGSM, PGD):
            _print_attacks(suite, by_model)
        elif suite == IMAGENET_P:
            _print_flips(by_model)
        else:
            _print_accuracy(suite, by_model)
        for text in dict.fromkeys(_describe_partial(result["partial"]) for result in by_model.values() if result.get("partial")):
            print_wrapped(text)


def _describe_partial(left_out: Mapping[str, Any]) -> str:
    parts = []
    for name, value in left_out.items():
        parts.append(f"{name.replace('_', ' ')}: {join_names(value, 5) if isinstance(value, list) else value}")
    return f"partial, not to be compared with published numbers; {'; '.join(parts)}"


def print_comparisons(comparisons: list[dict[str, Any]]) -> None:
    """Print differences, their intervals, and whether they are significant."""
    if not comparisons:
        return
    print("\ndifferences in points, with 95% bootstrap intervals")
    rows = []
    for row in comparisons:
        metric = row["metric"].replace("_", " ").replace("top1", "top-1")
        interval = f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f}"
        verdict = "significant" if row["larger_than_chance"] else "not significant"
        measure = metric if row["suite"] == CLEAN else f"{row['suite']}: {metric}"
        rows.append([measure, f"{row['from']} to {row['to']}", f"{100 * row['mean']:+.2f}", interval, verdict])
    for models in dict.fromkeys(row[1] for row in rows):
        print(escape_unprintable(models))
        print_table(["metric", "points", "interval", ""], ([row[0], *row[2:]] for row in rows if row[1] == models))


def _print_accuracy(suite: str, by_model: ByModel) -> None:
    has_top5 = any("top5" in result for result in by_model.values())
    print(_title(suite, by_model))
    _print_models(
        ["top-1", *(["top-5"] if has_top5 else []), "NLL", "ECE", "images"],
        (
            [one["top1"], *([one.get("top5")] if has_top5 else []), f"{one['nll']:.4f}", f"{one['ece']:.4f}", one["images"]]
            for one in by_model.values()
        ),
        by_model,
    )
    if len(by_model) > 1:
        return
    result = next(iter(by_model.values()))
    mistaken = [(name, one) for name, one in result["classes"].items() if one["top1"] < 1]
    if worst := sorted(mistaken, key=lambda item: (item[1]["top1"], -item[1]["images"]))[:_WORST]:
        print("classes with the lowest accuracy")
        print_table(["class", "top-1", "images"], ([name, one["top1"], one["images"]] for name, one in worst))
    if result["confusions"]:
        print("most frequent mistakes")
        rows = ([one["truth"], one["predicted"], one["images"]] for one in result["confusions"][:_WORST])
        print_table(["truth", "predicted", "images"], rows, names=2)


def _print_corruptions(suite: str, by_model: ByModel) -> None:
    first = next(iter(by_model.values()))
    relative = "ce" in first
    print(
        f"{_title(suite, by_model)}: "
        + (f"error relative to {escape_unprintable(first['relative_to'])}'s, in %" if relative else "error, in %")
    )
    if "mce_missing" in first:
        print_wrapped(f"no mCE: {escape_unprintable(first['mce_missing'])}")
    names = list(first["error"])
    columns = [
        [result["ce"][name] if relative else sum(result["error"][name]) / len(result["error"][name]) for name in names]
        for result in by_model.values()
    ]
    means = [result["mce" if relative else "mean_error"] for result in by_model.values()]
    rows = [[name.replace("_", " "), *(f"{100 * column[place]:.1f}" for column in columns)] for place, name in enumerate(names)]
    _print_wide(["corruption", *by_model], [*rows, ["mCE" if relative else "mean error", *(f"{100 * mean:.1f}" for mean in means)]])
    print("top-1 by severity")
    severities = ["1", "2", "3", "4", "5"]
    by_severity = (
        [1 - sum(result["error"][name][place] for name in names) / len(names) for place in range(5)] for result in by_model.values()
    )
    _print_models(severities, by_severity, by_model)


def _print_attacks(suite: str, by_model: ByModel) -> None:
    print(f"{_title(suite, by_model)}: top-1 by epsilon")
    points = next(iter(by_model.values()))["by_epsilon"]
    header = [f"{255 * point['epsilon']:.3g}/255" if point["epsilon"] else "0" for point in points]
    _print_models(header, ([point["top1"] for point in result["by_epsilon"]] for result in by_model.values()), by_model)


def _print_flips(by_model: ByModel) -> None:
    first = next(iter(by_model.values()))
    lost = f", {first['errors']:,} left out that cannot be read whole" if first["errors"] else ""
    print(f"imagenet-p, {first['sequences']:,} sequences{lost}: flip rate relative to AlexNet's, in %")
    names = first["fr"]
    rows = [[name.replace("_", " "), *(f"{100 * result['fr'][name]:.1f}" for result in by_model.values())] for name in names]
    means = [["mFR", *(f"{100 * result['mfr']:.1f}" for result in by_model.values())]]
    accuracy = [["top-1 of all frames", *(f"{100 * result['top1']:.1f}" for result in by_model.values())]]
    _print_wide(["perturbation", *by_model], [*rows, *means, *accuracy])


def _print_models(header: list[str], rows: Iterable[Sequence[Cell]], models: Iterable[str]) -> None:
    """Print a row for each model; models are numbered if a name would be cut, since two might then look the same."""
    models = list(models)
    names = _print_numbered(models) if max(map(len, map(escape_unprintable, models))) > NAME_WIDTH else models
    print_table(["model", *header], ([name, *row] for name, row in zip(names, rows, strict=True)))


def _print_wide(header: list[str], rows: list[list[str]]) -> None:
    """Print a column for each model; models are numbered if their names do not fit."""
    if sum(map(len, header[1:])) > 50:
        header = [header[0], *_print_numbered(header[1:])]
    print_table([header[0], *map(escape_unprintable, header[1:])], rows)


def _print_numbered(models: Iterable[str]) -> list[str]:
    """Print which model has which number, and return the numbers."""
    numbers = []
    for number, model in enumerate(models, start=1):
        print(f"  ({number}) {escape_unprintable(model)}")
        numbers.append(f"({number})")
    return numbers


def _title(suite: str, by_model: ByModel) -> str:
    first = next(iter(by_model.values()))
    unread = f", {first['errors']:,} could not be read" if first["errors"] else ""
    return f"{'clean images' if suite == CLEAN else suite}, {first['images']:,} image{'s' * (first['images'] != 1)}{unread}"

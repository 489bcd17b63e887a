"""`nst diff`: what changed between two versions of the labels."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from .options import JsonOption, StoreOption, open_store, print_json
from .tables import print_table

_WORST = 10
_HELP = "A generation or an edition: name@gen-N or name@gen-N.K; a name alone means its newest version."


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help=_HELP)],
    after: Annotated[str, typer.Argument(metavar="B", help="The version to compare with.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Compare the labels of two versions: images added and removed, labels changed, from what to what."""
    from nst_data.inspection.churn import diff as changes

    opened_store = open_store(store)
    first, second = opened_store.open(before, "generation", "edition"), opened_store.open(after, "generation", "edition")
    churn = {"before": first.ref, "after": second.ref} | asdict(changes(opened_store, first, second))
    if json:
        print_json(churn)
    else:
        _print(churn)


def _print(churn: dict[str, Any]) -> None:
    before, after, in_both = churn["before"], churn["after"], churn["both"]
    print(f"{before} to {after}")
    print(f"  images      {in_both:,} in both, {churn['only_before']:,} only in {before}, {churn['only_after']:,} only in {after}")
    if not in_both:
        return
    print(f"  labels      {churn['changed']:,} of the {in_both:,} in both changed ({100 * churn['changed'] / in_both:.2f}%)")
    if churn["mean_confidence_change"] is not None:
        print(f"  confidence  changed by {churn['mean_confidence_change']:.4f} on average, up or down")
    if churn["copies_changed"] is not None:
        print(f"  copies      changed for {churn['copies_changed']:,} of the {in_both:,} in both")
    if not churn["changed"]:
        return
    print("most frequent changes")
    print_table(["from", "to", "images"], ([*row.values()] for row in churn["changes"]), names=2)
    classes, bins = churn["by_class"], [row for row in churn["by_confidence"] if row["images"]]
    print(
        f"labels of {before} that changed, by class"
        + (f" ({_WORST} of {len(classes):,}, --json shows all)" if len(classes) > _WORST else "")
    )
    print_table(["class", "images", "changed", "share"], ([*row.values()] for row in classes[:_WORST]))
    print(f"labels of {before} that changed, by confidence")
    rows = ([f"{row['low']:.1f} to {row['high']:.1f}", row["images"], row["changed"], row["share"]] for row in bins)
    print_table(["confidence", "images", "changed", "share"], rows)

"""`nst review freeze`, `nst review import` and `nst review export`: reviewers' answers about images."""

from typing import Annotated

import typer

from .messages import cli_progress
from .options import ClassNamesOption, JsonOption, StoreOption, open_store, print_json


def review() -> None:
    """Reviewers' answers: freeze them as a version, import or export them."""


def freeze(
    corpus: Annotated[str, typer.Argument(metavar="CORPUS", help="Corpus of the answers.")],
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Leave the reviewers' names out.")] = False,
    class_names: ClassNamesOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Seal all answers so far as CORPUS@review-N. Refused while reviewers disagree about an image, which is named."""
    from nst_data.review.freeze import freeze as freeze_answers
    from nst_data.sources.labels import read_class_names
    from nst_data.store.manifest import ReviewManifest

    names = read_class_names(class_names) if class_names is not None else None
    version = freeze_answers(open_store(store), corpus, anonymous=anonymous, class_names=names, progress=cli_progress())
    counts = ReviewManifest.from_manifest(version.manifest).counts
    if json:
        print_json({"ref": version.ref, "folder": version.location, "digest": version.manifest.digest, "counts": counts.model_dump()})
        return
    excluded = "".join(f", {images:,} {reason}" for reason, images in counts.excluded.items() if images)
    print(f"{version.ref}: {counts.answered:,} images answered, {sum(counts.per_class.values()):,} with a class{excluded}")
    print(
        f"  {version.location}\n"
        f"  next: nst balance {corpus}@gen-N --reviews {version.ref}, or nst show {corpus}@gen-N --truth {version.ref}"
    )


def import_file(
    corpus: Annotated[str, typer.Argument(metavar="CORPUS", help="Corpus of the answers.")],
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="CSV, TSV, JSONL or parquet: `key` or `image_hash`, and `class` or `excluded`; Label Studio's JSON."
        ),
    ],
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="Name of the reviewer.")] = "reviewer",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Add the answers in a file to a reviewer's, all or nothing."""
    from nst_data.corpora import label_versions
    from nst_data.review.answer_files import import_answers

    opened_store = open_store(store)
    added, unchanged = import_answers(opened_store, corpus, file, reviewer=reviewer)
    if json:
        print_json({"corpus": corpus, "reviewer": reviewer, "added": added, "unchanged": unchanged})
        return
    if not label_versions(opened_store, corpus):
        print(f"warning: the store has no labels called {corpus!r}, so the classes were not checked")
    if not added + unchanged:
        print(f"{file} has no answers yet: fill in `class` or `excluded` in a row for each answer, and import it again")
        return
    answers = f"{added:,} answer{'s' * (added != 1)}"
    print(f"{corpus}: {answers} of {reviewer} added, {unchanged:,} were there already\n  next: nst review freeze {corpus}")


def export_file(
    what: Annotated[str, typer.Argument(metavar="CORPUS|REF", help="A corpus: the answers of all reviewers; or CORPUS@review-N.")],
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="File to write, never overwritten: .csv, .tsv, .jsonl or, for Label Studio, .json.")
    ],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write answers to a CSV or JSONL file, which `nst review import` reads."""
    from nst_data.review.answer_files import export_answers

    rows = export_answers(open_store(store), what, file)
    if json:
        print_json({"file": file, "answers": rows})
        return
    print(f"{file}: {rows:,} answer{'s' * (rows != 1)}")

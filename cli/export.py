"""`nst export`."""

from typing import Annotated

import typer

from .messages import cli_progress
from .options import JsonOption, PromptsOption, StoreOption, ZeroShotNamesOption, open_models, open_store, print_json


def export(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="name@gen-N, name@gen-N.K or name@review-N; with --to onnx or torch-export, a teacher.")
    ],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Output: a new or empty folder, or a new file for a teacher.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="folders, csv, jsonl, imagefolder, webdataset, fiftyone or label-studio; for a teacher, onnx or torch-export.",
        ),
    ] = "folders",
    pool: Annotated[str | None, typer.Option(metavar="SOURCE", help="The images, if they have moved since labeling.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Link to image files instead of copying them.")] = False,
    probs: Annotated[bool, typer.Option("--probs", help="Also write the probability of every class.")] = False,
    class_names: ZeroShotNamesOption = None,
    prompts: PromptsOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write labels as files for other tools, or a teacher for other runtimes. Resumes where it stopped when rerun."""
    if to in ("onnx", "torch-export"):
        _export_network(ref, path, to, pool is not None or link or probs, class_names, prompts, store, json)
        return
    if class_names or prompts:
        from nst_data.errors import UsageError

        raise UsageError("--class-names and --prompts apply to image-text models with --to onnx or --to torch-export; remove them")
    from nst_data.formats.export import export as export_version

    exported = export_version(open_store(store), ref, path, to=to, pool=pool, link=link, probs=probs, progress=cli_progress())  # type: ignore[arg-type]
    if json:
        print_json({"ref": ref, "folder": str(exported.folder), "images": exported.images, "per_class": exported.per_class})
        return
    print(f"{ref}: {exported.images:,} images in {exported.table or exported.folder}")
    width = max(map(len, exported.per_class))
    for name, images in exported.per_class.items():
        print(f"  {name:<{width}}  {images:,}")


def _export_network(
    teacher: str,
    path: str,
    to: str,
    has_label_options: bool,
    class_names: str | None,
    prompts: str | None,
    store: str | None,
    json: bool,
) -> None:
    from nst_data.errors import UsageError

    if has_label_options:
        raise UsageError(f"--to {to} writes a network, without images; remove --pool, --link and --probs")
    from nst_train.classifiers.export import export_network

    opened_store = open_store(store)
    (model,) = open_models(opened_store, [teacher], class_names, prompts, allow_unused=False)
    exported = export_network(opened_store, model, path, to=to, progress=cli_progress())  # type: ignore[arg-type]
    if json:
        summary = {"teacher": teacher, "path": str(exported.path), "difference": exported.difference, "class_names": exported.class_names}
        print_json(summary)
        return
    print(f"{teacher}: {len(exported.class_names):,} classes in {exported.path}")
    print(f"  run and compared: its logits differ from the network's by {exported.difference:.1g} of the largest at most")

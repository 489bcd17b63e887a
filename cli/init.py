"""`nst init`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import ClassNamesOption, ImageColumnOption, JsonOption, LabelColumnOption, print_json

if TYPE_CHECKING:
    from nst_train.starting.writing import Beginning

_SOURCE_HELP = "in place of PHOTOS/{}: a folder, parquet or tar files, owner/name on the Hub, s3://BUCKET/FOLDER."


def init(
    photos: Annotated[
        Path | None,
        typer.Argument(metavar="PHOTOS", help="Folder that contains labeled/CLASS/, unlabeled/ and optionally test/CLASS/."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RECIPE.yaml", help="Recipe to write; never overwritten.")] = Path(
        "photos.yaml"
    ),
    labeled: Annotated[str | None, typer.Option(metavar="SOURCE", help="Labeled images, " + _SOURCE_HELP.format("labeled"))] = None,
    pool: Annotated[str | None, typer.Option(metavar="SOURCE", help="Unlabeled images, " + _SOURCE_HELP.format("unlabeled"))] = None,
    test: Annotated[str | None, typer.Option(metavar="SOURCE", help="Labeled images to test on; else some are held out.")] = None,
    validation: Annotated[str | None, typer.Option(metavar="SOURCE", help="Labeled images to select the best weights by.")] = None,
    label_column: LabelColumnOption = None,
    image_column: ImageColumnOption = None,
    class_names: ClassNamesOption = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The pretrained network: a timm name, local-dir:FOLDER, hf-hub:OWNER/NAME. Default: by device."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the recipe's versions; by default that of the file.")] = None,
    json: JsonOption = False,
) -> None:
    """Inspect your images and write a commented recipe for them. Trains nothing, overwrites nothing."""
    from nst_train.starting.writing import init as write

    columns = {"label_column": label_column, "image_column": image_column, "class_names": class_names}
    begun = write(photos, output, labeled=labeled, pool=pool, test=test, validation=validation, **columns, model=model, name=name)
    if json:
        images = {role: len(getattr(begun.look, role)) for role in begun.look.named}
        summary = {"network": begun.network, "device": begun.device, "holdout": begun.look.holdout, "warnings": begun.warnings}
        print_json({"recipe": str(begun.path), "images": images, "classes": len(begun.look.class_names)} | summary)
        return
    _print(begun)


def _print(begun: "Beginning") -> None:
    import shlex

    from nst_data.progress import as_text
    from nst_train.recipes.schema import SCHEMA_FILE
    from nst_train.starting.looking import counted

    look, recipe = begun.look, shlex.quote(str(begun.path))
    print(f"labeled:  {len(look.labeled):,} images of {len(look.class_names):,} classes, {look.per_class} each")
    print(f"pool:     {counted(len(look.pool), 'image')}")
    no_test = f"none: {look.holdout:.0%} of the labeled images are held out" if look.holdout else "none"
    print(f"test:     {counted(len(look.test), 'image') if look.test else no_test}")
    print(f"network:  {as_text(begun.network)}, pretrained, on {'this CPU' if begun.device == 'cpu' else 'this GPU'}")
    for line in begun.warnings:
        print(f"warning:  {line}")
    schema = f", {SCHEMA_FILE} for your editor" if begun.has_schema else ""
    print(f"written:  {recipe}{schema}\nnext:     nst run {recipe} --dry-run   nst run {recipe}")

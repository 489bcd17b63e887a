"""`nst init`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import ClassNamesOption, ImageColumnOption, JsonOption, LabelColumnOption, print_json

if TYPE_CHECKING:
    from nst_train.starting.writing import WrittenRecipe

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
    from nst_train.starting.writing import write_new_recipe as write

    columns = {"label_column": label_column, "image_column": image_column, "class_names": class_names}
    result = write(photos, output, labeled=labeled, pool=pool, test=test, validation=validation, **columns, model=model, name=name)
    if json:
        images = {role: len(getattr(result.inventory, role)) for role in result.inventory.locations}
        summary = {"network": result.network, "device": result.device, "holdout": result.inventory.holdout, "warnings": result.warnings}
        print_json({"recipe": str(result.path), "images": images, "classes": len(result.inventory.class_names)} | summary)
        return
    _print_summary(result)


def _print_summary(result: "WrittenRecipe") -> None:
    import shlex

    from nst_data.progress import escape_unprintable
    from nst_train.recipes.schema import SCHEMA_FILE
    from nst_train.starting.looking import format_count

    look, recipe = result.inventory, shlex.quote(str(result.path))
    print(f"labeled:  {len(look.labeled):,} images of {len(look.class_names):,} classes, {look.per_class} each")
    print(f"pool:     {format_count(len(look.pool), 'image')}")
    no_test = f"none: {look.holdout:.0%} of the labeled images are held out" if look.holdout else "none"
    print(f"test:     {format_count(len(look.test), 'image') if look.test else no_test}")
    print(f"network:  {escape_unprintable(result.network)}, pretrained, on {'this CPU' if result.device == 'cpu' else 'this GPU'}")
    for line in result.warnings:
        print(f"warning:  {line}")
    schema = f", {SCHEMA_FILE} for your editor" if result.has_schema else ""
    print(f"written:  {recipe}{schema}\nnext:     nst run {recipe} --dry-run   nst run {recipe}")

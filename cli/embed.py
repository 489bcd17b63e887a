"""`nst embed`."""

from typing import Annotated

import typer

from nst_train.settings import EmbedRunSettings, EmbedSettings

from .messages import cli_progress
from .options import MODEL_HELP, ImageColumnOption, JsonOption, StoreOption, StreamOption, open_store, print_json, with_settings


@with_settings(settings=EmbedSettings, run=EmbedRunSettings)
def embed(
    settings: EmbedSettings,
    run: EmbedRunSettings,
    data: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Images: a folder, tar or parquet files, a .txt list, owner/name on the Hub, s3://BUCKET/FOLDER."
        ),
    ],
    model: Annotated[str, typer.Option(metavar="MODEL", help=MODEL_HELP)],
    image_column: ImageColumnOption = None,
    stream: StreamOption = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Compute image features: a network's pooled output before its classifier. Resumes where it stopped when rerun."""
    from nst_data.sources import open_source
    from nst_train.features.embed import embed as embed_images

    opened_store = open_store(store)
    images = open_source(data, image_column=image_column, stream=stream, indexes=opened_store.indexes)
    features = embed_images(opened_store, model, images, settings, run=run, progress=cli_progress())
    about = features.about
    if json:
        print_json({"folder": features.location, **about.model_dump(include={"images", "errors", "dimensions"})})
        return
    unread = f", {about.errors:,} could not be read" if about.errors else ""
    print(f"{about.images:,} images of {about.dimensions:,} features each{unread}\n  {features.location}/features/*.parquet")

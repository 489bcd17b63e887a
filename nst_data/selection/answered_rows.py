"""The images of a generation to which people gave a class: an edition has them in a separate table, to be trained on as labeled ones."""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Self

import polars as pl
import pyarrow as pa

from nst_data.sources import Source, match_classes
from nst_data.store.manifest import SealedFile
from nst_data.store.staging import Staging
from nst_data.store.version import Version
from nst_data.tables.label_tables import collect, scan_labels
from nst_data.tables.review_table import ANSWERED, read_review
from nst_data.tables.schema import answered_schema
from nst_data.tables.shards import write_parquet

_IMAGES_AT_ONCE = 100  # images in memory


@dataclass(frozen=True)
class AnsweredRows:
    """`rows` has `id`, `key`, `image_hash` and `label`, the class that people gave, in pool order; of equal images, only the first."""

    rows: pl.DataFrame
    class_names: list[str]

    @classmethod
    def from_review(cls, generation: Version, reviews: Version, held_out: Mapping[str, AbstractSet[str]]) -> Self:
        """The answered images that are not held out. Raises NstError for a class that the generation does not have."""
        names = generation.manifest.class_names
        order = match_classes(reviews.manifest.class_names, names, reviews.ref, subset=True)
        excluded_hashes = pl.Series(sorted(set().union(*held_out.values())), dtype=pl.String)
        labels = read_review(reviews).drop_nulls("label").filter(~pl.col("image_hash").is_in(excluded_hashes.implode()))
        labels = labels.select("image_hash", label=pl.Series(order)[labels["label"]])
        (answered,) = collect(
            generation.ref, scan_labels(generation).select("id", "key", "image_hash").join(labels.lazy(), on="image_hash")
        )
        return cls(answered.sort("id").unique("image_hash", keep="first", maintain_order=True), names)

    def __len__(self) -> int:
        return self.rows.height

    def write(self, staging: Staging, pool: Source | None, ids_are_pool_rows: bool) -> dict[str, SealedFile]:
        """Write the table, with the images of a `pool`, if given. Raises NstError for an image that has changed."""
        file, schema = f"{ANSWERED}/train-00000-of-00001.parquet", answered_schema(self.class_names, with_images=pool is not None)
        tables = [self.rows.to_arrow()] if pool is None else self._with_images(pool, ids_are_pool_rows)
        cast_tables = (table.select(schema.names).cast(schema) for table in tables)
        return {file: write_parquet(staging.build / file, cast_tables, schema, staging.work)}

    def _with_images(self, pool: Source, ids_are_pool_rows: bool) -> Iterator[pa.Table]:
        numbers = self.rows["id"].to_numpy() if ids_are_pool_rows else pool.rows_of(self.rows["key"].to_list())
        for start in range(0, len(self), _IMAGES_AT_ONCE):
            chunk = self.rows.slice(start, _IMAGES_AT_ONCE)
            images = []
            for number, key, image_hash in zip(
                numbers[start : start + _IMAGES_AT_ONCE].tolist(), chunk["key"], chunk["image_hash"], strict=True
            ):
                encoded = pool.read(number)
                pool.check_content(number, encoded, image_hash)
                images.append({"bytes": encoded, "path": key})
            yield chunk.to_arrow().append_column("image", pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))

"""The sources of a recipe, opened. Imports no torch."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nst_data.errors import NstError, UsageError
from nst_data.hub.reference import HubReference
from nst_data.progress import Progress
from nst_data.sources import Source, open_source
from nst_data.sources.addresses import file_tree_at
from nst_data.sources.opening import PathNotFoundError
from nst_data.store.indexes import Indexes
from nst_data.store.store import Store
from nst_train.recipes.recipe import Recipe
from nst_train.recipes.sections import EvaluationSettings, SourceSettings


@dataclass(frozen=True)
class OpenedSources:
    """The sources of a recipe, before any holdout. `evaluations` has a published suite's folder, a source, or None for the test set."""

    labeled: Source | None
    pool: Source
    test: Source | None
    validation: Source | None
    evaluations: list[tuple[EvaluationSettings, Path | Source | None]]

    @classmethod
    def open(cls, recipe: Recipe, store: Store, progress: Progress, *, writes: bool = True) -> Self:
        """Open the sources. Raises NstError if one does not exist. With `writes` False, the store is not changed."""
        labeled = _open_source("labeled", recipe.labeled, progress) if recipe.labeled else None
        pool = _open_source("pool", recipe.pool, progress, indexes=store.indexes if writes else None)
        test = _open_source("test", recipe.test, progress) if recipe.test else None
        validation = _open_source("validation", recipe.validation, progress) if recipe.validation else None
        sources = cls(labeled, pool, test, validation, [(settings, _open_data(settings, progress)) for settings in recipe.evaluate])
        sources._check_pool_is_distinct()
        return sources

    def _check_pool_is_distinct(self) -> None:
        """Raises UsageError if the pool is one of the other sources: all of it would be labeled, and then excluded from the selection."""
        for role in ("labeled", "test", "validation"):
            source: Source | None = getattr(self, role)
            if source is None or source.location != self.pool.location:
                continue
            if source.images_fingerprint == self.pool.images_fingerprint:
                raise UsageError(
                    f"pool: {self.pool.location} is also `{role}`, so no image would be left to learn from; expected two sources"
                )

    def all(self) -> Iterator[Source]:
        """All sources, in a fixed order."""
        evaluated = (data for _, data in self.evaluations if isinstance(data, Source))
        yield from filter(None, (self.labeled, self.pool, self.test, self.validation, *evaluated))


def _open_data(settings: EvaluationSettings, progress: Progress) -> Path | Source | None:
    if settings.data is None:
        return None
    return Path(settings.data.sources[0]) if settings.is_published else _open_source("evaluate", settings.data, progress)


def _open_source(role: str, settings: SourceSettings, progress: Progress, indexes: Indexes | None = None) -> Source:
    """Open a source of the recipe, with labels unless it is the pool. Reports a Hub dataset, since a path may have been meant."""
    on_hub = [
        location
        for location in settings.sources
        if file_tree_at(location) is None and not os.path.exists(location) and HubReference.parse(location) is not None
    ]
    problem = f"{role}: no {', '.join(on_hub)} next to the recipe"
    columns: dict[str, Any] = {"image_column": settings.image_column, "label_column": settings.label_column}
    try:
        source = open_source(
            settings.source, labeled=role != "pool", class_names=settings.class_names, stream=settings.stream, indexes=indexes, **columns
        )
    except NstError as error:
        was_tried = on_hub and not isinstance(error, PathNotFoundError)
        raise type(error)(f"{problem}, and on the Hub: {error}" if was_tried else f"{role}: {error}") from None
    if on_hub:
        progress.say(f"{problem}; using Hub dataset {source.location}")
    return source

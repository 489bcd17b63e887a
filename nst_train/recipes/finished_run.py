"""A record of what a finished run depended on and made, so that repeating it needs no network library."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.sources.source import stamp_of
from nst_data.store.files import write_text
from nst_data.store.manifest import installed_packages, json_digest, package_version
from nst_data.store.metrics import Metrics
from nst_data.store.store import Store, Version
from nst_train.evaluation.chance import Difference
from nst_train.recipes.opened_sources import OpenedSources
from nst_train.recipes.recipe import Recipe
from nst_train.teacher_names import is_in_store

OWN_START_NAMES = (None, "", "teacher", "the first training")  # names in `start` for networks that the run trains itself
_OPTIONAL_PACKAGE = "open-clip-torch"  # teachers may depend on it
_WORLD_SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Generation:
    """One trained network and what it was trained on; `corpus` and `edition` are None if that was labeled images only.

    `corpus` is the labeling of the pool that the edition was selected from, if it was made for this generation. `to_newest` is how much
    more accurate the newest student is on the recipe's test images; None for that student itself, and without test images.
    """

    teacher: Version
    corpus: Version | None = None
    edition: Version | None = None
    to_newest: Difference | None = None


class _Record(BaseModel):
    """The record as stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    asked: str
    repositories: dict[str, str]
    versions: dict[str, str]  # everything that the run made: digests by reference
    measured: dict[str, str]  # measurements of its teachers: digests by reference and name
    generations: list[tuple[str, str | None, str | None, Difference | None]]  # teacher, corpus, edition, and `to_newest`


@dataclass(frozen=True)
class Dependencies:
    """Everything that a run depends on, as a digest, and the Hub repositories with the weights of timm names."""

    digest: str
    repositories: Mapping[str, str]


@dataclass(frozen=True)
class FinishedRun:
    """A recipe with its opened sources, and the place of a finished run's record in the store.

    A run counts as the same if the recipe and the packages are equal and no source, file or model has been written to since. No record is
    kept if it measures a published suite, whose folders have too many files to check each.
    """

    store: Store
    recipe: Recipe
    sources: OpenedSources

    def load_generations(self, progress: Progress) -> list[Generation] | None:
        """The generations of the finished run; None if anything it depended on or made has changed, and with several processes."""
        if _has_peers() or not self._path.is_file():
            return None
        try:
            record = _Record.model_validate_json(self._path.read_text("utf-8"))
            versions = {ref: self.store.open(ref) for ref in record.versions}
            if {ref: version.manifest.digest for ref, version in versions.items()} != record.versions:
                return None
            if (
                not record.measured.items() <= _measurement_digests(versions.values()).items()
                or self.current_dependencies(record.repositories).digest != record.asked
            ):
                return None
            restored = [
                Generation(versions[teacher], versions[corpus] if corpus else None, versions[edition] if edition else None, to_newest)
                for teacher, corpus, edition, to_newest in record.generations
            ]
        except (OSError, ValueError, KeyError, TypeError, NstError):  # the run itself will report it
            return None
        progress.say(f"{self.recipe.name} is finished: same recipe, images and models")
        return restored

    def current_dependencies(self, repositories: Mapping[str, str]) -> Dependencies:
        """Everything that the run depends on, as of now. Raises KeyError for a timm model whose repository is missing."""
        recipe = self.recipe.model_dump(mode="json")
        digest = json_digest(
            {
                "recipe": recipe,
                "packages": dict(installed_packages()) | {_OPTIONAL_PACKAGE: package_version(_OPTIONAL_PACKAGE) or ""},
                "sources": [[source.fingerprint, source.stamp] for source in self.sources.all()],
                "files": {text: stamp_of(text) for text in _iterate_strings(recipe) if os.path.isfile(text)},
                "models": {name: self._identity(name, repositories) for name in self._models},
                "reviews": {ref: self.store.open(ref, "review").manifest.digest for ref in self.recipe.reviews.values()},
            }
        )
        return Dependencies(digest, repositories)

    def initial_dependencies(self) -> Dependencies | None:
        """What the run depends on at its start; None if no later run could be compared with it, or if something is missing now."""
        if any(isinstance(data, Path) for _, data in self.sources.evaluations):
            return None
        from nst_train.networks.weights import published_repository

        with contextlib.suppress(OSError, NstError):  # the run itself will report it
            return self.current_dependencies({name: published_repository(name) for name in self._models if self._is_timm_name(name)})
        return None

    def save(self, dependencies: Dependencies, versions: Sequence[Version], generations: Sequence[Generation]) -> None:
        """Store what was made together with what the run depended on at its start; does nothing if the store is read-only."""
        record = _Record(
            asked=dependencies.digest,
            repositories=dict(dependencies.repositories),
            versions={version.ref: version.manifest.digest for version in versions},
            measured=_measurement_digests(versions),
            generations=[
                (
                    generation.teacher.ref,
                    generation.corpus and generation.corpus.ref,
                    generation.edition and generation.edition.ref,
                    generation.to_newest,
                )
                for generation in generations
            ],
        )
        text = record.model_dump_json(indent=2) + "\n"
        with contextlib.suppress(OSError):
            if not self._path.is_file() or self._path.read_text("utf-8") != text:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_text(self._path, text)

    @property
    def _path(self) -> Path:
        return self.store.root / "runs" / "finished" / f"{self.recipe.name}.json"

    @property
    def _models(self) -> list[str]:
        """The trained models that the recipe names."""
        trainings = [settings for network in self.recipe.networks for settings in (network.settings, network.settings.finetune) if settings]
        names = [settings.model for settings in trainings if settings.pretrained]
        references = [
            *(settings.start for settings in trainings),
            self.recipe.select.by,
            *(settings.relative_to for settings in self.recipe.evaluate),
        ]
        names += [name for name in references if name not in OWN_START_NAMES and name is not None]
        names += [self.recipe.teacher.model] if self.recipe.teacher else []
        own_model = None if self.recipe.teacher else f"{self.recipe.name}-teacher@gen-0"  # this one is made by the run
        return sorted({name for name in names if name != own_model})

    def _identity(self, name: str, repositories: Mapping[str, str]) -> Any:  # noqa: ANN401 - a JSON value
        """A value that is equal if a name refers to the same weights."""
        if is_in_store(name, self.store):
            version = self.store.open(name, "teacher")
            return [version.ref, version.manifest.digest]
        from nst_train.networks.weights import FOLDER, download_snapshot, published_file

        if name.startswith(FOLDER):
            return sorted([path.name, stamp_of(str(path))] for path in Path(name.removeprefix(FOLDER)).iterdir())
        return download_snapshot(name).name if "/" in name else published_file(repositories[name], name).parent.name

    def _is_timm_name(self, name: str) -> bool:
        return not {":", "/"} & set(name) and not is_in_store(name, self.store)


def _has_peers() -> bool:
    """Whether this process has peers, according to torchrun, accelerate and MPI."""
    return any(os.environ.get(name, "1") not in ("", "1") for name in _WORLD_SIZE_VARIABLES)


def _measurement_digests(versions: Iterable[Version]) -> dict[str, str]:
    teachers = [version for version in versions if version.manifest.kind == "teacher"]
    return {
        f"{teacher.ref} {name}": json_digest(result.model_dump(mode="json"))
        for teacher in teachers
        for name, result in Metrics.read(teacher.local_folder).root.items()
    }


def _iterate_strings(value: Any) -> Iterator[str]:  # noqa: ANN401 - a JSON value
    """All strings in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _iterate_strings(item)

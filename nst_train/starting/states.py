"""The state of a recipe's version in a store: done, started, to do, or made with other settings or images, which the run refuses."""

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.reuse import ReusableVersions
from nst_data.selection.editions import excluded_inputs
from nst_data.sources import Source
from nst_data.store.inputs import Input
from nst_data.store.manifest import FOLDERS, ORDER, PROBE_SAMPLE, Kind, Request
from nst_data.store.store import Number, Staging, Store, Version
from nst_data.store.version import VERSION_REF
from nst_train.device import this_device
from nst_train.labeling.begin import check_inputs_unchanged
from nst_train.networks.weights import FOLDER, initial_weights_input
from nst_train.recipes.finished_run import OWN_START_NAMES
from nst_train.recipes.recipe import Recipe
from nst_train.recipes.run_data import RecipeData
from nst_train.teacher_names import is_in_store
from nst_train.training.readable import check_unchanged
from nst_train.training.train import check_device
from nst_train.training.warm_start import start_input

State = Literal["done", "reused", "begun", "to do", "differs"]
FINISHED_STATES = ("done", "reused")  # the latter from a recipe with another name

# of a training: determined by its inputs, or by an earlier nst's setting
_NOT_COMPARED = (ORDER, PROBE_SAMPLE, "stream")


@dataclass(frozen=True)
class States:
    """Compares what a recipe asks for with what a store has. Writes nothing."""

    store: Store
    recipe: Recipe
    data: RecipeData
    progress: Progress
    _finished_contents: set[str] = field(default_factory=set)  # content of the versions that are done or will be reused

    def state_of(self, kind: Kind, name: str, number: Number, recipe_settings: dict[str, Any]) -> tuple[State, str | None]:
        """The state of a version; if it was made with other settings or images, also the line with which the run refuses."""
        for version in self.store.versions(name):
            if version.number == number and version.is_readable and version.manifest.kind == kind:
                if self._matches(version.manifest.request, version.ref, recipe_settings):
                    self._finished_contents.add(self._reusable_versions.data_digest(version.manifest.digest))
                    return "done", None
                return "differs", self.store.number_taken_message(
                    version, self._request_in_place_of(version.manifest.request, version.ref, recipe_settings)
                )
        for staging in self.store.stagings(name):
            if staging.ref == f"{name}@{number}" and staging.request.kind == kind:
                expected = self._request_in_place_of(staging.request, staging.ref, recipe_settings)
                try:
                    if kind == "generation" or "like" in expected.inputs.by_role:
                        check_inputs_unchanged(staging, expected, self.data.pool)
                except NstError as error:
                    return "differs", str(error)
                if self._matches(staging.request, staging.ref, recipe_settings):
                    refusal = self._resume_refusal(staging, recipe_settings) if kind == "teacher" else None
                    return "differs" if refusal else "begun", refusal
                return "differs", self.store.number_taken_message(staging, expected)
        return ("reused" if self._is_reused(kind, name, number, recipe_settings) else "to do"), None

    def _is_reused(self, kind: Kind, name: str, number: Number, recipe_settings: dict[str, Any]) -> bool:
        """Whether a recipe with another name made this version, from inputs that this one has or reuses too."""
        for version in self._reusable_versions.versions:
            request = version.manifest.request
            if (request.kind, version.number) != (kind, number) or not self._matches(request, f"{name}@{number}", recipe_settings):
                continue
            if {
                self._reusable_versions.data_digest(entry.digest)
                for entry in request.inputs.by_role.values()
                if self._is_made_by_run(entry)
            } <= self._finished_contents:
                self._finished_contents.add(self._reusable_versions.data_digest(version.manifest.digest))
                return True
        return False

    def _is_made_by_run(self, entry: Input) -> bool:
        """Whether an input is a version made by the run, rather than one that the recipe names."""
        starts = (network.settings.start for network in self.recipe.networks)
        recipe_refs = {str(self.data.teacher), self.data.selector, *self.recipe.reviews.values(), *starts}
        return VERSION_REF.fullmatch(entry.ref) is not None and entry.ref not in recipe_refs

    @cached_property
    def _reusable_versions(self) -> ReusableVersions:
        return ReusableVersions(self.store)

    def _resume_refusal(self, staging: Staging, recipe_settings: dict[str, Any]) -> str | None:
        """The line with which the run refuses to resume a training whose images have changed, or that was started on another device."""
        validation = None if recipe_settings.get("probe") else self.data.validation
        sources = {role: source for role, source in (("labeled", self.data.labeled), ("validation", validation)) if source is not None}
        try:
            check_unchanged(staging, sources, self.progress, update_record=False)
            if machine := staging.get_stored("machine"):
                check_device(staging.ref, machine, this_device().type)
        except NstError as error:
            return str(error)
        return None

    def _review_for(self, kind: Kind, ref: str) -> Version | None:
        """The review that the recipe gives to a version."""
        name, _, suffix = ref.partition("@")
        number = Number.parse(suffix).generation
        if name.startswith(f"{self.recipe.name}-control"):
            number = self.recipe.networks[-1].generation
        reviews = None if kind == "generation" else self.recipe.review_for(max(1, number) if kind == "edition" else number)
        return self.store.open(reviews, "review") if reviews else None

    def _request_in_place_of(self, existing: Request, ref: str, recipe_settings: dict[str, Any]) -> Request:
        """What the run requests instead of the given request, whatever version its weights or labels come from."""
        settings = recipe_settings | {name: existing.settings[name] for name in _NOT_COMPARED if name in existing.settings}
        if FOLDERS not in existing.settings:
            settings.pop(FOLDERS, None)
        if recipe_settings.get("start") and recipe_settings["start"] in OWN_START_NAMES and existing.settings.get("start"):
            settings["start"] = existing.settings["start"]
        inputs, data = dict(existing.inputs.by_role), self.data
        recipe_inputs: dict[str, Input | None] = {"reviews": review.lineage if (review := self._review_for(existing.kind, ref)) else None}
        if existing.kind == "teacher":
            recipe_inputs["labeled"] = data.labeled.lineage if data.labeled else None
            recipe_inputs["validation"] = data.validation.lineage if data.validation and not recipe_settings.get("probe") else None
            if (weights := self._named_initial_weights(recipe_settings)) is not None:
                recipe_inputs["initial_weights"] = weights
        elif "pool" in inputs:
            recipe_inputs["pool"] = data.pool.lineage
        if existing.kind == "teacher" or (existing.kind == "edition" and "like" not in inputs):
            inputs = {role: entry for role, entry in inputs.items() if not role.startswith("exclude")}
            recipe_inputs |= excluded_inputs(self._excluded_sources(existing))
        entries = {role: entry for role, entry in (inputs | recipe_inputs).items() if entry is not None}
        return existing.model_copy(update={"settings": settings, "inputs": type(existing.inputs)(**entries)})

    def _excluded_sources(self, existing: Request) -> list[Source]:
        """The images that the run excludes from an edition, or from a training with reviews but no edition."""
        if existing.kind == "edition":
            return [*self.data.held_out, *self.data.evaluated]
        uses_answers = "reviews" in existing.inputs.by_role and "edition" not in existing.inputs.by_role
        return [source for source in (self.data.test, *self.data.evaluated) if source] if uses_answers else []

    def _named_initial_weights(self, recipe_settings: dict[str, Any]) -> Input | None:
        """The initial weights of a training, if the recipe names them and they are here; otherwise the run makes them, or asks the Hub."""
        start, model = recipe_settings.get("start"), str(recipe_settings["model"])
        with suppress(NstError):
            if start not in OWN_START_NAMES:
                is_local = is_in_store(str(start), self.store) or str(start).startswith(FOLDER)
                return start_input(str(start), self.store) if is_local else None
            if recipe_settings.get("pretrained") and model.startswith(FOLDER):
                return initial_weights_input(model)
        return None

    def _matches(self, request: Request, ref: str, recipe_settings: dict[str, Any]) -> bool:
        """Whether a version is what the recipe makes, whatever version its weights or labels come from."""
        entry, review = request.inputs.by_role.get("reviews"), self._review_for(request.kind, ref)
        if (entry and entry.digest) != (review.manifest.digest if review else None):
            return False
        settings = {name: value for name, value in request.settings.items() if name not in _NOT_COMPARED}
        if FOLDERS not in settings:  # an earlier nst knew folders of networks by their paths
            recipe_settings = {name: value for name, value in recipe_settings.items() if name != FOLDERS}
        of_recipe = (
            {"start": settings["start"]}
            if settings.get("start") and recipe_settings.get("start") and recipe_settings["start"] in OWN_START_NAMES
            else {}
        )
        requested = request.model_copy(update={"settings": recipe_settings | of_recipe})
        if request.model_copy(update={"settings": settings}).identity != requested.identity:
            return False
        digests = {role: entry.digest for role, entry in request.inputs.by_role.items()}
        excluded = {digest for role, digest in digests.items() if role.startswith("exclude")}
        if request.kind == "teacher":
            validation = self.data.validation.fingerprint if self.data.validation and not recipe_settings.get("probe") else None
            labeled = self.data.labeled.fingerprint if self.data.labeled else None
            weights = self._named_initial_weights(recipe_settings)
            is_same = weights is None or digests.get("initial_weights") == weights.digest
            is_same &= excluded == {source.images_fingerprint for source in self._excluded_sources(request)}
            return is_same and (digests.get("labeled"), digests.get("validation")) == (labeled, validation)
        held_out, evaluated = ({source.images_fingerprint for source in sources} for sources in (self.data.held_out, self.data.evaluated))
        if request.kind == "edition" and "like" not in digests and excluded not in (held_out, held_out | evaluated):
            return False
        return digests.get("pool", self.data.pool.fingerprint) == self.data.pool.fingerprint

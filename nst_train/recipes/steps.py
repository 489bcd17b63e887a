"""What a recipe does in each generation: labels and a selection for its students, trainings, and pushing the results to the Hub."""

from dataclasses import dataclass, field

from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.selection.editions import balance, balance_request
from nst_data.self_contained.images import needs_pool
from nst_data.sharing.push import is_pushed, push
from nst_data.store.manifest import EditionManifest
from nst_data.store.store import Number, Store, Version
from nst_train.device import this_process
from nst_train.evaluation.evaluate import load_candidate, measure_and_record
from nst_train.evaluation.suites import open_suite
from nst_train.labeling.label import label, label_like
from nst_train.recipes.recipe import GenerationSettings, Recipe
from nst_train.recipes.run_data import RecipeData
from nst_train.recipes.sections import PushToSettings
from nst_train.settings import LabelRunSettings, LabelSettings, TrainSettings
from nst_train.teacher_names import TeacherName
from nst_train.training.train import train

_MAX_NAMED = 10  # classes in a warning


def has_earlier_control(store: Store, name: str, teacher: TeacherName | None) -> bool:
    """Whether a control exists that started, as in earlier versions, from a teacher whose weights know pseudo-labels."""
    versions = [version for control_name in (name, f"{name}-before-finetuning") for version in store.versions(control_name)]
    controls = [version for version in versions if version.number == Number(0) and version.is_readable]
    return any(version.manifest.request.settings.get("start") == teacher for version in controls)


@dataclass(frozen=True)
class PseudoLabeling:
    """What the students of a recipe are trained on: the pool's labels, and the images selected by them."""

    recipe: Recipe
    store: Store
    data: RecipeData
    publish: "Publishing"
    progress: Progress

    def for_students(self, generation: int, teacher: TeacherName, previous_edition: Version | None) -> tuple[Version | None, Version]:
        """The edition with this teacher's labels, and the labeling of the pool that it was selected from, if that is new.

        `previous_edition` is the edition of the previous generation. If another model selects, its labeling is generation 0 of the corpus,
        un-noised and at temperature 1, whatever the settings of the labels that students are trained on.
        """
        settings, corpus = self.recipe.label, None
        if previous_edition is None and self.data.selector is not None:
            corpus, previous_edition = self._label_and_select(
                0, self.data.selector, settings.model_copy(update={"noise": False, "temperature": 1.0})
            )
        if previous_edition is None or self.recipe.select.when == "every_generation":
            return self._label_and_select(generation, teacher, settings)
        run, progress = self._run_settings, self.progress
        relabeled = label_like(
            self.store, previous_edition, teacher, self.data.pool, settings, generation=generation, run=run, progress=progress
        )
        return corpus, self.publish(relabeled)

    def _label_and_select(self, generation: int, model: TeacherName, settings: LabelSettings) -> tuple[Version, Version]:
        """The whole pool labeled by a model, and the edition selected by these labels."""
        name, run, progress = self.recipe.name, self._run_settings, self.progress
        corpus = label(self.store, name, model, self.data.pool, settings, generation=generation, run=run, progress=progress)
        self.publish(corpus)
        existing = {version.ref for version in self.store.versions(name)}
        with this_process().main_process_first():
            edition = self._balance(corpus)
        if edition.ref not in existing:
            self._warn_of_empty_classes(edition)
        return corpus, self.publish(edition)

    def _warn_of_empty_classes(self, edition: Version) -> None:
        """Report the classes of which no image was selected, except those that the recipe excludes."""
        manifest = EditionManifest.from_manifest(edition.manifest)
        empty = [name for name in manifest.counts.classes_without_images if name not in self.recipe.select.exclude_class]
        if empty:
            names = ", ".join(empty[:_MAX_NAMED]) + f" and {len(empty) - _MAX_NAMED:,} more" * (len(empty) > _MAX_NAMED)
            self.progress.say(
                f"warning: {edition.ref} has no images of {len(empty):,} of {len(manifest.class_names):,} classes: {names}; "
                f"its student sees labeled images of {'them' if len(empty) > 1 else 'it'} only"
            )

    @property
    def _run_settings(self) -> LabelRunSettings:
        run = self.recipe.run
        return LabelRunSettings(decode_threads=run.decode_threads, max_unreadable=run.max_unreadable, **self.recipe.label.cluster_options)

    def _balance(self, corpus: Version) -> Version:
        """The edition of a generation, without the images that are evaluated on.

        An existing one, made before the recipe named these images or by an nst that did not exclude the images of `evaluate`, is kept:
        students were trained on it.
        """
        selection, number = self.recipe.select.balance_settings, Number(corpus.number.generation, 1)
        reviews = self.recipe.review_for(max(1, corpus.number.generation))  # a selection by another model is for the first student
        review = self.store.open(reviews, "review") if reviews else None
        request = balance_request(corpus, selection, self.data.held_out, self.data.pool, review)
        earlier = request.digest if self.data.evaluated else None
        for version in self.store.versions(corpus.name):
            if version.number == number and version.is_readable and version.manifest.request.digest == earlier:
                locations = ", ".join(source.location for source in self.data.evaluated)
                self.progress.say(
                    f"warning: {version.ref} was built without excluding {locations}, so "
                    "evaluation images may be among its pseudo-labels; rerun under another `name` to exclude them"
                )
                return version
        return balance(
            self.store,
            corpus,
            selection,
            exclude=[*self.data.held_out, *self.data.evaluated],
            reviews=review,
            edition=1,
            pool=self.data.pool,
            progress=self.progress,
            max_unreadable=self.recipe.run.max_unreadable,
        )


@dataclass(frozen=True)
class Trainings:
    """The trainings of a recipe, each evaluated on its test set."""

    recipe: Recipe
    store: Store
    data: RecipeData
    publish: "Publishing"
    progress: Progress

    def train(
        self,
        name: str,
        settings: GenerationSettings,
        generation: int,
        reviews: str | None,
        teacher: TeacherName | None = None,
        edition: Version | None = None,
    ) -> Version:
        """Train a network of this generation, once or, with `finetune`, twice."""
        first = settings.first_training
        if first.start == "teacher" and teacher is not None:
            first = first.model_copy(update={"start": str(teacher)})  # not an image-text model: the recipe was checked
        if settings.finetune is None:
            return self._train(name, first, generation, reviews, edition)
        first_version = self._train(f"{name}-before-finetuning", first, generation, reviews, edition, is_final=False)
        return self._train(name, settings.finetune.model_copy(update={"start": first_version.ref}), generation, reviews)

    def _train(
        self,
        name: str,
        training: TrainSettings,
        generation: int,
        reviews: str | None,
        edition: Version | None = None,
        is_final: bool = True,
    ) -> Version:
        takes_pool = needs_pool(edition) if edition else reviews is not None
        pool, run = self.data.pool if takes_pool else None, self.recipe.run
        measured = [] if edition else [source for source in (self.data.test, *self.data.evaluated) if source]
        trained = train(
            self.store,
            name,
            self.data.labeled,
            training,
            pseudo=edition,
            pool=pool,
            reviews=reviews,
            exclude=measured if reviews else [],
            generation=generation,
            run=run,
            progress=self.progress,
            validation=self.data.validation,
        )
        if self.data.test is not None:
            measure_and_record(self.store, trained, self.data.test, "test", run, self.progress)
        for settings, data in self.data.evaluations if is_final else []:
            reference = load_candidate(settings.relative_to, self.store) if settings.relative_to else None
            for suite in settings.suite:
                measure_and_record(
                    self.store, trained, open_suite(suite, data, settings, reference), settings.result_name(suite), run, self.progress
                )
        return self.publish(trained)


@dataclass(frozen=True)
class Publishing:
    """Pushes versions to the Hub as they are made. A failure is reported and retried by the next run; it does not stop the training."""

    recipe: str
    destination: PushToSettings | None
    store: Store
    progress: Progress
    versions: list[Version] = field(default_factory=list)  # everything that the run made or found
    _failed: list[Version] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether everything was pushed as requested; only the main process knows."""
        return not self._failed and this_process().is_main_process

    def __call__(self, version: Version) -> Version:
        """Push a version if the recipe says so and the store does not know that it was pushed."""
        self.versions.append(version)
        if self.destination is None or not this_process().is_main_process:
            return version
        is_labels = version.manifest.kind != "teacher"
        repo = self.destination.corpus if is_labels else self.destination.teacher
        name = version.name
        prefix = "" if name in (self.recipe, f"{self.recipe}-teacher") else name.removeprefix(f"{self.recipe}-") + "-"
        tag = f"{prefix}{version.number}"  # controls and networks that are finetuned later have their own numbers
        if repo is None or is_pushed(version, repo, tag):
            return version
        options = self.destination.model_dump(exclude={"corpus", "teacher"})
        try:
            place = push(self.store, version, repo, tag=tag, **options, progress=self.progress)
            self.progress.say(f"{version.ref} is {place.ref} on the Hub")
        except Exception as error:  # whatever it is, training continues; other libraries' messages, which may contain addresses, are hidden
            reason = str(error) if isinstance(error, NstError) else getattr(error, "strerror", None) or type(error).__name__
            self._failed.append(version)
            self.progress.say(f"warning: {version.ref} was not pushed: {reason}; the next run of this recipe tries again")
        return version

"""Noisy Student Training: Algorithm 1 of the paper over a recipe.

Where it departs from the paper:
- the selection is made anew for each generation, by its own teacher; with `select: {when: once}` it is made once,
  by the first teacher or, as in the paper (EfficientNet-B0: 3.1, A.4), by another model, `by`;
- copies of a class are spread evenly instead of drawn at random;
- images of the labeled, the validation and the test set and of what `evaluate` names are taken out of the pool, with their
  near-duplicates; the paper names only evaluation sets;
- without labeled images students are trained on pseudo-labels alone, those of a `teacher` that needs none;
- finetuning at a larger resolution is done where the recipe says `finetune`.
"""

from dataclasses import dataclass
from itertools import groupby

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError
from nst_data.progress import Progress, on_this_terminal
from nst_data.selection.editions import balance, balance_request
from nst_data.self_contained.images import needs_pool
from nst_data.sharing.push import is_pushed, push
from nst_data.store.store import Number, Store, Version
from nst_train.classifiers.teachers import TeacherName
from nst_train.device import this_process
from nst_train.evaluation.evaluate import load_candidate, measure
from nst_train.evaluation.suites import open_suite
from nst_train.labeling.label import label, label_like
from nst_train.recipe_checks import say_idle
from nst_train.recipe_data import RecipeData
from nst_train.recipe_sections import PushToSettings
from nst_train.recipe_settings import GenerationSettings, Recipe
from nst_train.settings import LabelRunSettings, LabelSettings, TrainSettings
from nst_train.training.train import train


@dataclass(frozen=True)
class Generation:
    """One trained network and what it was trained on; `corpus` and `edition` are None where that was labeled images alone.

    `corpus` is the labeling of the pool that its edition was selected by, where that was made for its generation.
    """

    teacher: Version
    corpus: Version | None = None
    edition: Version | None = None


@with_checked_arguments
def self_training(store: Store, recipe: Recipe, *, progress: Progress | None = None) -> list[Generation]:
    """Run the whole loop of a recipe, or what is left of it (Algorithm 1).

    Args:
        store: Where all that is made is kept, and found again by the same call.
        recipe: Sources, settings and generations: `load_recipe("flowers.yaml")`.
        progress: What a person sees of it; by default lines on standard error.

    Returns:
        A `Generation` for each network that was trained, in order: `teacher`, and the `corpus` and `edition` that it was trained on. The
        controls come last where the recipe asks for them.

    Raises:
        NstError: A source, a setting or a model is refused; what would stop a later generation stops the loop before its first.
        KeyboardInterrupt: A signal asked to stop; the same call resumes. Its `status` is the exit status of a command, such as 130.
    """
    progress = progress or on_this_terminal()
    say_idle(recipe, progress)
    data = RecipeData.open(recipe, store, progress)
    publish = _Publishing(recipe.name, recipe.push_to, store, progress)
    labels, training = _Labels(recipe, store, data, publish, progress), _Trainings(recipe, store, data, publish, progress)
    teacher = data.teacher

    generations: list[Generation] = []
    edition, first_teacher = None, teacher
    for number, of_generation in groupby(recipe.networks, lambda network: network.generation):
        corpus, taught_by, networks = None, teacher, list(of_generation)
        if taught_by is not None:
            corpus, edition = labels.of_students(number, taught_by, edition)
        for network in networks:
            trained = training.train(network.name_in(recipe.name), network.settings, number, recipe.reviews_of(number), taught_by, edition)
            generations.append(Generation(trained, corpus, edition))
            teacher = trained.ref
            first_teacher = first_teacher or teacher
    for network in networks if recipe.control else []:
        name = network.name_in(recipe.name, "control")
        start = taught_by if _is_control_of_before(store, name, taught_by) else first_teacher
        generations.append(Generation(training.train(name, network.settings, 0, recipe.reviews_of(network.generation), start)))
    return generations


def _is_control_of_before(store: Store, name: str, teacher: TeacherName | None) -> bool:
    """Whether a control is there that started, as earlier versions did, from a teacher whose weights know pseudo-labels."""
    firsts = [version for of_name in (name, f"{name}-before-finetuning") for version in store.versions(of_name)]
    made = [version for version in firsts if version.number == Number(0) and version.is_readable]
    return any(version.manifest.request.settings.get("start") == teacher for version in made)


@dataclass(frozen=True)
class _Labels:
    """What the students of a recipe are trained on: the pool's labels, and the images that are selected by them."""

    recipe: Recipe
    store: Store
    data: RecipeData
    publish: "_Publishing"
    progress: Progress

    def of_students(self, number: int, teacher: TeacherName, before: Version | None) -> tuple[Version | None, Version]:
        """The edition with this teacher's labels, and the labeling of the pool that it was selected by, where that is new.

        `before` is the edition of the generation before. What another model selects is generation 0 of the corpus; its labels are un-noised
        and at temperature 1, whatever those that students are trained on are.
        """
        settings, corpus = self.recipe.label, None
        if before is None and self.data.by is not None:
            corpus, before = self._selected(0, self.data.by, settings.model_copy(update={"noise": False, "temperature": 1.0}))
        if before is None or self.recipe.select.when == "every_generation":
            return self._selected(number, teacher, settings)
        run, progress = self._run, self.progress
        again = label_like(self.store, before, teacher, self.data.pool, settings, generation=number, run=run, progress=progress)
        return corpus, self.publish(again)

    def _selected(self, number: int, model: TeacherName, settings: LabelSettings) -> tuple[Version, Version]:
        """The whole pool, labeled by a model, and the edition that is selected by these labels."""
        name, run, progress = self.recipe.name, self._run, self.progress
        corpus = label(self.store, name, model, self.data.pool, settings, generation=number, run=run, progress=progress)
        self.publish(corpus)
        with this_process().main_process_first():
            edition = self._balanced(corpus)
        return corpus, self.publish(edition)

    @property
    def _run(self) -> LabelRunSettings:
        return LabelRunSettings(decode_threads=self.recipe.run.decode_threads, max_unreadable=self.recipe.run.max_unreadable)

    def _balanced(self, corpus: Version) -> Version:
        """The edition of a generation, without the images that are evaluated on.

        One that is there and was made before the recipe named these, or by an nst that held out no images of `evaluate`, stays: students
        were trained on it.
        """
        selection, number = self.recipe.select.balancing, Number(corpus.number.generation, 1)
        reviews = self.recipe.reviews_of(max(1, corpus.number.generation))  # what another model selects is for the first student
        review = self.store.open(reviews, "review") if reviews else None
        request = balance_request(corpus, selection, self.data.held_out, self.data.pool, review)
        earlier = request.digest if self.data.evaluated else None
        for version in self.store.versions(corpus.name):
            if version.number == number and version.is_readable and version.manifest.request.digest == earlier:
                others = ", ".join(source.location for source in self.data.evaluated)
                self.progress.say(
                    f"warning: {version.ref} was built without holding out {others}, so "
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
class _Trainings:
    """The trainings of a recipe, each measured on its test set."""

    recipe: Recipe
    store: Store
    data: RecipeData
    publish: "_Publishing"
    progress: Progress

    def train(
        self,
        name: str,
        settings: GenerationSettings,
        number: int,
        reviews: str | None,
        teacher: TeacherName | None = None,
        edition: Version | None = None,
    ) -> Version:
        """A network of this generation, in one training or, with `finetune`, in two."""
        first = settings.first
        if first.start == "teacher" and teacher is not None:
            first = first.model_copy(update={"start": str(teacher)})  # no image-text model: the recipe was checked
        if settings.finetune is None:
            return self._train(name, first, number, reviews, edition)
        before = self._train(f"{name}-before-finetuning", first, number, reviews, edition, whole=False)
        return self._train(name, settings.finetune.model_copy(update={"start": before.ref}), number, reviews)

    def _train(
        self, name: str, training: TrainSettings, number: int, reviews: str | None, edition: Version | None = None, whole: bool = True
    ) -> Version:
        takes_pool = needs_pool(edition) if edition else reviews is not None
        pool, run = self.data.pool if takes_pool else None, self.recipe.run
        measured = [] if edition else [source for source in (self.data.test, *self.data.evaluated) if source]
        trained = train(
            self.store,
            name,
            self.data.labeled,
            training,
            edition=edition,
            pool=pool,
            reviews=reviews,
            exclude=measured if reviews else [],
            generation=number,
            run=run,
            progress=self.progress,
            validation=self.data.validation,
        )
        if self.data.test is not None:
            measure(self.store, trained, self.data.test, "test", run, self.progress)
        for settings, data in self.data.evaluations if whole else []:
            reference = load_candidate(settings.relative_to, self.store) if settings.relative_to else None
            for suite in settings.suite:
                measure(self.store, trained, open_suite(suite, data, settings, reference), settings.recorded(suite), run, self.progress)
        return self.publish(trained)


@dataclass(frozen=True)
class _Publishing:
    """Versions to the Hub as they are made. What fails is told and done by the next run: it stops no training."""

    recipe: str
    to: PushToSettings | None
    store: Store
    progress: Progress

    def __call__(self, version: Version) -> Version:
        """Push a version where the recipe says so and this store does not know that it is there."""
        if self.to is None or not this_process().is_main_process:
            return version
        is_labels = version.manifest.kind != "teacher"
        repo = self.to.corpus if is_labels else self.to.teacher
        name = version.name
        prefix = "" if name in (self.recipe, f"{self.recipe}-teacher") else name.removeprefix(f"{self.recipe}-") + "-"
        tag = f"{prefix}{version.number}"  # the control and what is finetuned later have numbers of their own
        if repo is None or is_pushed(version, repo, tag):
            return version
        about = self.to.model_dump(exclude={"corpus", "teacher"})
        try:
            place = push(self.store, version, repo, tag=tag, **about, progress=self.progress)
            self.progress.say(f"{version.ref} is {place.ref} on the Hub")
        except Exception as error:  # whatever it is, training goes on; no text of other libraries passes, it may hold addresses
            reason = str(error) if isinstance(error, NstError) else getattr(error, "strerror", None) or type(error).__name__
            self.progress.say(f"warning: {version.ref} was not pushed: {reason}; the next run of this recipe tries again")
        return version

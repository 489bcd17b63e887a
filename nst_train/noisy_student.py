"""Noisy Student Training: Algorithm 1 of the paper over a recipe.

Where it departs from the paper:
- the selection is made anew for each generation, by its own teacher; with `select: {when: once}` it is made once,
  by the first teacher or, as in the paper (EfficientNet-B0: 3.1, A.4), by another model, `by`;
- copies of a class are spread evenly instead of drawn at random;
- images of the labeled, the validation and the test set and of what `evaluate` names are taken out of the pool, with their
  near-duplicates; the paper names only evaluation sets;
- without labeled images students are trained on pseudo-labels only, those of a `teacher` that needs none;
- finetuning at a larger resolution is done where the recipe says `finetune`.
"""

from itertools import groupby

from nst_data.arguments import with_checked_arguments
from nst_data.progress import Progress, on_this_terminal
from nst_data.store.store import Store
from nst_train.recipes.finished_run import FinishedRun, Generation
from nst_train.recipes.opened_sources import OpenedSources
from nst_train.recipes.recipe import Recipe


@with_checked_arguments
def self_training(store: Store, recipe: Recipe, *, progress: Progress | None = None) -> list[Generation]:
    """Run the whole loop of a recipe, or what is left of it (Algorithm 1).

    What a recipe of another name made with the same settings and images is taken over, not made again: give a changed recipe another name,
    and only what follows from the change is new.

    Args:
        store: Where all that is made is kept, and found again by the same call.
        recipe: Sources, settings and generations: `load_recipe("flowers.yaml")`.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        A `Generation` for each network that was trained, in order: `teacher`, and the `corpus` and `edition` that it was trained on. The
        controls come last where the recipe asks for them.

    Raises:
        NstError: A source, a setting or a model is refused; what would stop a later generation stops the loop before its first.
        KeyboardInterrupt: A signal asked to stop; the same call resumes. Its `status` is the exit status of a command, such as 130.
    """
    progress, store = progress or on_this_terminal(), store.reusing()
    sources = OpenedSources.open(recipe, store, progress)
    run = FinishedRun(store, recipe, sources)
    if (finished := run.generations(progress)) is not None:
        return finished
    from nst_train.holdout import say_trained_on
    from nst_train.recipes.checks import say_idle  # torch, timm and torchvision, which take seconds to import
    from nst_train.recipes.run_data import RecipeData
    from nst_train.recipes.steps import Labels, Publishing, Trainings, is_control_of_before

    say_idle(recipe, progress)
    data = RecipeData.open(recipe, store, progress, sources=sources)
    asked = run.begin()
    publish = Publishing(recipe.name, recipe.push_to, store, progress)
    labels, training = Labels(recipe, store, data, publish, progress), Trainings(recipe, store, data, publish, progress)
    teacher = data.teacher

    generations: list[Generation] = []
    edition, first_teacher = None, teacher
    for number, of_generation in groupby(recipe.networks, lambda network: network.generation):
        corpus, taught_by, networks = None, teacher, list(of_generation)
        if taught_by is not None:
            corpus, edition = labels.of_students(number, taught_by, edition)
        for network in networks:
            trained = training.train(network.name_in(recipe.name), network.settings, number, recipe.reviews_of(number), taught_by, edition)
            if not generations and data.test is not None and not recipe.holdout:
                say_trained_on([trained.ref], store, data.test, progress)
            generations.append(Generation(trained, corpus, edition))
            teacher = trained.ref
            first_teacher = first_teacher or teacher
    for network in networks if recipe.control else []:
        name = network.name_in(recipe.name, "control")
        start = taught_by if is_control_of_before(store, name, taught_by) else first_teacher
        generations.append(Generation(training.train(name, network.settings, 0, recipe.reviews_of(network.generation), start)))
    if asked is not None and publish.is_complete:
        run.keep(asked, publish.versions, generations)
    return generations

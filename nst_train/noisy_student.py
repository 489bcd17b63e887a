"""Noisy Student Training: Algorithm 1 of the paper, run from a recipe.

Differences from the paper:
- each generation makes its own selection, with its own teacher; with `select: {when: once}` it is made once,
  by the first teacher or, as in the paper (EfficientNet-B0: 3.1, A.4), by another model, `by`;
- copies of a class are spread evenly instead of drawn at random;
- images of the labeled, validation and test sets and of the data of `evaluate` are removed from the pool, along with their
  near-duplicates; the paper mentions only evaluation sets;
- without labeled images, students are trained on pseudo-labels only, those of a `teacher` that needs none;
- finetuning at a larger resolution is done if the recipe says `finetune`.
"""

from itertools import groupby

from nst_data.arguments import with_checked_arguments
from nst_data.progress import Progress, terminal_progress
from nst_data.store.store import Store
from nst_train.recipes.finished_run import FinishedRun, Generation
from nst_train.recipes.opened_sources import OpenedSources
from nst_train.recipes.recipe import Recipe


@with_checked_arguments
def self_training(store: Store, recipe: Recipe, *, progress: Progress | None = None) -> list[Generation]:
    """Run the whole loop of a recipe, or what remains of it (Algorithm 1).

    Versions that a recipe with another name made from the same settings and images are reused: give a changed recipe a new name, and only
    what depends on the change is made again.

    Args:
        store: The store that holds everything that is made, and in which the same call finds it again.
        recipe: Sources, settings and generations: `load_recipe("flowers.yaml")`.
        progress: How progress is shown; by default as lines on standard error.

    Returns:
        A `Generation` for each trained network, in order: `teacher`, and the `corpus` and `edition` that it was trained on. The controls,
        if the recipe asks for them, come last.

    Raises:
        NstError: A source, a setting or a model is refused; anything that would stop a later generation is found before the first.
        KeyboardInterrupt: A signal asked to stop; the same call resumes. Its `status` is the exit status of a command, such as 130.
    """
    progress, store = progress or terminal_progress(), store.with_reuse()
    sources = OpenedSources.open(recipe, store, progress)
    run = FinishedRun(store, recipe, sources)
    if (finished := run.load_generations(progress)) is not None:
        return finished
    from nst_train.holdout import warn_if_trained_on
    from nst_train.recipes.checks import report_idle_settings  # imports torch, timm and torchvision, which takes seconds
    from nst_train.recipes.comparison import compare_with_newest
    from nst_train.recipes.run_data import RecipeData
    from nst_train.recipes.steps import PseudoLabeling, Publishing, Trainings, has_earlier_control

    report_idle_settings(recipe, progress)
    data = RecipeData.open(recipe, store, progress, sources=sources)
    dependencies = run.initial_dependencies()
    publish = Publishing(recipe.name, recipe.push_to, store, progress)
    labels, training = PseudoLabeling(recipe, store, data, publish, progress), Trainings(recipe, store, data, publish, progress)
    teacher = data.teacher

    generations: list[Generation] = []
    edition, first_teacher = None, teacher
    for number, group in groupby(recipe.networks, lambda network: network.generation):
        corpus, taught_by, networks = None, teacher, list(group)
        if taught_by is not None:
            corpus, edition = labels.for_students(number, taught_by, edition)
        for network in networks:
            trained = training.train(
                network.store_name(recipe.name), network.settings, number, recipe.review_for(number), taught_by, edition
            )
            if not generations and data.test is not None and not recipe.holdout:
                warn_if_trained_on([trained.ref], store, data.test, progress)
            generations.append(Generation(trained, corpus, edition))
            teacher = trained.ref
            first_teacher = first_teacher or teacher
    for network in networks if recipe.control else []:
        name = network.store_name(recipe.name, "control")
        start = taught_by if has_earlier_control(store, name, taught_by) else first_teacher
        generations.append(Generation(training.train(name, network.settings, 0, recipe.review_for(network.generation), start)))
    generations = compare_with_newest(generations, data.test, store, recipe.run, progress)
    if dependencies is not None and publish.is_complete:
        run.save(dependencies, publish.versions, generations)
    return generations

"""The identity of a training, its settings and inputs, and how earlier versions of nst expressed the same."""

from nst_data.errors import NstError
from nst_data.selection.editions import excluded_inputs
from nst_data.self_contained.images import needs_pool
from nst_data.sources.labeled_pool import pool_entry
from nst_data.store.inputs import TeacherInputs
from nst_data.store.manifest import FOLDERS, ORDER, PREPARATION, PROBE_SAMPLE, EditionManifest, Request, TeacherRequest
from nst_data.store.store import Staging, Store, Version
from nst_train.features.linear_probe import MOST_FOLDED
from nst_train.networks.image_processors import preparation_of
from nst_train.networks.outline import beside_settings
from nst_train.networks.weights import FOLDER, config_digest, initial_weights
from nst_train.settings import TrainSettings
from nst_train.training.material import Material
from nst_train.training.warm_start import start_input


def request_of(store: Store, settings: TrainSettings, material: Material) -> Request:
    """The request of a training. With a self-contained edition it names the order of the images, streamed or not.

    If image preparation, network noise or probe fitting differ from earlier versions of nst, the request names that too. Raises NstError
    if the images cannot be prepared, or if a folder holds no network.
    """
    inputs, order = {role: source.lineage for role, source in material.labeled_sources.items()}, {}
    if (edition := material.edition) is not None:
        inputs["edition"] = edition.lineage
        inputs["pool"] = pool_entry(EditionManifest.of(edition.manifest).request.inputs.pool, material.pool)
        order = {} if needs_pool(edition) else {ORDER: "shards"}
    if material.reviews is not None:
        inputs["reviews"] = material.reviews.lineage
        inputs |= excluded_inputs(material.exclude)
    if settings.pretrained:
        inputs["initial_weights"] = initial_weights(settings.model)
    if settings.start:
        inputs["initial_weights"] = start_input(settings.start, store)
    preparation = {PREPARATION: changed} if (changed := preparation_of(settings)) else {}
    classes = edition.manifest.class_names if edition is not None else material.labeled.class_names if material.labeled else None
    is_large = settings.probe and material.labeled is not None and len(material.labeled) > MOST_FOLDED
    extra = order | preparation | beside_settings(settings, len(classes or [])) | ({PROBE_SAMPLE: MOST_FOLDED} if is_large else {})
    return TeacherRequest(settings=settings.for_request() | extra | folders_of(settings), inputs=TeacherInputs(**inputs))


def folders_of(settings: TrainSettings) -> dict[str, dict[str, str]]:
    """What a training request names in addition to paths of folders with networks, so that moved ones are the same.

    Raises UsageError if a folder holds no network.
    """
    names = {"model": settings.model, "start": settings.start}
    digests = {setting: config_digest(name) for setting, name in names.items() if name is not None and name.startswith(FOLDER)}
    return {FOLDERS: digests} if digests else {}


def begin(store: Store, request: Request, name: str, generation: int | None) -> Version | Staging:
    """The requested training: sealed already, in progress, or new. One that an earlier nst sealed counts as well.

    Before published weights were part of a request, only `pretrained` indicated them. Folders of networks were known by their paths. Before
    the image order had a name, streamed trainings had today's order, and the others read an edition's images in another one. Raises
    NstError if one of the latter is unfinished.
    """
    earlier = [request, *_without_published_weights(request)]
    for setting in (FOLDERS, PROBE_SAMPLE):
        if setting in request.settings:
            earlier += [_without(setting, form) for form in earlier]
    other_order: list[Request] = []
    if ORDER in request.settings:
        other_order = [_without(ORDER, form) for form in earlier]
        earlier += [form.model_copy(update={"settings": form.settings | {"stream": True}}) for form in other_order]
    training = store.begin(request, name, generation, first=0, earlier=[*earlier[1:], *other_order])
    if isinstance(training, Staging) and training.request.digest in {form.digest for form in other_order}:
        raise NstError(
            f"{training.ref} was started by an earlier nst, which orders images differently; "
            f"finish it with that nst, or `store.remove({training.ref!r})` and run this command again"
        )
    return training


def _without(setting: str, request: Request) -> Request:
    return request.model_copy(update={"settings": {key: value for key, value in request.settings.items() if key != setting}})


def _without_published_weights(request: Request) -> list[Request]:
    """The same training as an earlier nst requested it: on whatever weights the Hub had at that time."""
    inputs = request.inputs.by_role
    weights = inputs.pop("initial_weights", None)
    if weights is None or not weights.revision or not request.settings.get("pretrained"):
        return []
    return [request.model_copy(update={"inputs": TeacherInputs(**inputs)})]

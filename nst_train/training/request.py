"""The identity of a training, its settings and inputs, and how earlier versions of nst expressed the same."""

from nst_data.errors import NstError
from nst_data.selection.editions import excluded_inputs
from nst_data.self_contained.images import needs_pool
from nst_data.sources.labeled_pool import pool_entry
from nst_data.store.inputs import TeacherInputs
from nst_data.store.manifest import FOLDER_SETTINGS, FOLDERS, ORDER, PREPARATION, PROBE_SAMPLE, EditionManifest, Request, TeacherRequest
from nst_data.store.store import Staging, Store, Version
from nst_train.features.linear_probe import MAX_FOLDED
from nst_train.networks.image_processors import preparation_changes
from nst_train.networks.outline import extra_settings
from nst_train.networks.weights import FOLDER, config_digest, initial_weights_input
from nst_train.settings import TrainSettings
from nst_train.training.material import TrainingData
from nst_train.training.warm_start import start_input


def build_request(store: Store, settings: TrainSettings, data: TrainingData) -> Request:
    """The request of a training. With a self-contained edition it names the order of the images, streamed or not.

    If image preparation, network noise or probe fitting differ from earlier versions of nst, the request names that too. Raises NstError
    if the images cannot be prepared, or if a folder holds no network.
    """
    inputs, order = {role: source.lineage for role, source in data.labeled_sources.items()}, {}
    if (edition := data.edition) is not None:
        inputs["edition"] = edition.lineage
        inputs["pool"] = pool_entry(EditionManifest.from_manifest(edition.manifest).request.inputs.pool, data.pool)
        order = {} if needs_pool(edition) else {ORDER: "shards"}
    if data.reviews is not None:
        inputs["reviews"] = data.reviews.lineage
        inputs |= excluded_inputs(data.exclude)
    if settings.pretrained:
        inputs["initial_weights"] = initial_weights_input(settings.model)
    if settings.start:
        inputs["initial_weights"] = start_input(settings.start, store)
    preparation = {PREPARATION: changed} if (changed := preparation_changes(settings)) else {}
    classes = edition.manifest.class_names if edition is not None else data.labeled.class_names if data.labeled else None
    is_large = settings.probe and data.labeled is not None and len(data.labeled) > MAX_FOLDED
    extra = order | preparation | extra_settings(settings, len(classes or [])) | ({PROBE_SAMPLE: MAX_FOLDED} if is_large else {})
    return TeacherRequest(settings=settings.for_request() | extra | folder_digests(settings), inputs=TeacherInputs(**inputs))


def folder_digests(settings: TrainSettings) -> dict[str, dict[str, str]]:
    """What a training request names in addition to paths of folders with networks, so that moved ones are the same.

    Raises UsageError if a folder holds no network.
    """
    names = {setting: getattr(settings, setting) for setting in FOLDER_SETTINGS}
    digests = {setting: config_digest(name) for setting, name in names.items() if name is not None and name.startswith(FOLDER)}
    return {FOLDERS: digests} if digests else {}


def find_or_stage(store: Store, request: Request, name: str, generation: int | None) -> Version | Staging:
    """The requested training: sealed already, in progress, or new. One that an earlier nst sealed counts as well.

    Before published weights were part of a request, only `pretrained` indicated them. Folders of networks were known by their paths. Before
    the image order had a name, streamed trainings had today's order, and the others read an edition's images in another one. Raises
    NstError if one of the latter is unfinished.
    """
    earlier = [request, *_without_published_weights(request)]
    for setting in (FOLDERS, PROBE_SAMPLE):
        if setting in request.settings:
            earlier += [_without_setting(setting, form) for form in earlier]
    other_order: list[Request] = []
    if ORDER in request.settings:
        other_order = [_without_setting(ORDER, form) for form in earlier]
        earlier += [form.model_copy(update={"settings": form.settings | {"stream": True}}) for form in other_order]
    training = store.find_or_stage(request, name, generation, first_generation=0, earlier_requests=[*earlier[1:], *other_order])
    if isinstance(training, Staging) and training.request.digest in {form.digest for form in other_order}:
        raise NstError(
            f"{training.ref} was started by an earlier nst, which orders images differently; "
            f"finish it with that nst, or `store.remove({training.ref!r})` and run this command again"
        )
    return training


def _without_setting(setting: str, request: Request) -> Request:
    return request.model_copy(update={"settings": {key: value for key, value in request.settings.items() if key != setting}})


def _without_published_weights(request: Request) -> list[Request]:
    """The same training as an earlier nst requested it: on whatever weights the Hub had at that time."""
    inputs = request.inputs.by_role
    weights = inputs.pop("initial_weights", None)
    if weights is None or not weights.revision or not request.settings.get("pretrained"):
        return []
    return [request.model_copy(update={"inputs": TeacherInputs(**inputs)})]

"""What others see of a version: no path of this machine, and the names of classes and columns as they are."""

from sealed_labels import COUNTS, POOL, label_row, seal_generation

from nst_data.cards.cards import Published, dataset_card
from nst_data.sharing.public_form import public_metrics, published_manifest
from nst_data.store.inputs import Input
from nst_data.store.manifest import EditionRequest, TeacherRequest
from nst_data.store.metrics import Metrics
from nst_data.store.store import Store

ODD = ["AC/DC fan club", "./hidden", "cat / dog"]
FOLDER = "/home/alice/photos"
ON_HUB = f"owner/photos@{'0' * 40}:default/train"


def seal(store, request, name, counts):
    staging = store.find_or_stage(request, name, 1)
    return staging.seal(staging.build_manifest({}, ODD, counts))


def test_names_of_classes_and_columns_that_look_like_paths_stay_as_they_are(tmp_path):
    store = Store(tmp_path / "store")
    seal_generation(store, [label_row(0, 0, 0, 0.9)], names=ODD, settings={"probs": "scores/of/all/classes"})
    settings = {"min_confidence": 0.3, "exclude_class": ODD}
    counts = COUNTS["edition"] | {"classes_without_images": ODD}
    edition = seal(store, EditionRequest(settings=settings, inputs={"pool": POOL}), "bugs", counts)
    published = published_manifest(edition, store)
    assert published.counts.classes_without_images == published.request.settings["exclude_class"] == published.class_names == ODD
    assert published.digest == edition.manifest.digest
    generation = published_manifest(store.open("bugs@gen-1"), store)
    assert generation.request.settings["probs"] == "scores/of/all/classes"
    card = dataset_card(store.open("bugs@gen-1"), Published("alice/bugs", "gen-1"))
    assert card.count("scores/of/all/classes") == 2  # in its settings and in the command


def test_a_model_and_what_a_training_starts_from_are_named_by_the_last_part_of_their_paths(tmp_path):
    settings = {"model": f"local-dir:{FOLDER}/net", "start": f"local-dir:{FOLDER}/old net"}
    teacher = seal(Store(tmp_path), TeacherRequest(settings=settings, inputs={"labeled": POOL}), "net", COUNTS["teacher"])
    assert published_manifest(teacher, Store(tmp_path)).request.settings == {"model": "net", "start": "old net"}
    settings |= {"folders": {"model": "1" * 64, "start": "2" * 64}}
    teacher = seal(Store(tmp_path), TeacherRequest(settings=settings, inputs={"labeled": POOL}), "known", COUNTS["teacher"])
    assert published_manifest(teacher, Store(tmp_path)).digest == teacher.manifest.digest


def test_only_settings_that_may_name_a_folder_are_known_by_its_content():
    requests = [{"model": "local-dir:a", "epochs": epochs, "folders": {"model": "1" * 64, "epochs": "2" * 64}} for epochs in (1, 2)]
    assert len({TeacherRequest(settings=settings, inputs={"labeled": POOL}).digest for settings in requests}) == 2


def test_results_name_folders_by_their_last_part_and_datasets_of_the_hub_whole(tmp_path):
    labeled = Input(ref=FOLDER, digest="d")
    teacher = seal(Store(tmp_path), TeacherRequest(settings={"model": "x"}, inputs={"labeled": labeled}), "net", COUNTS["teacher"])
    sources = {"a": FOLDER, "b": f"{FOLDER} (holdout 0.2, seed 0)", "c": ON_HUB, "d": f"{ON_HUB} (holdout 0.2, seed 0)"}
    Metrics({name: {"top1": 0.5, "source": source} for name, source in sources.items()}).write(teacher.folder)
    found = {name: result.source for name, result in public_metrics(teacher).root.items()}
    assert found == {"a": "photos", "b": "photos (holdout 0.2, seed 0)", "c": ON_HUB, "d": f"{ON_HUB} (holdout 0.2, seed 0)"}

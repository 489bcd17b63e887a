"""What trainings on editions with images are known by, and those that an earlier nst sealed or began before their order had a name."""

import json

import pytest
from conftest import TINY
from earlier_store import RUN, network
from nst_cli.main import app
from test_network_noise import Patches
from typer.testing import CliRunner
from watched import InterruptAfter

from nst_data.errors import NstError
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.manifest import Request, content_digest, parse_manifest
from nst_data.store.store import Store
from nst_train.classifiers.teachers import load_teacher
from nst_train.networks.own_networks import register_network
from nst_train.settings import TrainSettings
from nst_train.training.train import train

STREAMED, OTHER_ORDER = {"stream": True}, {}  # what an earlier nst had in the place of `order`
SETTINGS = TrainSettings(
    **TINY | {"model": "earlier_network", "ratio": 2, "noise": {"magnitude": 5, "operations": 1, "dropout": 0.1, "stochastic_depth": 0}}
)


@pytest.fixture(scope="module")
def inputs(tiny_store):
    """(labeled images, an edition with its images)."""
    store, labeled, pool = tiny_store
    register_network("earlier_network", network, image_size=16)
    settings = BalanceSettings(min_confidence=0, per_class=20, embed_images=True)
    edition = balance(store, store.open("tiny@gen-1"), settings, pool=open_source(str(pool)))
    return open_source(str(labeled), labeled=True), edition


def student(store, inputs, progress=None):
    labeled, edition = inputs
    run = RUN.model_copy(update={"checkpoint_minutes": 0})
    return train(store, "student", labeled, SETTINGS, pseudo=edition, run=run, progress=progress)


def interrupted(store, inputs):
    with pytest.raises(KeyboardInterrupt):
        student(store, inputs, InterruptAfter(3 * 12 - 1))
    (request,) = store.root.glob("runs/teachers/student/gen-0/request.json")
    return request


def earlier_form(request, place):
    """The request as it was, its settings by hand."""
    request = request.model_dump(mode="json")
    assert request["settings"].pop("order") == "shards"
    return request | {"settings": request["settings"] | place}


@pytest.mark.parametrize("place", [STREAMED, OTHER_ORDER])
def test_one_that_was_sealed_before_is_found_and_not_trained_anew(inputs, tmp_path, place):
    store = Store(tmp_path)
    version = student(store, inputs)
    manifest = version.manifest
    request = Request(**earlier_form(manifest.request, place))
    digest = content_digest(request, manifest.files, manifest.class_names)
    (version.folder / "nst.json").write_text(manifest.model_copy(update={"request": request, "digest": digest}).model_dump_json())
    found = student(store, inputs, InterruptAfter(0))
    assert (found.manifest.digest, found.verify()) == (digest, [])
    assert (store.versions(), store.unfinished()) == ([found], [])


def test_one_that_was_begun_in_another_order_is_refused_with_what_to_do_and_keeps_its_work(inputs, tmp_path):
    store = Store(tmp_path)
    path = interrupted(store, inputs)
    path.write_text(json.dumps(earlier_form(Request(**json.loads(path.read_text())), OTHER_ORDER)))
    expected = r"^student@gen-0 was started by an earlier nst, [^\n]*; finish it with that nst, or `store.remove\('student@gen-0'\)`"
    with pytest.raises(NstError, match=expected + " and run"):
        student(store, inputs)
    assert [*path.parent.glob("work/checkpoints/step-*")]
    store.remove("student@gen-0")
    version = student(store, inputs)
    assert version.manifest.request.settings["order"] == "shards"
    assert "--order" not in (version.folder / "README.md").read_text()  # no option: the edition decides


def test_a_streamed_one_that_was_begun_before_goes_on_to_the_weights_of_one_that_was_not_stopped(inputs, tmp_path):
    whole = student(Store(tmp_path / "whole"), inputs)
    store = Store(tmp_path / "store")
    path = interrupted(store, inputs)
    path.write_text(json.dumps(earlier_form(Request(**json.loads(path.read_text())), STREAMED)))
    version = student(store, inputs)
    (row,) = (version.folder / "metrics.jsonl").read_text().splitlines()
    assert parse_manifest((version.folder / "nst.json").read_text(), "there").request.settings["stream"] is True
    assert version.manifest.files == whole.manifest.files
    assert json.loads(row)["step"] == 6


@pytest.fixture(scope="module")
def twice(inputs, tmp_path_factory):
    """(store, labeled images, settings, teacher) of a network that uses a stochastic-depth layer more than once."""
    register_network("own_patches", Patches, image_size=16)
    store = Store(tmp_path_factory.mktemp("twice"))
    settings = TrainSettings(**TINY | {"model": "own_patches", "noise": {"operations": 1, "dropout": 0.1, "stochastic_depth": 0.5}})
    return store, inputs[0], settings, train(store, "twice", inputs[0], settings, run=RUN)


def test_a_network_that_comes_to_a_layer_again_says_that_it_draws_anew_and_is_found_and_names_options_alone(twice):
    store, labeled, settings, teacher = twice
    assert teacher.manifest.request.settings["network_noise"] == "each use"
    assert train(store, "twice", labeled, settings, run=RUN, progress=InterruptAfter(0)) == teacher
    assert "--network-noise" not in (teacher.folder / "README.md").read_text()
    shown = CliRunner().invoke(app, ["show", teacher.ref, "--store", str(store.root)], catch_exceptions=False).stdout
    assert "each use" in shown


@pytest.mark.parametrize("changes", [{"model": "test_resnet"}, {"noise": {"operations": 1, "dropout": 0.1, "stochastic_depth": 0}}])
def test_one_that_comes_to_each_layer_once_is_known_by_its_settings_alone(twice, tmp_path, changes):
    _, labeled, settings, _ = twice
    settings = TrainSettings.model_validate(settings.model_dump(exclude_unset=True) | changes)
    request = train(Store(tmp_path), "once", labeled, settings, run=RUN).manifest.request
    assert request.settings == settings.for_labeled_only().without_validation().for_request()


def test_one_that_an_earlier_nst_drew_alike_at_each_use_stays_and_another_is_trained(twice, tmp_path):
    _, labeled, settings, teacher = twice
    store = Store(tmp_path)
    request = teacher.manifest.request.model_copy(update={"settings": dict(teacher.manifest.request.settings)})
    request.settings.pop("network_noise")
    earlier = store.find_or_stage(request, "twice", first_generation=0)
    assert earlier.request.digest != teacher.manifest.request.digest
    again = train(store, "twice", labeled, settings, run=RUN)
    assert (again.ref, again.manifest.digest) == ("twice@gen-1", teacher.manifest.digest)


def test_a_teacher_is_noised_as_it_was_trained_also_one_of_an_earlier_nst(twice):
    store, labeled, settings, teacher = twice
    drawn = []
    for version in (teacher, train(store, "earlier", labeled, settings.model_copy(update={"seed": 1}), run=RUN)):
        if version is not teacher:
            manifest = version.manifest
            request = manifest.request.model_copy(update={"settings": dict(manifest.request.settings)})
            request.settings.pop("network_noise")
            digest = content_digest(request, manifest.files, manifest.class_names)
            (version.folder / "nst.json").write_text(manifest.model_copy(update={"request": request, "digest": digest}).model_dump_json())
        noised, _ = load_teacher([version.ref], store, noise_seed=0)
        member = noised.members[0].network
        noised.noise.add_to(member, 3)
        (noise,) = noised.noise._networks
        drawn.append([noise.next_use(1), noise.next_use(1) == 1])
    assert drawn == [[1, False], [1, True]]

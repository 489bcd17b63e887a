"""What trainings on editions with images are known by, and those that an earlier nst sealed or began before their order had a name."""

import json

import pytest
from conftest import TINY
from earlier_store import RUN, network
from watched import Ended

from nst_data.errors import NstError
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.manifest import Request, content_digest, parse_manifest
from nst_data.store.store import Store
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
        student(store, inputs, Ended(3 * 12 - 1))
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
    found = student(store, inputs, Ended(0))
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

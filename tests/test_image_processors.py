"""Image processors of transformers networks: training, probes and features prepare images as they do, or refuse them."""

import json

import pytest
import torch
import transformers
from conftest import TINY, write_class_folders
from nst_cli.main import app
from transformers import AutoImageProcessor, ResNetConfig, ResNetForImageClassification
from typer.testing import CliRunner
from watched import InterruptAfter, RecordingProgress
from wording import mentions, pattern

from nst_data.errors import NstError
from nst_data.sources import open_source
from nst_data.store.manifest import TeacherRequest
from nst_data.store.store import Store
from nst_train.features.embed import embed
from nst_train.networks.image_processors import preparation_changes, processor_data_config, read_processor
from nst_train.networks.models import create_network, evaluation_data_config, save_teacher
from nst_train.networks.outline import create_outline
from nst_train.settings import EmbedSettings, ReadSettings, RunSettings, TrainSettings
from nst_train.training.request import folder_digests
from nst_train.training.train import train
from nst_train.transforms.preprocessing import TimmPreprocessing, to_pillow

RUN = RunSettings(workers=0, decode_threads=1)
QUIET = {"noise": {"operations": 0, "dropout": 0, "stochastic_depth": 0}, "image_size": None, "crop_pct": None}
FEW, READING = EmbedSettings(batch_size=4), ReadSettings(decode_threads=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return open_source(str(write_class_folders(tmp_path_factory.mktemp("labeled"), ["ant", "bee", "cat"], 2)), labeled=True)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A ResNet for five classes in transformers' format, with random weights and without an image processor."""
    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5)).save_pretrained(folder)
    return folder


def with_processor(resnet, folder, kind, options):
    """The name of a copy that has one."""
    ResNetForImageClassification.from_pretrained(resnet).save_pretrained(folder)
    getattr(transformers, kind)(**options).save_pretrained(folder)
    return f"local-dir:{folder}"


def picture():
    """A smooth image that is wider than high, so that cropping and squashing differ."""
    coarse = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse[None], size=(90, 130), mode="bilinear")[0]
    return (fine * 255).to(torch.uint8)


SQUARE, EDGE = {"size": {"height": 32, "width": 32}}, {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
PROCESSORS = {
    "squashed": ("ViTImageProcessor", SQUARE),
    "squashed by CLIP's kind": ("SiglipImageProcessor", SQUARE),
    "not normalized": ("ViTImageProcessor", SQUARE | {"do_normalize": False}),
    "not rescaled": ("ViTImageProcessor", SQUARE | {"do_rescale": False}),
    "squashed and cropped": ("DeiTImageProcessor", {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}}),
    "cropped": ("MobileNetV2ImageProcessor", EDGE),
    "cropped of a side that rounds": ("BitImageProcessor", EDGE | {"size": {"shortest_edge": 37}}),
    "cropped by a share": ("PoolFormerImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": {"height": 36, "width": 36}}),
    "LeViT": ("LevitImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    "small ConvNeXT": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}}),
    "large ConvNeXT": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "divided twice": ("EfficientNetImageProcessor", SQUARE),
    "with an offset": ("EfficientNetImageProcessor", SQUARE | {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_network_is_trained_on_images_as_its_own_processor_prepares_them(tmp_path, name):
    kind, options = PROCESSORS[name]
    getattr(transformers, kind)(**options).save_pretrained(tmp_path)
    own = AutoImageProcessor.from_pretrained(tmp_path)(images=to_pillow(picture()), return_tensors="pt")["pixel_values"][0]
    preprocessing = TimmPreprocessing.from_data_config(processor_data_config(read_processor("net", tmp_path)), exact=True)
    ours = preprocessing.finish(preprocessing.prepare(picture())[None])[0]
    assert ours.shape == own.shape
    assert (ours - own).abs().mean() / own.std() < 0.01


OTHERWISE = {
    "BGR": ("MobileViTImageProcessor", EDGE),
    "BGR, which nothing in its JSON says": ("PPLCNetImageProcessor", {}),
    "not resized": ("ViTImageProcessor", {"do_resize": False}),
    "not square": ("ViTImageProcessor", {"size": {"height": 32, "width": 48}}),
    "as large as the image": ("TextNetImageProcessor", {}),
    "cut before it is resized": ("PerceiverImageProcessor", {}),
    "patches": ("Siglip2ImageProcessor", {}),
}


def test_a_network_is_outlined_without_memory_for_its_weights_whatever_its_processor(tmp_path, resnet):
    settings = TrainSettings(**TINY | QUIET | {"model": with_processor(resnet, tmp_path, *PROCESSORS["squashed"])})
    assert next(create_outline(settings, 3).parameters()).is_meta


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_training_cannot_do_as_the_processor_does_is_refused_before_anything_is_stored(tmp_path, resnet, images, name):
    store, model = Store(tmp_path / "store"), with_processor(resnet, tmp_path / "net", *OTHERWISE[name])
    expected = rf"{model}: its {OTHERWISE[name][0]} .*; choose another model, or only label with this one"
    with pytest.raises(NstError, match=expected):
        train(store, "none", images, TrainSettings(**TINY | QUIET | {"model": model}), run=RUN)
    with pytest.raises(NstError, match=expected):
        embed(store, model, images, FEW, run=READING)
    assert (store.versions(), store.unfinished()) == ([], [])


@pytest.mark.parametrize(
    "stored", [{"image_processor_type": "Nothing"}, {"image_processor_type": "ViTImageProcessor", "image_mean": "red"}]
)
def test_a_processor_that_prepares_nothing_is_one_short_line(tmp_path, resnet, images, stored):
    model = with_processor(resnet, tmp_path / "net", "ViTImageProcessor", SQUARE)
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps(stored))
    expected = rf"^{model}: its image processor cannot be used \([^\n]{{1,120}}\); correct its preprocessor_config\.json$"
    with pytest.raises(NstError, match=expected):
        train(Store(tmp_path / "store"), "none", images, TrainSettings(**TINY | QUIET | {"model": model}), run=RUN)


@pytest.mark.parametrize("name", ["squashed", "squashed and cropped", "cropped", "not normalized", "with an offset"])
@pytest.mark.parametrize("sizes", [{}, {"image_size": 48}, {"image_size": 24, "test_size": 40, "crop_pct": 0.8}])
def test_a_saved_student_labels_images_as_it_was_evaluated_on_them(resnet, tmp_path, name, sizes):
    model = with_processor(resnet, tmp_path / "begun", *PROCESSORS[name])
    settings = TrainSettings(model=model, noise={"stochastic_depth": 0}, **sizes)
    network = create_network(settings, 3).eval()
    (tmp_path / "saved").mkdir()
    save_teacher(network, tmp_path / "saved", ["ant", "bee", "cat"], settings)
    evaluated = TimmPreprocessing.from_data_config(evaluation_data_config(network, settings), exact=True)
    labeled = AutoImageProcessor.from_pretrained(tmp_path / "saved")(images=to_pillow(picture()), return_tensors="pt")["pixel_values"]
    ours = evaluated.finish(evaluated.prepare(picture())[None])
    assert ours.shape == labeled.shape
    assert (ours - labeled).abs().mean() / labeled.std() < 0.01


BEFORE = {
    "squashed": {"crop_mode": "squash"},
    "not normalized": {"mean": [0.0] * 3, "std": [1.0] * 3, "crop_mode": "squash"},
    "cropped": {"crop_pct": 32 / 36},
    "large ConvNeXT": {"crop_pct": 1.0, "crop_mode": "squash"},
}


@pytest.mark.parametrize("name", BEFORE)
def test_a_request_says_in_what_images_are_prepared_otherwise_than_by_an_earlier_nst(resnet, tmp_path, name):
    model = with_processor(resnet, tmp_path, *PROCESSORS[name])
    assert preparation_changes(TrainSettings(model=model)) == BEFORE[name]
    assert preparation_changes(TrainSettings(model=model, crop_pct=0.9)) == {
        key: at for key, at in BEFORE[name].items() if key != "crop_pct"
    }


AS_BEFORE = {
    "a whole side": ("BitImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    "small ConvNeXT": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.9}),
}


@pytest.mark.parametrize("name", AS_BEFORE)
def test_a_request_of_images_that_are_prepared_as_before_is_that_of_before(resnet, tmp_path, images, name):
    model = with_processor(resnet, tmp_path / "net", *AS_BEFORE[name])
    settings = TrainSettings(**TINY | QUIET | {"model": model, "epochs": 0.5})
    request = train(Store(tmp_path / "store"), "net", images, settings, run=RUN).manifest.request
    settings = settings.for_labeled_only().without_validation()
    assert request.settings == settings.for_request() | folder_digests(settings)


@pytest.fixture(scope="module")
def trained(resnet, tmp_path_factory, images):
    """(store, settings, teacher), of a network whose images are squashed."""
    folder = tmp_path_factory.mktemp("trained")
    settings = TrainSettings(**TINY | QUIET | {"model": with_processor(resnet, folder / "net", *PROCESSORS["squashed"]), "epochs": 0.5})
    return Store(folder / "store"), settings, train(Store(folder / "store"), "net", images, settings, run=RUN)


def test_a_training_on_squashed_images_says_so_and_is_found_and_its_command_names_options_alone(trained, images):
    store, settings, teacher = trained
    assert teacher.manifest.request.settings["preparation"] == {"crop_mode": "squash"}
    assert train(store, "net", images, settings, run=RUN, progress=InterruptAfter(0)) == teacher
    assert "--preparation" not in (teacher.folder / "README.md").read_text()
    shown = CliRunner().invoke(app, ["show", teacher.ref, "--store", str(store.root)], catch_exceptions=False).stdout
    assert mentions(shown, "preparation … crop_mode squash")
    labeled = CliRunner().invoke(
        app, ["label", images.location, "--teacher", teacher.ref, "--corpus", "noised", "--noise", "--store", str(store.root)]
    )
    assert labeled.exit_code == 0, labeled.stderr


def test_an_earlier_training_of_the_same_settings_is_another_version_that_stays(trained, images, tmp_path):
    store, settings, teacher = trained
    request = TeacherRequest.model_validate(teacher.manifest.request.model_dump())
    request.settings.pop("preparation")
    earlier = store.find_or_stage(request, "earlier", first_generation=0)
    told = RecordingProgress()
    again = train(store, "earlier", images, settings, run=RUN, progress=told)
    assert again.ref == "earlier@gen-1"
    difference = "(preparation: None instead of {'crop_mode': 'squash'})"
    assert any(mentions(line, f"earlier@gen-0 is unfinished … {difference}, so this is earlier@gen-1") for line in told.lines)
    with pytest.raises(NstError, match=pattern(f"earlier@gen-0 … {difference}")):
        train(store, "earlier", images, settings, generation=0, run=RUN)
    assert earlier.request.digest != again.manifest.request.digest


def test_a_linear_probe_and_features_of_squashed_images_are_others_than_an_earlier_nst_made(trained, images, resnet, tmp_path):
    _, settings, _ = trained
    store = Store(tmp_path / "store")
    probe = train(store, "probe", images, settings.model_copy(update={"probe": True, "pretrained": True}), run=RUN)
    assert probe.manifest.request.settings["preparation"] == {"crop_mode": "squash"}
    assert embed(store, settings.model, images, FEW, run=READING).about.request.settings["crop_mode"] == "squash"
    as_before = with_processor(resnet, tmp_path / "net", *AS_BEFORE["a whole side"])
    assert set(embed(store, as_before, images, FEW, run=READING).about.request.settings) == {
        *("input_size", "interpolation", "mean", "std", "crop_pct", "precision", "rows_per_shard", "batch_size"),
    }


def test_a_processor_that_takes_the_nearest_pixel_is_followed_in_random_crops_too(images, resnet, tmp_path):
    """Such as that of the EfficientNets of transformers; torch resizes so without antialiasing only."""
    model = with_processor(resnet, tmp_path / "net", "ViTImageProcessor", SQUARE | {"resample": 0})
    settings = TrainSettings(**TINY | QUIET | {"model": model, "epochs": 0.5})
    version = train(Store(tmp_path / "store"), "nearest", images, settings, run=RUN)
    assert json.loads((version.folder / "preprocessor_config.json").read_text())["resample"] == 0

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from nst_data.errors import NstError, UsageError
from nst_data.store.store import Store
from nst_train.classifiers.teachers import load_classifier
from nst_train.networks.models import check_accepts_images, check_model_and_optimizer, create_network, save_teacher, training_data_config
from nst_train.noise_settings import Noise
from nst_train.seeds import seed_network
from nst_train.settings import TrainSettings

CLASSES = ["ant", "bee", "cat"]
SETTINGS = TrainSettings(model="test_resnet", image_size=32, crop_pct=1.0, noise=Noise(dropout=0.3, stochastic_depth=0.1))


@pytest.fixture
def saved(tmp_path):
    seed_network(0)
    network = create_network(SETTINGS, len(CLASSES))
    save_teacher(network, tmp_path / "teacher", CLASSES, SETTINGS)
    return network.eval(), tmp_path / "teacher"


def test_a_student_loads_in_timm_and_transformers_with_equal_logits_and_its_class_names(saved):
    from transformers import AutoModelForImageClassification

    network, folder = saved
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
        in_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        in_transformers = AutoModelForImageClassification.from_pretrained(folder).eval()
        # equal up to what a sum in another order changes: the two lie at other addresses in memory
        torch.testing.assert_close(in_timm(images), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(in_transformers(images).logits, expected, rtol=1e-5, atol=1e-6)
    assert in_timm.pretrained_cfg["label_names"] == CLASSES
    assert [in_transformers.config.id2label[index] for index in range(3)] == CLASSES


def test_a_teacher_keeps_its_preprocessing_and_none_of_its_noise(saved, tmp_path):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    assert not {"drop_rate", "drop_path_rate", "num_classes"} & config.get("model_args", {}).keys()
    classifier, lineage = load_classifier(f"local-dir:{folder}", Store(tmp_path / "store"))
    assert classifier.preprocessing.input_size == (3, 32, 32)
    assert classifier.preprocessing.crop_pct == 1.0
    assert classifier.class_names == CLASSES
    assert not classifier.network.training
    assert lineage.weights_sha256


def test_weights_are_safetensors_only(saved):
    _, folder = saved
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert load_file(folder / "model.safetensors").keys() == saved[0].state_dict().keys()


def test_other_weights_have_another_digest(saved, tmp_path):
    network, folder = saved
    store = Store(tmp_path / "store")
    _, before = load_classifier(f"local-dir:{folder}", store)
    with torch.no_grad():
        network.fc.bias += 1
    save_teacher(network, folder, CLASSES, SETTINGS)
    _, after = load_classifier(f"local-dir:{folder}", store)
    assert before.digest != after.digest


def test_training_can_start_from_saved_weights_with_another_number_of_classes(saved):
    network, folder = saved
    warm = create_network(TrainSettings(model=f"local-dir:{folder}", pretrained=True, image_size=32), classes=5)
    assert torch.equal(warm.conv1[0].weight, network.conv1[0].weight)
    assert warm.num_classes == 5


def test_an_unknown_name_suggests_near_ones():
    with pytest.raises(UsageError, match=r"efficientnet_bO: .*did you mean efficientnet_b"):
        check_model_and_optimizer(TrainSettings(model="efficientnet_bO"))
    with pytest.raises(UsageError, match=r"optimizer adamww:.*did you mean adamw\b"):
        check_model_and_optimizer(TrainSettings(model="efficientnet_b0", optimizer="adamww"))


def test_stochastic_depth_on_a_network_without_it_is_one_line_that_says_so():
    with pytest.raises(NstError, match=r"vgg11: does not support drop_path_rate; set noise.stochastic_depth"):
        create_network(TrainSettings(model="vgg11"), 3)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"expected a folder with config.json and model.safetensors"):
        load_classifier(f"local-dir:{tmp_path}", Store(tmp_path / "store"))


def test_a_folder_whose_name_is_not_in_utf_8_is_refused():
    with pytest.raises(NstError, match=r"local-dir:m.xe9: .*UTF-8; rename it"):
        check_model_and_optimizer(TrainSettings(model="local-dir:m\udce9"))


def test_training_never_starts_from_a_pickle(saved):
    _, folder = saved
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(NstError, match=r"model\.safetensors is missing; pickle files \(.bin, .pt\) are not supported"):
        create_network(TrainSettings(model=f"local-dir:{folder}", pretrained=True), 3)


def test_a_misspelled_teacher_of_the_store_is_suggested(tiny_store):
    with pytest.raises(UsageError, match=r"tiny-techer: .*did you mean tiny-teacher@gen-0"):
        load_classifier("tiny-techer", tiny_store[0])


@pytest.mark.parametrize(("model", "size"), [("test_vit", 33), pytest.param("vgg11", 8, marks=pytest.mark.slow)])
def test_a_size_that_the_network_refuses_is_one_line(model, size):
    settings = TrainSettings(model=model, image_size=size, noise={"stochastic_depth": 0})
    network = create_network(settings, 3)
    with pytest.raises(NstError, match=rf"image size {size}:.*{model} \(.+\).*`image_size`"):
        check_accepts_images(network, settings, training_data_config(network, settings), 3)


def test_a_size_that_the_network_takes_passes():
    settings = TrainSettings(model="test_resnet", image_size=17)
    network = create_network(settings, 3)
    check_accepts_images(network, settings, training_data_config(network, settings), 3)
    with pytest.raises(NstError, match=r"test_resnet:.*\(1, 4\) for one image, found \(1, 3\)"):
        check_accepts_images(network, settings, training_data_config(network, settings), 4)


def test_images_that_a_network_cannot_be_trained_on_together_are_refused_and_the_trial_changes_nothing():
    settings = TrainSettings(model="test_resnet", image_size=16)
    network = create_network(settings, 3)
    before, drawn = {name: value.clone() for name, value in network.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(NstError, match=r"test_resnet.*one image of 16 px.*\(Expected more than 1 value.*accumulate"):
        check_accepts_images(network, settings, training_data_config(network, settings), 3, batch_size=1)
    check_accepts_images(network, settings, training_data_config(network, settings), 3, batch_size=2)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize(("model", "size"), [("test_resnet", 64), ("test_vit", None)])
def test_one_image_at_once_is_enough_where_a_channel_has_more_values_or_layers_normalize_by_image(model, size):
    settings = TrainSettings(model=model, image_size=size, noise={"stochastic_depth": 0.1})
    network = create_network(settings, 3)
    check_accepts_images(network, settings, training_data_config(network, settings), 3, batch_size=1)


@pytest.mark.parametrize("frozen", [{"freeze": 0.99, "freeze_by": "layers"}, {"freeze_batch_norm": True}])
def test_frozen_batch_norm_takes_one_image_at_once(frozen):
    settings = TrainSettings(model="test_resnet", image_size=16, pretrained=True, **frozen)
    network = create_network(settings.model_copy(update={"pretrained": False}), 3)
    check_accepts_images(network, settings, training_data_config(network, settings), 3, batch_size=1)


class _OtherInTraining(torch.nn.Module):
    """Gives two outputs in training, as networks with an auxiliary classifier do."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        logits = images.mean(dim=(2, 3))
        return (logits, logits) if self.training else logits


def test_a_network_that_gives_something_else_in_training_is_refused():
    settings = TrainSettings(model="test_resnet", image_size=16, noise=Noise.none())
    with pytest.raises(NstError, match=r"test_resnet:.*\(2, 3\) in training, found tuple"):
        check_accepts_images(_OtherInTraining(), settings, {"input_size": (3, 16, 16)}, 3)


@pytest.mark.parametrize("noise", [Noise(dropout=0, stochastic_depth=0.1), Noise(dropout=0.1, stochastic_depth=0)])
def test_a_network_that_folds_patches_into_the_batch_takes_stochastic_depth_and_dropout(noise):
    settings = TrainSettings(model="tnt_s_legacy_patch16_224", noise=noise)
    network = create_network(settings, 3)
    check_accepts_images(network, settings, training_data_config(network, settings), 3)

"""Students in transformers' format: trained, sealed, and teachers themselves."""

import json

import pytest
import torch
from conftest import TINY
from image_text import write_siglip_classifier
from safetensors.torch import load_file
from test_teachers import write_transformer
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessor,
    CvtConfig,
    CvtForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    HGNetV2Config,
    HGNetV2ForImageClassification,
    HieraConfig,
    HieraForImageClassification,
    LevitConfig,
    LevitForImageClassification,
    LevitForImageClassificationWithTeacher,
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from nst_data.errors import NstError, UsageError
from nst_data.images import decode
from nst_data.progress import Progress
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.classifiers.teachers import load_classifier
from nst_train.features.backbone import load_backbone
from nst_train.labeling.label import label
from nst_train.networks.model_config import check_config
from nst_train.networks.models import create_network
from nst_train.networks.network_noise import add_noise
from nst_train.networks.outline import create_outline, extra_settings
from nst_train.networks.transformers_networks import create_outline_of_type
from nst_train.noise_settings import Noise
from nst_train.settings import LabelRunSettings, LabelSettings, RunSettings, TrainSettings
from nst_train.training.train import train
from nst_train.training.warm_start import load_start_weights
from nst_train.transforms.preprocessing import decode_pixels

RUN = RunSettings(workers=0, decode_threads=1)
QUIET = {"noise": {"operations": 0, "dropout": 0.2, "stochastic_depth": 0}}


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A ResNet for five classes in transformers' format, with random weights."""
    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    BitImageProcessor(**size, image_mean=[0.4] * 3, image_std=[0.2] * 3, resample=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(tiny_store, resnet):
    """A student of that kind, on labeled and pseudo-labeled images."""
    store, labeled, pool = tiny_store
    settings = TrainSettings(**TINY | QUIET | {"model": f"local-dir:{resnet}", "ratio": 2})
    edition = store.open("tiny@gen-1.1")
    return train(store, "resnet", open_source(str(labeled), labeled=True), settings, pseudo=edition, pool=open_source(str(pool)), run=RUN)


def test_a_student_in_transformers_format_is_loaded_by_transformers_with_its_classes(student):
    network = AutoModelForImageClassification.from_pretrained(student.folder)
    assert network.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    processor = AutoImageProcessor.from_pretrained(student.folder)
    assert list(processor.image_mean) == [0.4] * 3
    assert set(student.manifest.files) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert student.verify() == []


def test_it_is_the_next_teacher_and_predicts_as_transformers_own_classes_do(tiny_store, student):
    store, labeled, pool = tiny_store
    classifier, _ = load_classifier(student.ref, store)
    encoded = open_source(str(labeled), labeled=True).read(0)
    prepared = classifier.preprocessing.finish(classifier.preprocessing.prepare(decode_pixels(encoded))[None])
    network = AutoModelForImageClassification.from_pretrained(student.folder).eval()
    with torch.no_grad():
        by_hand = network(**AutoImageProcessor.from_pretrained(student.folder)(images=decode(encoded), return_tensors="pt")).logits
        torch.testing.assert_close(classifier.network(prepared), by_hand)
    assert prepared.shape == (1, 3, 16, 16)  # trained at 16 pixels
    corpus = label(store, "again", student.ref, open_source(str(pool)), LabelSettings(batch_size=4), run=LabelRunSettings(decode_threads=1))
    assert corpus.manifest.request.inputs.teacher.ref == student.ref


def test_starting_from_its_weights_makes_only_a_new_last_layer(tiny_store, resnet):
    store, labeled, _ = tiny_store
    still = {"learning_rate": 1e-30, "epochs": 0.1, "ema_decay": 0.0, "pretrained": True, "model": f"local-dir:{resnet}"}
    version = train(store, "tuned", open_source(str(labeled), labeled=True), TrainSettings(**TINY | QUIET | still), run=RUN)
    found, stored = load_file(version.folder / "model.safetensors"), load_file(resnet / "model.safetensors")
    name = "resnet.embedder.embedder.convolution.weight"
    torch.testing.assert_close(found[name], stored[name])
    assert (found["classifier.1.weight"].shape, stored["classifier.1.weight"].shape) == ((3, 16), (5, 16))
    assert "initial_weights" in version.manifest.request.inputs.by_role


def test_a_vision_transformer_is_trained_at_another_size_from_scratch_and_refuses_it_for_stored_weights(tiny_store, tmp_path):
    store, labeled, _ = tiny_store
    settings = TrainSettings(**TINY | QUIET | {"model": write_transformer(tmp_path), "image_size": 32, "epochs": 0.5})
    source = open_source(str(labeled), labeled=True)
    version = train(store, "vit", source, settings, run=RUN)
    assert AutoModelForImageClassification.from_pretrained(version.folder).config.image_size == 32
    with pytest.raises(
        NstError,
        match=r"\(.*position_embeddings 1x10x16 instead of 1x17x16\)\); remove `image_size` or `pretrained`",
    ):
        train(store, "vit", source, settings.model_copy(update={"pretrained": True}), run=RUN)


def test_one_without_an_image_processor_is_trained_at_the_size_of_its_config(tiny_store, tmp_path):
    store, labeled, _ = tiny_store
    settings = TrainSettings(**TINY | QUIET | {"model": write_transformer(tmp_path), "image_size": None, "pretrained": True, "epochs": 0.5})
    (tmp_path / "preprocessor_config.json").unlink()
    version = train(store, "sized", open_source(str(labeled), labeled=True), settings, run=RUN)
    assert json.loads((version.folder / "preprocessor_config.json").read_text())["crop_size"] == {"height": 24, "width": 24}
    assert version.manifest.request.settings["preparation"] == {"input_size": [3, 24, 24]}  # not the 224 px of an earlier nst


def test_a_network_without_blocks_to_skip_says_so(tiny_store, resnet):
    store, labeled, _ = tiny_store
    settings = TrainSettings(**TINY | {"model": f"local-dir:{resnet}"})
    with pytest.raises(NstError, match=r"ResNetForImageClassification:.*skipped; set noise\.stochastic_depth to 0"):
        train(store, "noisy", open_source(str(labeled), labeled=True), settings, run=RUN)


def test_a_folder_that_holds_no_network_is_refused(tiny_store, tmp_path):
    store, labeled, _ = tiny_store
    settings = TrainSettings(**TINY | {"model": f"local-dir:{tmp_path}"})
    with pytest.raises(UsageError, match=r"local-dir:.*: expected.*config\.json and model\.safetensors"):
        train(store, "none", open_source(str(labeled), labeled=True), settings, run=RUN)


LEVIT = LevitConfig(image_size=64, hidden_sizes=[16] * 3, num_attention_heads=[2] * 3, depths=[1] * 3, key_dim=[8] * 3, num_labels=3)
RARE = {
    "cvt": lambda: CvtForImageClassification(CvtConfig(embed_dim=[8, 16, 16], num_heads=[1, 2, 2], depth=[1, 2, 3], num_labels=3)),
    "levit": lambda: LevitForImageClassification(LEVIT),
    "levit with two heads": lambda: LevitForImageClassificationWithTeacher(LEVIT),
    "hiera": lambda: HieraForImageClassification(
        HieraConfig(embed_dim=8, image_size=[64, 64], depths=[1] * 4, num_heads=[1] * 4, num_labels=3)
    ),
}


def distilled(folder, classes=3):
    """A DeiT with two last layers, whose logits are their mean; its name."""
    names = [f"class {index}" for index in range(classes)]
    about = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    config = DeiTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8, **about
    )
    torch.manual_seed(0)
    DeiTForImageClassificationWithTeacher(config).save_pretrained(folder)
    size = {"size": {"height": 16, "width": 16}, "crop_size": {"height": 16, "width": 16}}
    BitImageProcessor(**size, image_mean=[0.4] * 3, image_std=[0.2] * 3, resample=2).save_pretrained(folder)
    return f"local-dir:{folder}"


def rare(folder, kind):
    RARE[kind]().save_pretrained(folder)
    size = {"size": {"height": 64, "width": 64}, "crop_size": {"height": 64, "width": 64}}
    BitImageProcessor(**size, image_mean=[0.4] * 3, image_std=[0.2] * 3, resample=2).save_pretrained(folder)
    return f"local-dir:{folder}"


@pytest.mark.parametrize("kind", RARE)
def test_rare_networks_are_teachers_and_trained_to_be_teachers(tiny_store, tmp_path, kind):
    _, labeled, _ = tiny_store
    store, name = Store(tmp_path / "store"), rare(tmp_path / "net", kind)
    assert len(load_classifier(name, store)[0].class_names) == 3
    settings = TrainSettings(**TINY | QUIET | {"model": name, "image_size": 64, "pretrained": True, "epochs": 0.5})
    trained = train(store, "rare", open_source(str(labeled), labeled=True), settings, run=RUN)
    assert load_classifier(trained.ref, store)[0].class_names == ["ant", "bee", "cat"]


def test_one_with_a_rate_of_stochastic_depth_for_each_stage_refuses_one_for_all(tmp_path):
    settings = TrainSettings(model=rare(tmp_path, "cvt"), image_size=64, noise={"stochastic_depth": 0.1})
    content = json.loads((tmp_path / "config.json").read_text())
    for make in (lambda: create_outline(settings, 3), lambda: create_outline_of_type(content, settings, 3)):
        with pytest.raises(NstError, match=r"^local-dir:\S+: has a rate of stochastic depth for each stage, not one; set noise\.s\w+ to 0"):
            make()


def test_one_whose_rate_of_stochastic_depth_is_a_whole_number_has_no_blocks_to_skip(tmp_path):
    settings = TrainSettings(model=rare(tmp_path, "levit"), image_size=64, noise={"stochastic_depth": 0.1})
    with pytest.raises(NstError, match=r"has no blocks that can be skipped; set noise\.stochastic_depth to 0"):
        create_outline(settings, 3)


def test_a_last_layer_is_made_anew_whatever_it_is_called(tmp_path):
    """HGNetV2 calls it `fc`."""
    stages = {"stage_in_channels": [8] * 4, "stage_mid_channels": [8] * 4, "stage_out_channels": [8] * 4}
    blocks = {"stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4}
    config = HGNetV2Config(stem_channels=[3, 8, 8], embedding_size=8, hidden_sizes=[8] * 4, num_labels=7, **stages, **blocks)
    HGNetV2ForImageClassification(config).save_pretrained(tmp_path)
    settings = TrainSettings(model=f"local-dir:{tmp_path}", pretrained=True, head_init="zero", noise={"stochastic_depth": 0})
    made, stored = create_network(settings, 3).state_dict(), load_file(tmp_path / "model.safetensors")
    assert made["network.fc.weight"].shape == (3, 8)
    assert not made["network.fc.weight"].any()
    others = [name for name in stored if not name.startswith("fc.")]
    assert all(torch.equal(made[f"network.{name}"], stored[name]) for name in others)


def test_each_of_two_last_layers_is_zeroed_dropped_before_and_keeps_its_classes_in_another_order(tmp_path):
    settings = TrainSettings(model=distilled(tmp_path / "net"), head_init="zero", noise={"stochastic_depth": 0})
    network = create_network(settings, 5).train()
    heads = [network.network.cls_classifier, network.network.distillation_classifier]
    assert not any(weight.any() for head in heads for weight in head.parameters())
    seen = []
    add_noise(network, Noise(dropout=0.5, stochastic_depth=0), Noise.none(), 5, 0).prepare_step(0, range(2), ())
    for head in heads:
        head.register_forward_pre_hook(lambda _, inputs: seen.append(int((inputs[0] == 0).sum())))
    network(torch.randn(2, 3, 16, 16))
    assert len(seen) == 2
    assert all(seen)

    start = settings.model_copy(update={"start": settings.model, "noise": Noise.none()})
    warm = create_network(start, 3)
    load_start_weights(warm, start, Store(tmp_path / "store"), ["class 2", "class 0", "class 1"], Progress())
    stored = load_file(tmp_path / "net" / "model.safetensors")
    for name in ("cls_classifier.weight", "distillation_classifier.weight"):
        assert torch.equal(warm.network.state_dict()[name], stored[name][[2, 0, 1]])


@pytest.mark.parametrize(("model", "named"), [(distilled, "all"), (write_transformer, None)])
def test_a_training_names_that_all_of_several_last_layers_are_trained_as_one(tiny_store, tmp_path, model, named):
    """Before, dropout and first weights of 0 were of one alone: what an earlier nst trained so is another training."""
    _, labeled, _ = tiny_store
    size = {"image_size": 16 if named else 24}
    settings = TrainSettings(**TINY | QUIET | {"model": model(tmp_path / "net"), "epochs": 0.5, **size})
    version = train(Store(tmp_path / "store"), "two", open_source(str(labeled), labeled=True), settings, run=RUN)
    assert version.manifest.request.settings.get("heads") == named


def test_a_probe_of_two_last_layers_is_refused_in_a_line(tmp_path):
    with pytest.raises(NstError, match=r"net: expected one linear layer .*found Linear, Linear; choose another model"):
        load_backbone(distilled(tmp_path / "net"), Store(tmp_path), None, None)


def test_a_classifier_made_of_an_image_text_model_is_a_teacher_and_trained_to_be_one(tiny_store, tmp_path, capfd):
    """Its config.json has the words of the text side, of which its weights have none."""
    _, labeled, pool = tiny_store
    store, name = Store(tmp_path / "store"), write_siglip_classifier(tmp_path / "net", ["x", "y"])
    corpus = label(store, "bugs", name, open_source(str(pool)), LabelSettings(batch_size=4), run=LabelRunSettings(decode_threads=1))
    assert corpus.manifest.class_names == ["x", "y"]
    settings = TrainSettings(**TINY | QUIET | {"model": name, "image_size": None, "pretrained": True, "epochs": 0.5})
    trained = train(store, "bees", open_source(str(labeled), labeled=True), settings, run=RUN)
    assert load_classifier(trained.ref, store)[0].class_names == ["ant", "bee", "cat"]
    assert "eos_token_id" not in capfd.readouterr().err  # transformers finds fault with the published text side


def test_its_image_side_and_a_whole_model_still_have_no_numbers_that_their_weights_cannot_have(tmp_path):
    name = write_siglip_classifier(tmp_path / "net", ["x", "y"])
    path = tmp_path / "net" / "config.json"
    config = json.loads(path.read_text())
    for changed, place in (
        (config | {"vision_config": config["vision_config"] | {"num_hidden_layers": 10**7}}, "vision_config.num_hidden_layers"),
        (config | {"architectures": ["SiglipModel"]}, "text_config.hidden_size"),
    ):
        with pytest.raises(NstError, match=rf"net: config\.json: {place}: expected numbers"):
            check_config(name, path.parent, changed)


def test_a_mobilenet_of_transformers_has_no_dropout_but_that_of_noise(tmp_path):
    """Its config says 0.999, the share to keep in TensorFlow, and transformers drops that share: nothing would be learned."""
    config = MobileNetV1Config(depth_multiplier=0.25, image_size=32, num_labels=3)
    MobileNetV1ForImageClassification(config).save_pretrained(tmp_path)
    settings = TrainSettings(model=f"local-dir:{tmp_path}", noise={"stochastic_depth": 0})
    assert create_network(settings, 3).network.dropout.p == 0
    assert extra_settings(settings, 3) == {"network_noise": "as configured"}  # what an earlier nst trained so is another training

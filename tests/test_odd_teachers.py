"""Models whose config, processor or outputs do not fit: one line before any image is read, and nothing left in the store."""

import json

import pytest
import timm
import torch
from labels import write_teacher
from safetensors.torch import load_file, save_file
from test_teachers import write_transformer
from torch import nn
from wording import mentions

from nst_data.errors import NstError
from nst_data.store.store import Store
from nst_train.classifiers.teachers import load_classifier
from nst_train.networks.image_processors import preparation_changes
from nst_train.networks.models import check_accepts_images, create_network, training_data_config
from nst_train.networks.outline import create_outline
from nst_train.networks.own_networks import register_network
from nst_train.networks.weights import describe_differences, describe_load_error
from nst_train.settings import TrainSettings

NAMES = ["ant", "bee", "cat"]
SETTINGS = {"noise": {"stochastic_depth": 0}, "pretrained": True}


class Pair(nn.Module):
    """Answers with two tensors."""

    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(3, classes)

    def forward(self, images):
        return self.layer(images.mean(dim=(2, 3))), images


register_network("own_pair", Pair, image_size=16)


@pytest.fixture(scope="module")
def timms(tmp_path_factory):
    """The files of a teacher in timm's format."""
    folder = tmp_path_factory.mktemp("timm") / "net"
    write_teacher(folder, NAMES)
    return (folder / "config.json").read_text(), load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def transformers(tmp_path_factory):
    """The files of a teacher in transformers' format."""
    folder = tmp_path_factory.mktemp("transformers") / "net"
    write_transformer(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def of_timm(tmp_path, timms, weights=None, inside=None, **changes):
    """A copy with other values in config.json, or `inside` its pretrained_cfg."""
    config = json.loads(timms[0])
    config["pretrained_cfg"].update(inside or {})
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    save_file(weights or timms[1], tmp_path / "model.safetensors", {"format": "pt"})
    return f"local-dir:{tmp_path}"


def of_transformers(tmp_path, transformers, processor=None, **changes):
    for name, content in transformers.items():
        (tmp_path / name).write_bytes(content)
    for name, values in (("config.json", changes), ("preprocessor_config.json", processor or {})):
        (tmp_path / name).write_text(json.dumps(json.loads(transformers[name]) | values))
    return f"local-dir:{tmp_path}"


def error_line(name, tmp_path):
    """The line that loading ends in."""
    with pytest.raises(NstError, match=r"^local-dir:") as caught:
        load_classifier(name, Store(tmp_path / "store"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()
    return str(caught.value).removeprefix(f"{name}: ")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label_names": ["ant", "bee"]}, "label_names: … each of its 3 classes, found 2 (ant, bee)"),
        ({"label_names": [0, 1, 2]}, "label_names: … 3 non-empty strings, found [0, 1, 2]"),
        ({"label_names": ["ant", "", "cat"]}, "label_names: … 3 non-empty strings, found "),
        ({"label_names": "abc"}, "label_names: … 3 non-empty strings, found abc"),
        ({"label_names": ["ant", "ant", "ant (0)"]}, "expected unique, non-empty class names"),
        ({"model_args": {"global_pool": ""}}, "rejects … RGB image of 16x16 pixels"),
        ({"model_args": {"num_classes": 5}}, "config.json: … found num_classes 3, model_args.num_classes 5"),
        ({"num_classes": 3_000_000_000}, "config.json: num_classes is 3,000,000,000, … no tensor"),
        ({"num_classes": "3"}, 'config.json: num_classes: … positive number …, found "3"'),
        ({"num_classes": 32}, "wrong shape … (fc.weight 3x96 instead of 32x96, "),
        ({"model_args": ["in_chans"]}, 'config.json: model_args: expected an object, found ["in_chans"]'),
        ({"model_args": []}, "config.json: model_args: expected an object, found []"),
        ({"model_args": None}, "config.json: model_args: expected an object, found null"),
        ({"model_args": {"layers": [1_000_000, 1, 1, 1]}}, "config.json: model_args.layers: expected numbers that its "),
        ({"model_args": {"depths": [24, 24, 24, 24]}}, "rows or columns …, found [24, 24, 24, 24]"),
        ({"model_args": {"stem_width": 4_000_000}}, "config.json: model_args.stem_width: expected numbers that its "),
        ({"model_args": {"block_args": {"rd_channels": [[8, 1e300]]}}}, "config.json: model_args.block_args: expected numbers that its "),
        ({"model_args": {"mlp_ratio": float("nan")}}, "config.json: model_args.mlp_ratio: expected numbers that its "),
        ({"pretrained_cfg": 7}, "config.json: pretrained_cfg: expected an object, found 7"),
        ({"model_args": {"checkpoint_path": "secret"}}, "config.json: model_args.checkpoint_path: expected numbers and plain words"),
        ({"model_args": {"pretrained_cfg_overlay": {"file": "x"}}}, "model_args.pretrained_cfg_overlay: expected numbers and plain words"),
        ({"model_args": {"act_layer": ["x", {"y": "../x.pth"}]}}, "model_args.act_layer: expected numbers and plain words"),
        ({"architecture": ["resnet18"]}, "config.json: architecture: … timm"),
        ({"architecture": "/etc/passwd"}, "/etc/passwd is not a timm network"),
        ({"architecture": "hf-hub:owner/name"}, "hf-hub:owner/name is not a timm network"),
        ({"inside": {"crop_pct": "0.9"}}, "crop_pct: … such as 0.875, found '0.9'"),
        ({"inside": {"crop_pct": 1e-9}}, "crop_pct: expected the kept share"),
        ({"inside": {"mean": [0.5]}}, "mean, std: … three numbers …, none of std 0, found [0.5]"),
        ({"inside": {"std": [1, 0, 1]}}, "mean, std: expected three numbers each"),
        ({"inside": {"interpolation": "magic"}}, "interpolation: … bicubic, bilinear …, found 'magic'"),
        ({"inside": {"input_size": [3, 16]}}, "input_size: expected channels, height and width"),
        ({"inside": {"input_size": [3, 90_000, 90_000]}}, "input_size: … up to 8192 pixels"),
        ({"inside": {"crop_mode": "around"}}, "crop_mode: … center, squash or border, found 'around'"),
    ],
)
def test_a_config_of_timm_that_does_not_fit_is_one_line(tmp_path, timms, changes, says):
    assert mentions(error_line(of_timm(tmp_path, timms, **changes), tmp_path), says)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 10_000_000}, {"hidden_size": 10_000_000}, {"depths": [10**9, 1]}])
def test_layers_that_the_weights_of_transformers_cannot_fill_are_not_made(tmp_path, transformers, changes):
    (key,) = changes
    assert f"config.json: {key}: expected numbers that its " in error_line(of_transformers(tmp_path, transformers, **changes), tmp_path)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_of_other_images_than_rgb_is_refused_as_teacher_and_as_student(tmp_path, timms, channels):
    weights = timm.create_model("test_resnet", num_classes=3, in_chans=channels).state_dict()
    name = of_timm(tmp_path, timms, weights, {"input_size": [channels, 16, 16]}, model_args={"in_chans": channels})
    assert mentions(error_line(name, tmp_path), f"RGB images (3 channels), found one of {channels} channel")
    settings = TrainSettings(model=name, image_size=32, **SETTINGS)
    with pytest.raises(NstError, match=rf"RGB images \(3 channels\), found one of {channels} channel"):
        training_data_config(create_network(settings, 3), settings)


def test_one_class_alone_is_no_classifier(tmp_path):
    assert mentions(error_line(write_teacher(tmp_path / "one", ["ant"]), tmp_path), "at least two classes, found 1 (ant)")


def test_weights_that_are_no_numbers_are_named(tmp_path, timms):
    weights = {key: value * float("nan") if key == "fc.weight" else value for key, value in timms[1].items()}
    assert mentions(error_line(of_timm(tmp_path, timms, weights), tmp_path), "NaN or infinite: fc.weight")


def test_weights_of_another_network_are_named_whole(tmp_path, timms):
    weights = {key: value for key, value in timms[1].items() if not key.startswith("conv1.")}
    weights |= {"more.weight": torch.zeros(2), "fc.bias": torch.zeros(7)}
    line = error_line(of_timm(tmp_path, timms, weights), tmp_path)
    assert "loading failed (missing " in line
    assert "tensors (conv1.0.weight, " in line
    assert "; unexpected 1 tensor (more.weight); wrong shape 1 tensor (fc.bias 7 instead of 3)" in line


def test_an_answer_of_two_tensors_is_refused_as_teacher_and_as_student(tmp_path, timms):
    name = of_timm(tmp_path, timms, Pair(3).state_dict(), architecture="own_pair", model_args={})
    assert mentions(error_line(name, tmp_path), "(1, 3) for one image, found a tuple")
    settings = TrainSettings(model="own_pair", image_size=16, noise={"stochastic_depth": 0})
    with pytest.raises(NstError, match=r"own_pair:.*\(1, 3\) for one image, found a tuple"):
        check_accepts_images(Pair(3), settings, {"input_size": (3, 16, 16)}, 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_channels": 1}, "RGB images (3 channels); … num_channels 1"),
        ({"processor": {"size": {"height": 32, "width": 32}}}, "rejects … RGB image of 32x32 pixels"),
        ({"processor": {"size": {"height": 10**6, "width": 10**6}}}, "1 to 8192 pixels, found 1000000"),
        ({"id2label": {"0": "ant", "2": "cat", "3": "dog"}}, "id2label: … classes 0 to 2, found"),
        ({"id2label": ["ant", "bee", "cat"]}, "id2label: … each class, found"),
        ({"id2label": {"0": "ant", "1": "bee", "2": " "}}, "expected unique, non-empty class names"),
        ({"id2label": {"0": "ant", "1": "bee"}}, "wrong shape 2 tensors (classifier.bias 3 instead of 2"),
        (
            {"id2label": None, "num_labels": 3_000_000_000},
            "config.json: num_labels is 3,000,000,000, but no tensor",
        ),
        ({"num_labels": 5}, "config.json: … found num_labels 5, id2label 3"),
        ({"problem_type": "regression"}, "expected a single-label classifier, found problem_type regression"),
        ({"problem_type": "multi_label_classification"}, "found problem_type multi_label_classification"),
        (
            {"attn_implementation": "owner/kernel"},
            "attn_implementation owner/kernel … not run; remove it from config.json",
        ),
        ({"attn_implementation": {"": "owner/kernel"}}, "attn_implementation owner/kernel … remove it from config.json"),
        ({"_attn_implementation": {"a": ["b", "owner/kernel"]}}, "_attn_implementation owner/kernel … remove it from config.json"),
        ({"_attn_implementation_internal": "owner/kernel"}, "_attn_implementation_internal owner/kernel refers to code"),
        ({"parts": [{"vision_config": {"experts_implementation": "owner/k:x"}}]}, "experts_implementation owner/k:x refers to code"),
        ({"model_type": "timm_wrapper", "model_args": {"checkpoint_path": "x.pth"}}, "model_type timm_wrapper: expected `architecture`"),
        ({"backbone_config": {"model_type": "timm_backbone"}}, "model_type timm_backbone: expected `architecture`"),
        ({"backbone": "owner/net", "use_pretrained_backbone": True}, "backbone: … only its own weights"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config: … only its own weights"),
        ({"transformers_weights": "x.bin"}, 'transformers_weights: … safetensors, found "x.bin"'),
        ({"num_labels": "3"}, 'config.json: num_labels: expected a positive number of classes, found "3"'),
        ({"image_size": "24"}, 'config.json: image_size: expected int, list[int], tuple[int, int], found "24"'),
        ({"hidden_act": 7}, "config.json: hidden_act: expected str, found 7"),
        ({"qkv_bias": None}, "config.json: qkv_bias: expected bool, found null"),
        ({"hidden_size": {"a": 16}}, 'config.json: hidden_size: expected int, found {"a": 16}'),
        ({"model_type": 7}, "config.json: model_type: expected the name of a kind of network, found 7"),
        ({"model_type": ["vit"]}, 'config.json: model_type: expected the name of a kind of network, found ["vit"]'),
    ],
)
def test_a_config_of_transformers_that_does_not_fit_is_one_line(tmp_path, transformers, changes, says):
    assert mentions(error_line(of_transformers(tmp_path, transformers, **changes), tmp_path), says)


@pytest.mark.parametrize("key", ["image_size", "id2label", "num_labels", "model_type"])
def test_a_value_of_the_wrong_type_is_the_same_line_for_a_student(tmp_path, transformers, key):
    name = of_transformers(tmp_path, transformers, **{key: [{"a": 1}]})
    settings = TrainSettings(model=name, **SETTINGS)
    for make in (lambda: create_network(settings, 3), lambda: create_outline(settings, 3), lambda: preparation_changes(settings)):
        with pytest.raises(NstError, match=rf"^{name}: config.json: {key}: expected [^\n]*, found \[") as caught:
            make()
        assert str(caught.value).removeprefix(f"{name}: ") == error_line(name, tmp_path)


def test_arguments_that_are_numbers_and_plain_words_are_taken(tmp_path, timms):
    name = of_timm(tmp_path, timms, model_args={"drop_path_rate": 0.1, "drop_rate": 0.1, "global_pool": "avg"})
    assert load_classifier(name, Store(tmp_path / "store"))[0].class_names == NAMES


def test_an_adapter_of_another_model_is_not_followed(tmp_path, transformers):
    name = of_transformers(tmp_path, transformers)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base", "peft_type": "LORA"}')
    assert mentions(error_line(name, tmp_path), "adapter_config.json … another model's weights")


@pytest.mark.parametrize("model_type", ["vit", "stranger"])
def test_code_beside_a_model_is_never_run(tmp_path, transformers, model_type):
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    code = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Net", "AutoImageProcessor": "code.Processor"}
    name = of_transformers(tmp_path, transformers, processor={"auto_map": code}, auto_map=code, model_type=model_type)
    if model_type == "vit":
        assert load_classifier(name, Store(tmp_path / "store"))[0].class_names == NAMES
    else:
        assert "loading failed (" in error_line(name, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_config_that_is_no_object_is_one_line(tmp_path, timms):
    name = of_timm(tmp_path, timms)
    (tmp_path / "config.json").write_text("[1]")
    assert error_line(name, tmp_path) == "not a timm or transformers config.json (a JSON list)"


def test_images_are_resized_by_pillow_where_torchvision_cannot(tmp_path, timms):
    classifier, _ = load_classifier(of_timm(tmp_path, timms, inside={"interpolation": "lanczos"}), Store(tmp_path / "store"))
    assert classifier.preprocessing.prepare(torch.zeros(3, 40, 50, dtype=torch.uint8)).shape == (3, 16, 16)


def test_what_torch_says_of_weights_is_one_line_with_counts_and_the_first_names():
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    with pytest.raises(RuntimeError, match="size mismatch") as caught:
        network.load_state_dict({"0.weight": torch.zeros(3, 2), "x": torch.zeros(1)})
    expected = "missing 7 tensors (0.bias, 1.weight, 1.bias, and 4 more); unexpected 1 tensor (x)"
    assert describe_load_error(caught.value) == f"{expected}; wrong shape 1 tensor (0.weight 3x2 instead of 2x2)"
    assert describe_load_error(ValueError("first\nsecond")) == "first"
    assert describe_differences([], ["a"], {}) == "unexpected 1 tensor (a)"

"""Freezing: whole blocks from the first, and the stem before them, as they are in evaluation."""

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn
from torchvision.models import resnet18
from transformers import ResNetConfig, ResNetForImageClassification, SwinConfig, SwinForImageClassification

from nst_train.networks.freezing import freeze
from nst_train.networks.network_noise import StochasticDepth, add_noise
from nst_train.noise_settings import Noise
from nst_train.settings import TrainSettings


def frozen(network, share, **changes):
    """A network in training of which a share is frozen."""
    network.train()
    freeze(network, TrainSettings(model="x", start="x@gen-0", freeze=share, **changes))
    return network


def is_frozen(module):
    """True or False; None where one part is and another is not."""
    found = {one.training for one in module.modules()} | {weight.requires_grad for weight in module.parameters()}
    return None if len(found) == 2 else found == {False}


def b0(stochastic_depth=0.2):
    with torch.device("meta"):
        return timm.create_model("tf_efficientnet_b0", drop_path_rate=stochastic_depth)


# the released code's fix_layer_num of B0's sixteen blocks: the stem is fixed with them, the head never
@pytest.mark.parametrize(("share", "blocks"), [(0.01, 0), (0.5, 8), (0.9, 14), (0.95, 15), (0.999, 15)])
def test_whole_blocks_of_b0_are_frozen_with_the_stem_and_without_the_head(share, blocks):
    network = frozen(b0(), share)
    assert [is_frozen(block) for stage in network.blocks for block in stage] == [True] * blocks + [False] * (16 - blocks)
    assert is_frozen(network.conv_stem)
    assert is_frozen(network.bn1)
    assert not any(is_frozen(part) for part in (network.conv_head, network.bn2, network.classifier))


def test_stochastic_depth_is_off_in_frozen_blocks():
    """B0 has it in all blocks but the first: of fifteen at 0.95 that of the last is left."""
    network = frozen(b0(), 0.95)
    noise = Noise.none().model_copy(update={"stochastic_depth": 0.2})
    add_noise(network, noise, noise, 1000, seed=0)
    assert [one.training for one in network.modules() if isinstance(one, StochasticDepth)] == [False] * 14 + [True]


def test_an_earlier_training_left_it_on_in_all_fifteen():
    network = frozen(b0(), 0.95, freeze_by="layers")
    assert [one.training for one in network.modules() if isinstance(one, DropPath)] == [True] * 15
    assert not network.conv_stem.training


@pytest.mark.parametrize(
    ("name", "number"), [("resnet50", 16), ("convnext_tiny", 18), ("swin_tiny_patch4_window7_224", 12), ("vit_tiny_patch16_224", 12)]
)
def test_other_networks_are_cut_between_blocks_too(name, number):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=3)
    blocks = [one for one in network.modules() if type(one).__name__ in ("Bottleneck", "ConvNeXtBlock", "SwinTransformerBlock", "Block")]
    assert len(blocks) == number
    frozen(network, 0.75)
    assert list(map(is_frozen, blocks)) == [True] * (number * 3 // 4) + [False] * (number - number * 3 // 4)
    assert not is_frozen(network.get_classifier())
    assert network.training


def test_a_vits_tokens_are_frozen_with_its_first_blocks_and_the_last_block_is_trained():
    network = frozen(timm.create_model("test_vit", num_classes=3), 0.5)
    assert not network.cls_token.requires_grad
    assert not network.pos_embed.requires_grad
    assert is_frozen(network.patch_embed)
    assert is_frozen(network.blocks[-1]) is False


def small_resnet():
    return ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[2, 2], layer_type="bottleneck"))


def small_swin():
    return SwinForImageClassification(SwinConfig(image_size=32, patch_size=2, embed_dim=4, depths=[2, 2], num_heads=[1, 2], window_size=4))


@pytest.mark.parametrize(
    ("network", "kind"), [(small_resnet, "ResNetBottleNeckLayer"), (small_swin, "SwinLayer"), (resnet18, "BasicBlock")]
)
def test_networks_that_are_not_timms_are_cut_between_blocks_too(network, kind):
    network = frozen(network(), 0.5)
    blocks = [one for one in network.modules() if type(one).__name__ == kind]
    assert list(map(is_frozen, blocks)) == [True] * (len(blocks) // 2) + [False] * (len(blocks) // 2)
    assert not is_frozen(list(network.modules())[-1])


def test_a_network_without_blocks_is_frozen_layer_by_layer():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    frozen(network, 0.7)
    assert [is_frozen(layer) for layer in network] == [True, True, False, False, False]

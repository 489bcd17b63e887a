"""How a new last layer begins: `head_init`."""

import pytest
import timm
import torch
from conftest import TINY
from test_teachers import write_transformer
from timm.models import save_for_hf
from torch import nn

from nst_data.errors import NstError
from nst_train.networks.heads import zero_heads
from nst_train.networks.models import create_network
from nst_train.seeds import seed_network
from nst_train.settings import TrainSettings


def made(classes, **changes):
    seed_network(0)
    return create_network(TrainSettings(**TINY | {"image_size": None, "head_init": "zero"} | changes), classes).eval()


def logits(network, side_px):
    with torch.no_grad():
        return network(torch.randn(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(0)))


def test_all_classes_are_equally_likely_at_first_and_the_rest_is_as_without_it():
    zero, own = made(3), made(3, head_init="network")
    assert not logits(zero, 16).any()
    assert logits(own, 16).any()
    differs = [name for name, value in own.state_dict().items() if not torch.equal(value, zero.state_dict()[name])]
    assert differs == ["fc.weight", "fc.bias"]


def test_each_of_several_classifiers_begins_so():
    network = made(3, model="deit_tiny_distilled_patch16_224", noise={"operations": 0})
    assert not any(weight.any() for head in (network.head, network.head_dist) for weight in head.parameters())
    assert network.blocks[0].attn.qkv.weight.any()


def test_of_a_head_of_several_layers_only_the_last_one_does():
    """Even where one before it has as many outputs: zeros in both would never learn."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.GELU(), nn.Linear(4, 4))
    zero_heads(network, 4, "mine")
    assert network[1].weight.any()
    assert not network[3].weight.any()
    with pytest.raises(NstError, match=r"Sequential:.*7 outputs, found none.*noise\.dropout to 0"):
        zero_heads(network, 7, "mine")


def test_a_published_last_layer_for_as_many_classes_stays(tmp_path):
    with torch.random.fork_rng():
        published = timm.create_model("test_resnet", num_classes=5).eval()
    save_for_hf(published, str(tmp_path / "timm"), safe_serialization=True)
    model = f"local-dir:{tmp_path / 'timm'}"
    assert torch.equal(made(5, model=model, pretrained=True).fc.weight, published.fc.weight)
    assert not made(4, model=model, pretrained=True).fc.weight.any()
    assert not made(5, model=model).fc.weight.any()  # from scratch


def test_one_of_transformers_does_likewise(tmp_path):
    quiet = {"model": write_transformer(tmp_path), "noise": {"operations": 0, "stochastic_depth": 0}}
    assert not made(7, **quiet, pretrained=True).network.classifier.weight.any()
    assert not made(3, **quiet).network.classifier.weight.any()
    stored = made(3, **quiet, pretrained=True).network
    assert stored.config.num_labels == 3
    assert stored.classifier.weight.any()

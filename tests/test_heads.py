"""How a new last layer begins: `head_init`."""

import pytest
import timm
import torch
from conftest import TINY
from test_teachers import write_transformer
from timm.models import save_for_hf
from timm.models.volo import VOLO
from torch import nn

from nst_data.errors import NstError
from nst_train.networks.heads import zero_heads
from nst_train.networks.models import create_network
from nst_train.networks.network_noise import add_noise
from nst_train.networks.outline import extra_settings
from nst_train.noise_settings import Noise
from nst_train.seeds import seed_network
from nst_train.settings import TrainSettings


def make_network(classes, **changes):
    seed_network(0)
    return create_network(TrainSettings(**TINY | {"image_size": None, "head_init": "zero"} | changes), classes).eval()


def logits(network, side_px):
    with torch.no_grad():
        return network(torch.randn(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(0)))


def test_all_classes_are_equally_likely_at_first_and_the_rest_is_as_without_it():
    zero, own = make_network(3), make_network(3, head_init="network")
    assert not logits(zero, 16).any()
    assert logits(own, 16).any()
    differs = [name for name, value in own.state_dict().items() if not torch.equal(value, zero.state_dict()[name])]
    assert differs == ["fc.weight", "fc.bias"]


def test_each_of_several_classifiers_begins_so():
    network = make_network(3, model="deit_tiny_distilled_patch16_224", noise={"operations": 0})
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
    assert torch.equal(make_network(5, model=model, pretrained=True).fc.weight, published.fc.weight)
    assert not make_network(4, model=model, pretrained=True).fc.weight.any()
    assert not make_network(5, model=model).fc.weight.any()  # from scratch


def test_one_of_transformers_does_likewise(tmp_path):
    quiet = {"model": write_transformer(tmp_path), "noise": {"operations": 0, "stochastic_depth": 0}}
    assert not make_network(7, **quiet, pretrained=True).network.classifier.weight.any()
    assert not make_network(3, **quiet).network.classifier.weight.any()
    stored = make_network(3, **quiet, pretrained=True).network
    assert stored.config.num_labels == 3
    assert stored.classifier.weight.any()


def small_volo():
    stages = {"layers": (1, 1), "embed_dims": (8, 16), "num_heads": (1, 1), "mlp_ratio": 1.0, "downsamples": (True, False)}
    network = VOLO(num_classes=3, img_size=64, stem_hidden_dim=8, outlook_attention=(True, False), **stages)
    network.pretrained_cfg = timm.models.get_pretrained_cfg("volo_d1_224").to_dict()
    return network


def test_an_auxiliary_head_that_adds_to_the_logits_begins_so_too_and_is_dropped_before():
    """VOLO's `get_classifier` does not name it; timm's config does."""
    network = small_volo()
    zero_heads(network, 3, "volo")
    assert not logits(network.eval(), 64).any()

    network = small_volo().train()
    seen = []
    add_noise(network, Noise(dropout=0.5, stochastic_depth=0), Noise.none(), 3, 0).prepare_step(0, range(2), ())
    network.aux_head.register_forward_pre_hook(lambda _, inputs: seen.append(float((inputs[0] == 0).float().mean())))
    logits(network, 64)
    assert seen == [pytest.approx(0.5, abs=0.1)]


def test_both_layers_of_one_classifier_begin_so():
    """RepViT averages them."""
    network = make_network(3, model="repvit_m1", noise={"stochastic_depth": 0})
    assert not logits(network, 64).any()
    assert not any(weight.any() for layer in (network.head.head.l, network.head.head_dist.l) for weight in layer.parameters())


@pytest.mark.parametrize(("model", "named"), [("repvit_m1", "all"), ("volo_d1_224", "all"), ("deit_tiny_distilled_patch16_224", None)])
def test_a_training_names_that_heads_are_zeroed_that_an_earlier_nst_passed_over(model, named):
    assert extra_settings(TrainSettings(model=model, noise={"stochastic_depth": 0}), 3).get("heads") == named

import pytest
import torch
from torch import nn

from nst_data.errors import NstError
from nst_train.networks.models import create_network
from nst_train.networks.network_noise import NetworkNoise, Rates, add_noise
from nst_train.noise_settings import Noise, PseudoNoise
from nst_train.seeds import seed_network
from nst_train.settings import TrainSettings

CPU = torch.device("cpu")
NONE = Noise.none()
IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def noise(**rates):
    return NONE.model_copy(update=rates)


def noised(labeled, pseudo, model="test_resnet"):
    """A network in training, and its noise; no batch-norm starts at 0, as timm's last of each block do: skipping one shows."""
    rates = PseudoNoise(dropout=pseudo.dropout, stochastic_depth=pseudo.stochastic_depth)
    size = {"image_size": 16} if model == "test_resnet" else {}
    settings = TrainSettings(model=model, noise=labeled, pseudo_noise=rates, **size)
    seed_network(0)
    network = create_network(settings, 3).train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
    return network, add_noise(network, labeled, pseudo, 3, seed=0)


@torch.no_grad()
def logits(network, drawn, step=0, labeled=range(4), pseudo=range(4), images=IMAGES):
    drawn.begin(step, labeled, pseudo)
    return network(images)


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"stochastic_depth": 0.5}])
def test_dropout_and_stochastic_depth_each_reach_the_network_and_only_while_it_trains(rates):
    network, drawn = noised(noise(**rates), noise(**rates))
    assert not torch.equal(logits(network, drawn, step=0), logits(network, drawn, step=1))
    assert torch.equal(logits(network, drawn, step=1), logits(network, drawn, step=1))
    network.eval()
    assert torch.equal(logits(network, drawn, step=0), logits(network, drawn, step=1))


def test_the_rates_are_those_of_each_kind_of_image_and_what_stays_is_scaled_up():
    drawn = NetworkNoise(0, CPU)
    drawn.begin(0, range(100), range(200))
    kept = drawn.kept(Rates(0.5, 0.2), 1000, layer=1)
    assert kept.shape == (300, 1000)
    assert set(kept[:100].unique().tolist()) == {0.0, 2.0}
    assert set(kept[100:].unique().tolist()) == {0.0, 1.25}
    assert float((kept[:100] > 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float((kept[100:] > 0).float().mean()) == pytest.approx(0.8, abs=0.01)
    assert torch.equal(drawn.kept(Rates(0.0, 0.0), 1000, layer=1), torch.ones(300, 1000))


def test_what_is_dropped_is_as_good_as_random():
    """Over images, values, layers and steps no two rows agree more than chance lets them."""
    drawn = NetworkNoise(0, CPU)
    rows = []
    for step in range(3):
        drawn.begin(step, range(10), range(10))
        rows += [drawn.kept(Rates(0.5, 0.5), 2000, layer) for layer in (1, 2)]
    together = torch.corrcoef(torch.cat(rows)).fill_diagonal_(0)
    assert float(together.abs().max()) < 0.11  # 5 standard deviations of 2,000 fair coins


def test_pseudo_labeled_images_without_noise_pass_as_if_there_were_none():
    """A network without batch-norm: what happens to an image depends on no other."""
    network, drawn = noised(noise(dropout=0.5, stochastic_depth=0.5), NONE, "test_vit")
    images = torch.randn(8, 3, *network.default_cfg["input_size"][1:], generator=torch.Generator().manual_seed(0))
    with_noise = logits(network, drawn, images=images)
    without = logits(network.eval(), drawn, images=images)
    torch.testing.assert_close(with_noise[4:], without[4:])
    assert (with_noise[:4] - without[:4]).abs().amax(dim=1).min() > 1e-3


def test_a_step_is_noised_the_same_however_it_is_spread():
    network, drawn = noised(noise(dropout=0.3, stochastic_depth=0.3), noise(dropout=0.6), "test_vit")
    images = torch.randn(8, 3, *network.default_cfg["input_size"][1:], generator=torch.Generator().manual_seed(0))
    whole = logits(network, drawn, images=images)
    first = logits(network, drawn, labeled=range(2), pseudo=range(2), images=images[[0, 1, 4, 5]])
    second = logits(network, drawn, labeled=range(2, 4), pseudo=range(2, 4), images=images[[2, 3, 6, 7]])
    torch.testing.assert_close(torch.cat([first[:2], second[:2], first[2:], second[2:]]), whole)


def test_the_rate_of_stochastic_depth_rises_from_block_to_block():
    network, _ = noised(noise(stochastic_depth=0.2), noise(stochastic_depth=0.1))
    rates = [one._rates for one in network.modules() if type(one).__name__ == "StochasticDepth"]
    assert len(rates) > 2
    assert [one.labeled for one in rates] == sorted(one.labeled for one in rates)
    assert (rates[-1].labeled, rates[-1].pseudo) == pytest.approx((0.2, 0.1))


def test_a_network_without_a_place_for_noise_says_which_setting_to_change():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(NstError, match=r"Sequential:.*skipped; set noise\.stochastic_depth to 0"):
        add_noise(plain, noise(stochastic_depth=0.2), NONE, 5, 0)
    with pytest.raises(NstError, match=r"Sequential:.*3 outputs.*none; set noise\.dropout to 0"):
        add_noise(plain, noise(dropout=0.2), NONE, 3, 0)

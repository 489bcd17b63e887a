import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn
from transformers import BeitConfig, BeitForImageClassification, Dinov2Config, Dinov2ForImageClassification

from nst_data.errors import NstError
from nst_train.networks.models import check_accepts_images, create_network
from nst_train.networks.network_noise import NetworkNoise, Rates, StochasticDepth, add_noise, drop_paths_of
from nst_train.networks.outline import extra_settings, reuses_stochastic_depth
from nst_train.networks.own_networks import register_network
from nst_train.noise_settings import Noise, PseudoNoise
from nst_train.seeds import seed_network
from nst_train.settings import TrainSettings

CPU = torch.device("cpu")
NONE = Noise.none()
IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Patches(nn.Module):
    """Takes images of 16 px apart into four patches, and uses its DropPath twice on patches and once on images, like TNT."""

    def __init__(self, classes, drop_path_rate=0.0):
        super().__init__()
        self.embed, self.drop_path = nn.Conv2d(3, 8, 8, stride=8), DropPath(drop_path_rate)
        self.attention, self.mlp, self.outer, self.head = (nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, classes))

    def forward(self, images):
        rows = self.apart(self.embed(images).flatten(2).transpose(1, 2))
        rows = rows + self.drop_path(self.attention(rows))
        rows = rows + self.drop_path(self.mlp(rows))
        means = self.together(rows, len(images)).mean(dim=1)
        return self.head(means + self.drop_path(self.outer(means)))

    def apart(self, patches):
        return patches.flatten(0, 1)

    def together(self, rows, images):
        return rows.unflatten(0, (images, 4))


class PatchByPatch(Patches):
    """The first patch of each image, then the second of each."""

    def apart(self, patches):
        return patches.transpose(0, 1).flatten(0, 1)

    def together(self, rows, images):
        return rows.unflatten(0, (4, images)).transpose(0, 1)


class PatchesFirst(Patches):
    """Of shape (patches, images, width)."""

    def apart(self, patches):
        return patches.transpose(0, 1)

    def together(self, rows, images):
        return rows.transpose(0, 1)


register_network("own_patches", Patches, image_size=16)


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
    drawn.prepare_step(step, labeled, pseudo)
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
    drawn.prepare_step(0, range(100), range(200))
    kept = drawn.sample_factors(Rates(0.5, 0.2), 1000, layer=1)
    assert kept.shape == (300, 1000)
    assert set(kept[:100].unique().tolist()) == {0.0, 2.0}
    assert set(kept[100:].unique().tolist()) == {0.0, 1.25}
    assert float((kept[:100] > 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float((kept[100:] > 0).float().mean()) == pytest.approx(0.8, abs=0.01)
    assert torch.equal(drawn.sample_factors(Rates(0.0, 0.0), 1000, layer=1), torch.ones(300, 1000))


def test_what_is_dropped_is_as_good_as_random():
    """Over images, values, layers and steps no two rows agree more than chance lets them."""
    drawn = NetworkNoise(0, CPU)
    rows = []
    for step in range(3):
        drawn.prepare_step(step, range(10), range(10))
        rows += [drawn.sample_factors(Rates(0.5, 0.5), 2000, layer) for layer in (1, 2)]
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


def drops_of(network, drawn, **begun):
    """What each use of a place for stochastic depth multiplied the rows with, in one forward pass."""
    kept = []
    for place in network.modules():
        if isinstance(place, StochasticDepth):
            place.register_forward_hook(lambda _, inputs, output: kept.append((output / inputs[0]).flatten(1)[:, 0].round(decimals=4)))
    logits(network, drawn, **begun)
    return kept


def test_a_place_that_a_forward_pass_comes_to_again_draws_anew_for_each_row_and_at_first_as_ever():
    images = torch.randn(400, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network, drawn = noised(noise(stochastic_depth=0.5), noise(stochastic_depth=0.5), "own_patches")
    attention, mlp, outer = drops_of(network, drawn, labeled=range(200), pseudo=range(200), images=images)
    drawn.prepare_step(0, range(200), range(200))
    assert torch.equal(attention, drawn.sample_factors(Rates(0.5, 0.5), 4, layer=1).flatten())
    assert (len(mlp), len(outer)) == (1600, 400)
    assert float((attention == mlp).float().mean()) == pytest.approx(0.5, abs=0.06)  # 5 standard deviations
    assert float((attention[:400] == outer).float().mean()) == pytest.approx(0.5, abs=0.125)
    assert float((attention[::4] == attention[1::4]).float().mean()) == pytest.approx(0.5, abs=0.125)


def test_what_is_dropped_is_what_an_earlier_nst_dropped():
    drawn = NetworkNoise(5, torch.device("cpu"))
    drawn.prepare_step(3, range(4), range(2))
    kept = ["0000", "1000", "0011", "1010", "1011", "0100"]
    assert ["".join(str(int(value > 0)) for value in image) for image in drawn.sample_factors(Rates(0.5, 0.25), 4, 2)] == kept


def test_a_network_that_uses_each_layer_once_draws_the_numbers_of_an_earlier_nst():
    network, drawn = noised(noise(stochastic_depth=0.5), noise(stochastic_depth=0.2), "test_vit")
    rates = [place._rates for place in network.modules() if isinstance(place, StochasticDepth)]
    images = torch.randn(8, 3, *network.default_cfg["input_size"][1:], generator=torch.Generator().manual_seed(0))
    found = drops_of(network, drawn, step=3, images=images)
    drawn.prepare_step(3, range(4), range(4))
    assert [one.tolist() for one in found] == [
        pytest.approx(drawn.sample_factors(rate, 1, layer).flatten().tolist(), abs=1e-3) for layer, rate in enumerate(rates, 1)
    ]


def test_patches_too_are_noised_by_the_rate_of_their_image_and_the_same_however_a_step_is_spread():
    network, drawn = noised(noise(stochastic_depth=0.5), NONE, "own_patches")
    whole = logits(network, drawn)
    first = logits(network, drawn, labeled=range(2), pseudo=range(2), images=IMAGES[[0, 1, 4, 5]])
    second = logits(network, drawn, labeled=range(2, 4), pseudo=range(2, 4), images=IMAGES[[2, 3, 6, 7]])
    torch.testing.assert_close(torch.cat([first[:2], second[:2], first[2:], second[2:]]), whole)
    without = logits(network.eval(), drawn)
    torch.testing.assert_close(whole[4:], without[4:])
    assert (whole[:4] - without[:4]).abs().amax(dim=1).max() > 1e-3


@pytest.mark.parametrize("network", [PatchByPatch(3, 0.1), PatchesFirst(3, 0.1)])
def test_stochastic_depth_of_rows_that_are_not_an_images_own_is_refused_before_any_step(network):
    settings = TrainSettings(model="own_patches", noise=noise(stochastic_depth=0.1))
    with pytest.raises(
        NstError, match=r"own_patches: stochastic depth .* does not work .*\(of a tensor of shape.*set noise\.stochastic_depth"
    ):
        check_accepts_images(network, settings, {"input_size": (3, 16, 16)}, 3)
    check_accepts_images(Patches(3, 0.1), settings, {"input_size": (3, 16, 16)}, 3)


TINY_OF_TRANSFORMERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
OF_TRANSFORMERS = {
    "beit": lambda: BeitForImageClassification(BeitConfig(**TINY_OF_TRANSFORMERS, intermediate_size=16, num_labels=3)),
    "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(**TINY_OF_TRANSFORMERS, num_labels=3)),
}


@pytest.mark.parametrize("model", OF_TRANSFORMERS)
def test_blocks_of_transformers_that_have_one_place_for_two_branches_draw_again(tmp_path, model):
    OF_TRANSFORMERS[model]().save_pretrained(tmp_path)
    settings = TrainSettings(model=f"local-dir:{tmp_path}", noise=noise(stochastic_depth=0.5), image_size=16)
    assert reuses_stochastic_depth(settings, 3)
    network = create_network(settings, 3).train()
    for name, weight in network.named_parameters():
        if "lambda" in name:  # of layer scale, which is nearly 0 at first
            nn.init.ones_(weight)
    found = drops_of(network, add_noise(network, settings.noise, NONE, 3, 0), labeled=range(8), pseudo=())
    assert len(found) == 2 * len({id(place) for place in network.modules() if isinstance(place, StochasticDepth)})
    assert any(not torch.equal(first, second) for first, second in zip(found[::2], found[1::2], strict=True))


@pytest.mark.parametrize(
    ("model", "expected"), [("test_vit", False), ("test_resnet", False), ("visformer_tiny", True), ("tnt_s_legacy_patch16_224", True)]
)
def test_whether_a_network_draws_again_is_known_by_its_outline(model, expected):
    assert reuses_stochastic_depth(TrainSettings(model=model, noise=noise(stochastic_depth=0.1, dropout=0.1)), 3) is expected
    assert not reuses_stochastic_depth(TrainSettings(model=model, noise=noise(dropout=0.1)), 3)


def test_a_network_that_needs_numbers_tells_too_whether_it_draws_again():
    class Asking(Patches):
        def forward(self, images):
            assert images.sum().item() == 0
            return super().forward(images)

    register_network("own_asking", Asking, image_size=16)
    assert reuses_stochastic_depth(TrainSettings(model="own_asking", noise=noise(stochastic_depth=0.1)), 3)


@pytest.mark.parametrize("model", ["ghostnet_050", "nest_tiny"])
def test_a_network_of_timm_drops_nothing_that_the_settings_do_not_ask_for(model):
    """By default GhostNet drops a fifth of its features, and NesT blocks at a rate up to 0.5."""
    settings = TrainSettings(model=model, noise=NONE)
    with torch.device("meta"):
        network = create_network(settings, 3)
    assert not getattr(network, "drop_rate", 0)
    assert not any(rate for *_, rate in drop_paths_of(network))
    assert extra_settings(settings, 3) == {"network_noise": "as configured"}  # what an earlier nst trained so is another training
    assert extra_settings(settings.model_copy(update={"probe": True}), 3) == {}


def test_its_initial_weights_are_those_that_it_has_with_its_own_noise():
    seed_network(0)
    with_noise = timm.create_model("ghostnet_050", num_classes=3).state_dict()
    seed_network(0)
    without = create_network(TrainSettings(model="ghostnet_050", noise=NONE), 3).state_dict()
    assert all(torch.equal(value, without[name]) for name, value in with_noise.items())


def test_a_network_whose_own_stochastic_depth_is_replaced_trains_as_before():
    assert extra_settings(TrainSettings(model="nest_tiny"), 3) == {}

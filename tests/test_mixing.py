"""Mixup and cutmix: timm's formulas, the same images mixed by the same share however a step is spread."""

import numpy as np
import pytest
import torch
from conftest import TINY, write_class_folders, write_tiny_recipe
from test_step import make_step_and_batch
from timm.data import Mixup

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source
from nst_train.batches.batches import TrainingBatch
from nst_train.recipes.checks import check_recipe
from nst_train.recipes.reading import load_recipe
from nst_train.recipes.recipe import GenerationSettings
from nst_train.seeds import derive_seed
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.loss import joint_cross_entropies
from nst_train.training.mixing import partner_positions, sample_mixing
from nst_train.training.train import train

BOTH = {"mixup": 0.4, "cutmix": 1.0}
QUIET = {"operations": 0, "dropout": 0, "stochastic_depth": 0}


def images_of(labeled, ratio, side_px=20):
    return torch.randn(labeled * (1 + ratio), 3, side_px, side_px + 4, generator=torch.Generator().manual_seed(0))


def settings(**changes):
    return TrainSettings(**TINY | changes)


def timms(monkeypatch, images, others, drawn, **alphas):
    """(images, share kept) by timm's Mixup: it mixes an image with the one as far from the end, so all are there twice."""
    share, place = iter(drawn["shares"]), iter(drawn.get("middle", ()))
    monkeypatch.setattr(np.random, "rand", lambda *_: 0.0)
    monkeypatch.setattr(np.random, "beta", lambda *_: next(share))
    monkeypatch.setattr(np.random, "randint", lambda *_, **__: next(place))
    timm = Mixup(**alphas, label_smoothing=0, num_classes=2, switch_prob=1.0)
    both, targets = timm(torch.cat([images, images[others].flip(0)]), torch.arange(2 * len(images)) // len(images))
    return both[: len(images)], float(targets[0, 0])  # of an own target of 0 and another one's of 1


@pytest.mark.parametrize("step", range(12))
def test_images_and_targets_are_mixed_as_timm_mixes_them(monkeypatch, step):
    """At the same draws, which are some of each kind; boxes at the border are among them."""
    images = images_of(2, 3)
    mixing = sample_mixing(settings(**BOTH), step, images, 2)
    alphas = {"mixup_alpha": 0.4, "cutmix_alpha": 0.0} if mixing.box is None else {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}
    draw, whole = np.random.default_rng(derive_seed(0, "mixing", step)), {}
    is_cutmix = draw.random() < 0.5
    assert is_cutmix == (mixing.box is not None)
    whole["shares"] = [draw.beta(*(2 * (1.0 if is_cutmix else 0.4,)))]
    if is_cutmix:
        whole["middle"] = [draw.integers(20), draw.integers(24)]
    expected, kept = timms(monkeypatch, images, mixing.partners, whole, **alphas)
    assert torch.equal(mixing.mix_images(images), expected)
    assert mixing.own_share == pytest.approx(kept, rel=1e-6)


def test_shares_are_of_the_beta_distribution_and_both_kinds_have_half_of_the_steps():
    images = images_of(2, 1)
    drawn = [sample_mixing(settings(**BOTH), step, images, 2) for step in range(2000)]
    mixed = np.array([one.own_share for one in drawn if one.box is None])
    assert len(mixed) / 2000 == pytest.approx(0.5, abs=0.04)
    assert mixed.mean() == pytest.approx(0.5, abs=0.04)
    assert mixed.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)
    assert all(one.box is None for one in (sample_mixing(settings(mixup=0.4), step, images, 2) for step in range(20)))
    assert all(one.box is not None for one in (sample_mixing(settings(cutmix=1), step, images, 2) for step in range(20)))
    assert sample_mixing(settings(), 0, images, 2) is None
    again, other = (sample_mixing(settings(**BOTH, seed=seed), 3, images, 2) for seed in (0, 1))
    assert (again.own_share, again.box) == (drawn[3].own_share, drawn[3].box)
    assert (other.own_share, other.box) != (drawn[3].own_share, drawn[3].box)


def test_each_image_takes_from_another_one_of_its_circle():
    assert partner_positions(2, 6).tolist() == [2, 5, 3, 4, 0, 6, 7, 1]  # 0 > 2 > 3 > 4 > 0 and 1 > 5 > 6 > 7 > 1
    assert partner_positions(2, 2).tolist() == [2, 3, 0, 1]
    assert partner_positions(4, 0).tolist() == partner_positions(0, 4).tolist() == [1, 0, 3, 2]


def test_the_loss_is_that_against_the_mixed_target():
    """Labeled images with smoothing, pseudo-labels with a temperature, of all classes or of the two largest."""
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(8, 5, generator=draw), torch.tensor([3, 1])
    probs = torch.rand(6, 5, generator=draw).softmax(dim=1)
    top = dict(zip(("top_probs", "top_labels"), probs.topk(2, dim=1), strict=True))
    mixing = sample_mixing(settings(mixup=1.0), 0, images_of(2, 3), 2)
    for pseudo in ({"probs": probs}, top, {"label": probs.argmax(dim=1)}):

        def against(logits, pseudo=pseudo):
            return joint_cross_entropies(logits, labels, pseudo, 0.1, 0.7)

        # each image's own target, read off from what logits of one-hot rows cost
        targets = torch.stack([against(torch.zeros(8, 5)) - against(one.expand(8, 5)) for one in torch.eye(5)], dim=1)
        targets = targets + torch.log((4 + torch.e * torch.ones(())) / 5)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
        mixed = targets * mixing.own_share + targets[mixing.partners] * (1 - mixing.own_share)
        expected = -(mixed * logits.log_softmax(dim=1)).sum(dim=1)
        torch.testing.assert_close(mixing.mix_losses(logits, against), expected)


def moved(alone=None, **changes):
    """How far a step moves the weights; and its losses."""
    step, batch = make_step_and_batch(noise=QUIET, **changes)
    before = [one.detach().clone() for one in step.unwrapped.parameters()]
    losses = torch.cat(step(3, alone or batch))
    return torch.cat([(one.detach() - old).flatten() for one, old in zip(step.unwrapped.parameters(), before, strict=True)]), losses


@pytest.mark.parametrize(("kind", "loss"), [({"mixup": 0.4}, "sum"), ({"cutmix": 1.0}, "concat")])
def test_a_mixed_step_cut_into_parts_is_the_same_step(kind, loss):
    whole, whole_losses = moved(**kind, loss=loss)
    cut, cut_losses = moved(**kind, loss=loss, accumulate=4)
    torch.testing.assert_close(cut, whole, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(cut_losses, whole_losses)
    plain, plain_losses = moved(loss=loss)
    assert float((whole - plain).abs().max()) > 1e-3
    assert float((whole_losses - plain_losses).abs().min()) > 1e-4  # each image is mixed


def test_where_one_kind_of_images_is_alone_neighbors_are_mixed_and_an_odd_one_is_refused(tiny_store):
    _, batch = make_step_and_batch()
    alone = TrainingBatch(batch.images[:4], batch.labels, {})
    _, losses = moved(alone, mixup=0.4)
    assert len(losses) == 4
    store, labeled, _ = tiny_store
    source = open_source(str(labeled), labeled=True)
    with pytest.raises(NstError, match=r"batch size 3:.*`mixup`.*`cutmix`.*2 x 1 process"):
        train(store, "odd", source, settings(mixup=0.4, batch_size=3), run=RunSettings(workers=0, decode_threads=1))


def test_an_odd_batch_of_a_control_stops_the_recipe_before_its_first_generation(tmp_path):
    write_class_folders(tmp_path / "labeled", ["ant", "bee"], 2)
    path = write_tiny_recipe(tmp_path, generations=[TINY, TINY | {"mixup": 0.4, "batch_size": 3}], control=True)
    recipe = load_recipe(path)
    with pytest.raises(UsageError, match=r"generations\.1\.batch_size:.*in a `control`.*even number, found 3"):
        check_recipe(recipe, open_source(str(tmp_path / "labeled"), labeled=True), ["ant", "bee"])


def test_un_augmented_images_are_not_mixed():
    with pytest.raises(UsageError, match=r"`mixup` and `cutmix`.*`transform` evaluation.*training, or remove"):
        settings(mixup=0.2, transform="evaluation")
    first = {"model": "x", **BOTH}
    finetune = GenerationSettings.model_validate(first | {"finetune": {"epochs": 2}}).finetune
    assert (finetune.transform, finetune.mixup, finetune.cutmix) == ("evaluation", 0, 0)
    augmented = GenerationSettings.model_validate(first | {"pseudo_only": True, "finetune": {"epochs": 2}}).finetune
    assert (augmented.transform, augmented.mixup, augmented.cutmix) == ("training", 0.4, 1)
    named = GenerationSettings.model_validate(first | {"finetune": {"transform": "training", "mixup": 0.3}}).finetune
    assert (named.mixup, named.cutmix) == (0.3, 0)
    unmixed = GenerationSettings.model_validate(first | {"pseudo_only": True, "finetune": {"transform": "evaluation"}}).finetune
    assert unmixed.mixup == 0

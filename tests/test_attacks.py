import warnings

import numpy as np
import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn
from transformers import ConvNextImageProcessor, EfficientNetImageProcessor, ViTImageProcessor

from nst_data.errors import NstError
from nst_train.evaluation.attacks import PixelClassifier, fgsm, infer_normalization, pgd, random_start
from nst_train.transforms.preprocessing import ProcessorPreprocessing, TimmPreprocessing

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports SciPy by old names, which go with SciPy 2
    import foolbox

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 5))
    return PixelClassifier(layers, MEAN, STD).eval()


@pytest.fixture(scope="module")
def batch():
    """Six images with values up to both ends of the range, and labels."""
    values = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.1
    return values.clamp(0, 1), torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.mark.parametrize("epsilon", [1 / 255, 16 / 255, 0.3])
def test_fgsm_is_foolboxs(network, batch, epsilon):
    pixels, labels = batch
    model = foolbox.PyTorchModel(network, bounds=(0, 1))
    _, expected, _ = foolbox.attacks.FGSM()(model, pixels, foolbox.criteria.Misclassification(labels), epsilons=epsilon)
    torch.testing.assert_close(fgsm(network, pixels, labels, epsilon), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("epsilon", "steps", "step_size"), [(16 / 255, 10, 2 / 255), (0.1, 7, 0.08), (1 / 255, 3, 1 / 255)])
def test_pgd_is_foolboxs(network, batch, epsilon, steps, step_size):
    pixels, labels = batch
    attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=step_size, random_start=False)
    _, expected, _ = attack(
        foolbox.PyTorchModel(network, bounds=(0, 1)), pixels, foolbox.criteria.Misclassification(labels), epsilons=epsilon
    )
    torch.testing.assert_close(pgd(network, pixels, labels, epsilon, steps, step_size), expected, atol=1e-6, rtol=0)


def test_pgd_of_one_whole_step_is_fgsm(network, batch):
    assert torch.equal(pgd(network, *batch, epsilon=0.1, steps=1, step_size=0.1), fgsm(network, *batch, epsilon=0.1))


def test_pgd_goes_on_from_its_start_as_from_the_image_that_it_gives(network, batch):
    pixels, labels = batch
    start = random_start(pixels, 0.1, range(6))
    begun = (pixels + start).clamp(0, 1)
    gradient = torch.autograd.grad(nn.functional.cross_entropy(network(begun.requires_grad_()), labels), begun)[0]
    expected = (begun + 0.02 * gradient.sign()).clamp(0, 1).clamp(pixels - 0.1, pixels + 0.1)
    torch.testing.assert_close(pgd(network, pixels, labels, 0.1, 1, 0.02, start), expected.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("epsilon", [0, 2 / 255, 0.2])
def test_attacked_images_stay_within_epsilon_and_in_range(network, batch, epsilon):
    pixels, labels = batch
    far = torch.full_like(pixels, 0.5)  # a start outside epsilon is drawn back into it
    attacked = (
        fgsm(network, pixels, labels, epsilon),
        pgd(network, pixels, labels, epsilon, 5, 0.15),
        pgd(network, pixels, labels, epsilon, 0, 0.1, far),
    )
    for moved in attacked:
        assert (moved - pixels).abs().max() <= epsilon + 1e-6
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert not moved.requires_grad


def test_a_linear_classifier_of_two_classes_is_pushed_along_the_signs_of_its_weights(batch):
    pixels, _ = batch
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)).eval()
    away = (linear[1].weight[1] - linear[1].weight[0]).sign().view(3, 16, 16).detach()
    expected = (pixels + 0.05 * away * (1 - 2 * labels).view(-1, 1, 1, 1)).clamp(0, 1)
    torch.testing.assert_close(fgsm(linear, pixels, labels, 0.05), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(pgd(linear, pixels, labels, 0.05, 8, 0.02), expected, atol=1e-6, rtol=0)


def test_more_epsilon_and_more_steps_cost_the_network_more(network, batch):
    pixels, labels = batch

    def loss(images):
        return nn.functional.cross_entropy(network(images), labels).item()

    clean, small, large = loss(pixels), loss(fgsm(network, pixels, labels, 0.01)), loss(fgsm(network, pixels, labels, 0.05))
    assert clean < small < large < loss(pgd(network, pixels, labels, 0.05, 20, 0.01)) + 1e-6


def test_attacks_work_where_gradients_are_off_and_leave_none_behind(network, batch):
    pixels, labels = batch
    network.zero_grad(set_to_none=True)
    expected = fgsm(network, pixels, labels, 0.1)
    with torch.no_grad():
        assert torch.equal(fgsm(network, pixels, labels, 0.1), expected)
    with torch.inference_mode():
        assert torch.equal(fgsm(network, pixels.clone(), labels.clone(), 0.1), expected)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_image_is_attacked_by_itself(network, batch):
    pixels, labels = batch
    together = pgd(network, pixels, labels, 0.1, 3, 0.04)
    alone = torch.cat([pgd(network, pixels[i : i + 1], labels[i : i + 1], 0.1, 3, 0.04) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_random_starts_follow_from_the_seed_of_each_image():
    pixels = torch.zeros(3, 3, 64, 64)
    start = random_start(pixels, 0.25, [5, 6, 5])
    assert torch.equal(start[0], start[2])
    assert not torch.equal(start[0], start[1])
    assert torch.equal(random_start(pixels[:1], 0.25, [6])[0], start[1])
    assert start.abs().max() <= 0.25
    assert start.mean().item() == pytest.approx(0, abs=0.01)
    assert start.std().item() == pytest.approx(0.5 / np.sqrt(12), rel=0.02)


def test_a_wrapped_timm_network_gives_its_own_logits_for_pixels():
    network = timm.create_model("test_resnet", num_classes=5).eval()
    preprocessing = TimmPreprocessing.from_data_config(resolve_model_data_config(network))
    batch = preprocessing.finish(torch.randint(256, (4, *preprocessing.input_size), dtype=torch.uint8))
    classifier = PixelClassifier.wrap(network, preprocessing)
    pixels = classifier.denormalize(batch)
    assert not classifier.training
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    torch.testing.assert_close(classifier(pixels), network(batch), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(classifier.mean.flatten(), torch.tensor(preprocessing.mean), atol=1e-6, rtol=0)
    torch.testing.assert_close(classifier.std.flatten(), torch.tensor(preprocessing.std), atol=1e-6, rtol=0)


PROCESSORS = {
    "ViT": (ViTImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4], size={"height": 32, "width": 32}), 0.4, 0.3),
    "not normalized": (ViTImageProcessor(do_normalize=False, size={"height": 32, "width": 32}), 0, 1),
    "levels": (ViTImageProcessor(do_normalize=False, do_rescale=False, size={"height": 32, "width": 32}), 0, 1 / 255),
    "ConvNeXt": (ConvNextImageProcessor(size={"shortest_edge": 64}), 0.5, 0.5),
    "EfficientNet": (EfficientNetImageProcessor(size={"height": 32, "width": 32}, include_top=False), None, None),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_normalization_of_a_processor_is_found_from_what_it_does(kind):
    processor, mean, std = PROCESSORS[kind]
    preprocessing = ProcessorPreprocessing(kind, processor)
    found_mean, found_std = infer_normalization(preprocessing)
    if mean is not None:
        assert found_mean[1].item() == pytest.approx(mean, abs=1e-5)
        assert found_std[1].item() == pytest.approx(std, rel=1e-5)
    gray = preprocessing.prepare(torch.full((3, 40, 40), 100, dtype=torch.uint8))[:, 16, 16]
    torch.testing.assert_close((100 / 255 - found_mean) / found_std, gray.float(), atol=1e-4, rtol=1e-4)


class Squared:
    """A preprocessing that no mean and standard deviation describe."""

    exact, least_side_px = False, None

    def prepare(self, pixels):
        return pixels

    def finish(self, batch):
        return batch.float() ** 2


def test_a_preprocessing_that_does_more_than_normalize_is_refused():
    with pytest.raises(NstError, match=r"attacks:.*preprocessing.*, found one.*0, 2601, 6\.50"):
        infer_normalization(Squared())

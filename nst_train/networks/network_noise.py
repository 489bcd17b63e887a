"""Noise inside the network under training: dropout before the classifier and stochastic depth, drawn for each image separately.

Labeled and pseudo-labeled images go through the network together, so that batch-norm sees both, and may be noised at different rates
(Table 6). Whether a value is dropped is a function of the seed, the step, the position of the image in the step, the layer, and how
often the forward pass has used this layer before: it does not depend on how a step is split over processes or into parts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nst_data.errors import NstError
from nst_train.noise_settings import Noise
from nst_train.seeds import derive_seed

_MASK = 2**32 - 1
_MAX_LAYERS = 2**16


@dataclass(frozen=True)
class Rates:
    """Noise rates of labeled and of pseudo-labeled images."""

    labeled: float
    pseudo: float


@dataclass(frozen=True)
class NoiseMode:
    """How noise is drawn. The values of an earlier nst are kept, since its teachers are noised as they were trained.

    `each_use`: a layer that a forward pass uses more than once draws again each time, instead of once. `every_head`: dropout is placed
    before every last layer of a network that has several, instead of before one of them or those that timm's `get_classifier` names.
    """

    each_use: bool = True
    every_head: bool = True


CURRENT_MODE = NoiseMode()


class NetworkNoise:
    """Random numbers for the noise of one network; `prepare_step` sets the images of the next forward pass.

    `each_use` is as in `NoiseMode`.
    """

    def __init__(self, seed: int, device: torch.device, each_use: bool = True) -> None:
        self._seed, self._layers, self._each_use = seed, 0, each_use
        self._uses: dict[int, int] = {}
        self._key = torch.zeros((), dtype=torch.int64, device=device)
        self._positions = torch.zeros(0, dtype=torch.int64, device=device)
        self._labeled = 0

    def prepare_step(self, step: int, labeled: Sequence[int], pseudo: Sequence[int]) -> None:
        """Set the next images by their positions in the step: first the labeled ones, then the pseudo-labeled ones."""
        self._key.fill_(derive_seed(self._seed, "network noise", step))
        positions = torch.cat([2 * _as_tensor(labeled), 2 * _as_tensor(pseudo) + 1])
        self._positions = positions.to(self._key.device, non_blocking=True)
        self._labeled = len(labeled)
        self._uses.clear()

    @property
    def image_count(self) -> int:
        """Number of images in the next forward pass."""
        return len(self._positions)

    def next_layer(self) -> int:
        """A new number for a layer that drops something."""
        self._layers += 1
        return self._layers

    def next_use(self, layer: int) -> int:
        """The layer's number at its first use in a forward pass, then a different one at each: a DropPath may serve several branches."""
        if not self._each_use:
            return layer
        uses = self._uses.get(layer, 0)
        self._uses[layer] = uses + 1
        return layer + uses * _MAX_LAYERS

    def sample_factors(self, rates: Rates, values: int, layer: int) -> Float[Tensor, "batch values"]:
        """Factors for each image's values: 0 for dropped ones, else 1 / (1 - rate)."""
        chance = torch.full(self._positions.shape, 1 - rates.pseudo, device=self._key.device)
        chance[: self._labeled] = 1 - rates.labeled
        index = self._positions[:, None] * values + torch.arange(values, device=self._key.device)
        numbers = _lowbias32(_lowbias32(index & _MASK ^ self._key) + layer * 0x9E3779B9 & _MASK)
        uniform = (numbers >> 8) * 2.0**-24  # exact in float32 and below 1: a rate of 0 drops nothing
        return (uniform < chance[:, None]) / chance[:, None]


def _as_tensor(values: Sequence[int]) -> Int[Tensor, " values"]:
    if isinstance(values, range):  # the fast path: many numbers, at each step
        return torch.arange(values.start, values.stop)
    return torch.tensor(values, dtype=torch.int64)


def _lowbias32(numbers: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Hash each 32-bit number in an int64 to 32 random-looking bits (constants of a published finalizer, "lowbias32"); products wrap."""
    numbers = (numbers ^ (numbers >> 16)) * 0x7FEB352D & _MASK
    numbers = (numbers ^ (numbers >> 15)) * 0x846CA68B & _MASK
    return numbers ^ (numbers >> 16)


class StochasticDepth(nn.Module):
    """Replacement for a DropPath: drops what a block adds, for whole images (section 2: Huang et al. 2016).

    If a network splits each image into the same number of rows, such as TNT's patches, whole rows are dropped, as DropPath does.
    """

    def __init__(self, rates: Rates, noise: NetworkNoise) -> None:
        super().__init__()
        self._rates, self._noise, self._layer = rates, noise, noise.next_layer()

    def forward(self, added: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
        """Set some rows to 0 and scale up the others; the rows of an image are consecutive (`check_row_order`)."""
        if not self.training:
            return added
        rows = max(1, len(added) // self._noise.image_count)  # per image
        factors = self._noise.sample_factors(self._rates, rows, self._noise.next_use(self._layer))
        return added * factors.to(added.dtype).view(-1, *(1 for _ in added.shape[1:]))


def add_noise(network: nn.Module, labeled: Noise, pseudo: Noise, classes: int, seed: int, mode: NoiseMode = CURRENT_MODE) -> NetworkNoise:
    """Add dropout and stochastic depth to a network, at the rates of labeled and of pseudo-labeled images.

    The network must have been created with the larger of the two rates of stochastic depth, which it increases from block to block.
    Raises NstError for a network that has no place for the noise.
    """
    device = next(network.parameters()).device
    noise = NetworkNoise(seed, device, mode.each_use)
    largest = max(labeled.stochastic_depth, pseudo.stochastic_depth)
    if largest:
        drop_paths = list(drop_paths_of(network))
        if not drop_paths:
            raise NstError(f"{_class_name(network)}: has no blocks that can be skipped; set noise.stochastic_depth to 0 for it")
        for parent, name, rate in drop_paths:
            share = rate / largest
            rates = Rates(labeled.stochastic_depth * share, pseudo.stochastic_depth * share)
            setattr(parent, name, StochasticDepth(rates, noise).train(parent.training))
    if labeled.dropout or pseudo.dropout:
        layer, rates = noise.next_layer(), Rates(labeled.dropout, pseudo.dropout)

        def drop(classifier: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if not classifier.training:
                return inputs
            features = inputs[0]
            factors = noise.sample_factors(rates, features[0].numel(), layer)
            return (features * factors.to(features.dtype).view(features.shape), *inputs[1:])

        for classifier in find_classifiers(network, classes, mode.every_head):
            classifier.register_forward_pre_hook(drop)
    return noise


def check_row_order(network: nn.Module, images: Float[Tensor, "2 3 height width"]) -> None:
    """Run a noised network on two images. Raises ValueError unless the rows it skips are grouped by image, in order."""
    received: list[Tensor] = []
    for layer in stochastic_depth_layers(network):
        layer.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    network(images)
    if all(len(added) == len(images) for added in received):
        return
    received.clear()
    network.eval()  # batch-norm of a batch would mix the images
    network(torch.stack([images[0], torch.full_like(images[1], torch.nan)]))
    for added in received:
        of_second = added.flatten(1).isnan().any(dim=1)
        if not torch.equal(of_second, torch.arange(len(added)) >= len(added) / 2):
            raise ValueError(f"of a tensor of shape {tuple(added.shape)} for two images, not the first half is of the first image")


def stochastic_depth_layers(network: nn.Module) -> list[StochasticDepth]:
    """The stochastic-depth layers of a noised network."""
    return [layer for layer in network.modules() if isinstance(layer, StochasticDepth)]


def find_classifiers(network: nn.Module, classes: int, every_head: bool = True) -> Sequence[nn.Module]:
    """The last layers of a network, with an output for each class.

    Of a timm network, those that `get_classifier` names and those that only its config names (`heads_in_config`); of a transformers
    network, the layers whose number of outputs follows the number of classes; else the last layer with one output per class.

    Without `every_head` (see `NoiseMode`), of a timm network only what `get_classifier` says, of a transformers one only the last layer.
    """
    if hasattr(network, "get_classifier"):
        classifier: Any = network.get_classifier()  # type: ignore[operator]
        heads = [module for module in _as_modules(classifier) if isinstance(module, nn.Module)]
        if not every_head:
            return heads
        heads = [module for head in heads for module in _as_modules(head)]
        inside = {id(module) for head in heads for module in head.modules()}
        return heads + [layer for layer in heads_in_config(network, classes) if id(layer) not in inside]
    if every_head and hasattr(network, "last_layers"):
        last: list[nn.Module] = network.last_layers()  # type: ignore[operator]
    else:
        last = [module for module in network.modules() if _outputs(module) == classes][-1:]
    if not last:
        raise NstError(f"{_class_name(network)}: expected a last layer with {classes} outputs, found none; set noise.dropout to 0 for it")
    return last


def heads_in_config(network: nn.Module, classes: int) -> list[nn.Module]:
    """The layers with an output for each class that timm's config of a network names, such as VOLO's auxiliary head."""
    named = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    layers = dict(network.named_modules())
    places = [named] if isinstance(named, str) else named
    return [layers[place] for place in places if place in layers and _outputs(layers[place]) == classes]


def _as_modules(modules: Any) -> Iterable[Any]:  # noqa: ANN401 - what a network says
    return modules if isinstance(modules, tuple | list | nn.ModuleList) else [modules]


def _outputs(layer: nn.Module) -> object:
    return getattr(layer, "out_features", getattr(layer, "out_channels", None))


def _class_name(network: nn.Module) -> str:
    """The name of a network's class, of one of transformers' its own."""
    return type(getattr(network, "network", network)).__name__


def drop_paths_of(network: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """Yield each DropPath of timm or transformers: its parent module, its name there, and its rate."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("DropPath"):
                yield parent, name, float(child.drop_prob or 0)  # type: ignore[arg-type]

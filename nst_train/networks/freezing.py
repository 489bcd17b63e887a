"""Finetuning with the shallow layers fixed (section 3.1, fix-res): the first blocks of a network as they are in evaluation."""

from collections.abc import Iterator

from torch import nn

from nst_train.settings import TrainSettings

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_ROUNDING = 1e-9  # 0.29 x 100 is below 29


def freeze(network: nn.Module, settings: TrainSettings) -> None:
    """Keep the first blocks of a network in training as they are: their weights, batch-norm's statistics, no stochastic depth or dropout.

    `settings.freeze` is the share of its blocks, rounded down. What lies before them, such as the stem and a ViT's tokens, is frozen too,
    what lies behind the last block never (released code: `fix_layer_num`). A network without blocks is frozen layer by layer.
    """
    if not settings.freeze:
        return
    if settings.freeze_by == "layers":
        _freeze_layers(network, settings.freeze)
        return
    parts = list(_parts(network))
    blocks = [number for number, (_, is_block) in enumerate(parts) if is_block]
    blocks = blocks or [number for number, (part, _) in enumerate(parts) if _has_weights(part)]
    frozen = int(settings.freeze * len(blocks) + _ROUNDING)
    first_trained = blocks[frozen - 1] + 1 if frozen else blocks[0]
    for part, _ in parts[:first_trained]:
        part.eval()
    trained = {weight for part, _ in parts[first_trained:] for weight in part.parameters()}
    for weight in network.parameters():
        if weight not in trained:
            weight.requires_grad = False


def _parts(module: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """A network in pieces that are not cut, in its order, and whether each is a block: one of a list, of several layers.

    Lists, stages, and what has lists below it are entered; a block is not, whatever it holds. Of timm's networks the blocks are those by
    which timm itself groups weights (`group_matcher`), where that does not stop at stages.
    """
    is_list = _is_list(module)
    for child in module.children():
        if _is_list(child) or (not is_list and any(type(one) in _CONTAINERS for one in child.modules())):
            yield from _parts(child)
        else:
            yield child, is_list and any(map(_has_weights, child.children()))


def _is_list(module: nn.Module) -> bool:
    return type(module) in _CONTAINERS or "Stage" in type(module).__name__


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _freeze_layers(network: nn.Module, share: float) -> None:
    """As an earlier nst did: single layers with weights, wherever in a block; what they lie in stays in training."""
    layers = [one for one in network.modules() if next(one.parameters(recurse=False), None) is not None]
    for layer in layers[: int(share * len(layers))]:
        layer.training = False  # of this layer alone: `eval` would take those inside it along, in a ViT all of them
        for weight in layer.parameters(recurse=False):
            weight.requires_grad = False

"""Switching attention between PyTorch's fused kernel and separate operations, for timm and transformers networks."""

from torch import nn

from nst_data.errors import NstError
from nst_train.networks.transformers_networks import TransformersClassifier


def has_fused_attention(network: nn.Module) -> bool:
    """Whether a network uses `torch.nn.functional.scaled_dot_product_attention` and can do without it."""
    if isinstance(network, TransformersClassifier):
        return bool(network.network.config._attn_implementation == "sdpa")
    return any(_is_fused(layer) for layer in network.modules())


def unfuse_attention(network: nn.Module, model: str) -> None:
    """Make a network compute attention by separate operations, as with `TIMM_FUSED_ATTN=0` or `attn_implementation="eager"`.

    On CPUs the backward pass of the fused kernel is several times slower in bf16. Raises NstError if the network has no fused attention.
    """
    if not has_fused_attention(network):
        raise NstError(f"`fused_attention`: {model} has no fused attention that could be switched off; remove it")
    if isinstance(network, TransformersClassifier):
        network.network.set_attn_implementation("eager")
        return
    for layer in filter(_is_fused, network.modules()):
        layer.fused_attn = False  # type: ignore[assignment]


def _is_fused(layer: nn.Module) -> bool:
    return getattr(layer, "fused_attn", False) is True

"""Preparing a network for training by the settings: what is frozen, and how it computes. Noise is added afterwards."""

from torch import nn

from nst_train.networks.attention import unfuse_attention
from nst_train.networks.batch_norm import decay_batch_norm, freeze_batch_norm
from nst_train.networks.freezing import freeze
from nst_train.settings import TrainSettings


def prepare_for_training(network: nn.Module, settings: TrainSettings) -> None:
    """Put a network into training mode as the settings ask. Raises NstError for a setting that it has no place for."""
    network.train()
    freeze(network, settings)
    if settings.freeze_batch_norm:
        freeze_batch_norm(network)
    if settings.batch_norm_decay is not None:
        decay_batch_norm(network, settings.batch_norm_decay)
    if not settings.fused_attention:
        unfuse_attention(network, settings.model)

"""The families of models: which parts each layer has. Adding one: docs/models.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from model.config import HybridConfig
from model.group_moe import DenseMLP, SharedMoE
from model.layer import ChannelMixer, Kept, Layer, Mixer, PostNorm, PreNorm, ResidualRule
from model.lightning import LightningAttention
from model.moe import MoE
from model.ring_linear import RingLinearAttention, RingSoftmaxAttention
from model.softmax import SoftmaxAttention


class MixerType(Protocol):
    """A class of mixers: makes one for a layer, and knows before there is one what it will keep."""

    def __call__(self, config: HybridConfig, layer: int) -> Mixer:
        """The mixer of layer `layer`."""
        ...

    def kept(self, config: HybridConfig) -> Kept:
        """What such a mixer keeps of one sequence."""
        ...


@dataclass(frozen=True)
class Family:
    """One way to choose parts.

    Attributes:
        mixers: at the index that `attn_type_list` gives a layer: 0 the linear kind, 1 the softmax kind.
        channel_mixer: of a configuration and a layer.
        rules: the residual rules around the mixer and around the channel mixer, of a configuration and a layer.
    """

    mixers: tuple[MixerType, MixerType]
    channel_mixer: Callable[[HybridConfig, int], ChannelMixer]
    rules: Callable[[HybridConfig, int], tuple[ResidualRule, ResidualRule]]


def make_layer(config: HybridConfig, layer: int) -> Layer:
    """Layer `layer` of the configured family, with its weights not yet drawn."""
    family = FAMILIES[config.family]
    mixer = family.mixers[config.attn_type_list[layer]](config, layer)
    return Layer(config, mixer, family.channel_mixer(config, layer), family.rules(config, layer))


def kept_by_layer(config: HybridConfig) -> list[Kept]:
    """What each layer keeps of one sequence."""
    family = FAMILIES[config.family]
    return [family.mixers[kind].kept(config) for kind in config.attn_type_list]


def _minimax_rules(config: HybridConfig, layer: int) -> tuple[ResidualRule, ResidualRule]:
    rule = PostNorm if config.postnorm else PreNorm
    return rule(*config.attention_scales(layer)), rule(*config.residual_scales("mlp"))


def _bailing_channel_mixer(config: HybridConfig, layer: int) -> ChannelMixer:
    if layer < config.first_k_dense_replace:
        return DenseMLP(config, config.dense_intermediate_size)
    return SharedMoE(config, layer - config.first_k_dense_replace)


FAMILIES = {
    "minimax": Family(
        mixers=(LightningAttention, SoftmaxAttention),
        channel_mixer=MoE,
        rules=_minimax_rules,
    ),
    "bailing_linear": Family(
        mixers=(RingLinearAttention, RingSoftmaxAttention),
        channel_mixer=_bailing_channel_mixer,
        rules=lambda config, layer: (PreNorm(), PreNorm()),
    ),
}

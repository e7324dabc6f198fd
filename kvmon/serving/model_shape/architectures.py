"""How the `config.json` of each architecture names what its cache is made of, and what its class takes where that is
missing.

Read in the configuration classes and models of transformers 5 and, for what differs there, vLLM 0.11: Falcon-40B's
eight heads, which transformers copies to all of them, are eight here, and latent attention is latent.

Invariant: an architecture is here only where all of its layers keep keys and values by one of these rules; a default is
here only where its class has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["ARCHITECTURES", "Architecture", "HeadDim", "KvHeads", "Sliding"]


class KvHeads(Enum):
    """How many heads keep keys and values."""

    GIVEN = 1  # num_key_value_heads, which has to be there
    OR_ALL = 2  # the same, and all heads where it is missing
    ALL = 3
    MULTI_QUERY = 4  # one, unless multi_query says no
    FALCON = 5  # num_kv_heads of the new decoder; else as MULTI_QUERY
    MPT = 6  # all, unless attn_config says another kind of attention


class HeadDim(Enum):
    """How wide a head is."""

    GIVEN = 1  # head_dim, which has to be there
    OR_SHARE = 2  # the same, and the share of the hidden size where it is missing
    SHARE = 3


class Sliding(Enum):
    """Which layers slide where `layer_types` does not say it."""

    NONE = 1
    ALL = 2  # all, where sliding_window is given
    UPPER = 3  # those from max_window_layers on, where use_sliding_window says so
    EVERY_SECOND = 4  # the first of each two
    PATTERN = 5  # all but each sliding_window_pattern-th
    SAID = 6  # only layer_types can say it
    UNKNOWN = 7  # refused where use_sliding_window says so


@dataclass(frozen=True)
class Architecture:
    """The rule of one architecture; names of a field stand in the order in which releases had them.

    defaults    what the class has where the file says nothing
    """

    kv_heads: KvHeads = KvHeads.OR_ALL
    head_dim: HeadDim = HeadDim.OR_SHARE
    sliding: Sliding = Sliding.NONE
    latent: bool = False
    layers: tuple[str, ...] = ("num_hidden_layers",)
    heads: tuple[str, ...] = ("num_attention_heads",)
    width: tuple[str, ...] = ("hidden_size",)
    defaults: Mapping[str, int] = field(default_factory=dict)


_GEMMA = {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096}
_GEMMA_3 = Architecture(KvHeads.GIVEN, HeadDim.GIVEN, Sliding.PATTERN, defaults={**_GEMMA, "sliding_window_pattern": 6})
_LATENT = Architecture(latent=True)
_LAYERS, _HEADS, _WIDTH = ("n_layer", "num_hidden_layers"), ("n_head", "num_attention_heads"), ("n_embd", "hidden_size")
_GPT = Architecture(KvHeads.ALL, HeadDim.SHARE, layers=_LAYERS, heads=_HEADS, width=_WIDTH)
_ALL_HEADS = Architecture(KvHeads.ALL, HeadDim.SHARE)

#: By the name in `architectures`.
ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture(),
    "MistralForCausalLM": Architecture(KvHeads.GIVEN, sliding=Sliding.ALL, defaults={"sliding_window": 4096}),
    "MixtralForCausalLM": Architecture(KvHeads.GIVEN, sliding=Sliding.ALL),
    "Qwen2ForCausalLM": Architecture(KvHeads.GIVEN, sliding=Sliding.UPPER),
    "Qwen2MoeForCausalLM": Architecture(KvHeads.GIVEN, sliding=Sliding.UNKNOWN),
    "Qwen3ForCausalLM": Architecture(KvHeads.GIVEN, HeadDim.GIVEN, Sliding.UPPER),
    "Qwen3MoeForCausalLM": Architecture(KvHeads.GIVEN, HeadDim.GIVEN, Sliding.UNKNOWN),
    "GemmaForCausalLM": Architecture(KvHeads.GIVEN, HeadDim.GIVEN),
    "Gemma2ForCausalLM": Architecture(KvHeads.GIVEN, HeadDim.GIVEN, Sliding.EVERY_SECOND, defaults=_GEMMA),
    "Gemma3ForCausalLM": _GEMMA_3,
    "Gemma3ForConditionalGeneration": _GEMMA_3,
    "GptOssForCausalLM": Architecture(KvHeads.GIVEN, HeadDim.GIVEN, Sliding.SAID),
    "DeepseekV2ForCausalLM": _LATENT,
    "DeepseekV3ForCausalLM": _LATENT,
    "PhiForCausalLM": Architecture(head_dim=HeadDim.SHARE),
    "Phi3ForCausalLM": Architecture(sliding=Sliding.ALL),
    "Starcoder2ForCausalLM": Architecture(KvHeads.GIVEN, sliding=Sliding.ALL),
    "CohereForCausalLM": Architecture(),
    "Cohere2ForCausalLM": Architecture(KvHeads.GIVEN, HeadDim.GIVEN, Sliding.PATTERN),
    "Olmo2ForCausalLM": Architecture(),
    "StableLmForCausalLM": Architecture(KvHeads.GIVEN, HeadDim.SHARE),
    "OPTForCausalLM": _ALL_HEADS,
    "GPTNeoXForCausalLM": _ALL_HEADS,
    "GPT2LMHeadModel": _GPT,
    "GPTJForCausalLM": _GPT,
    "GPTBigCodeForCausalLM": Architecture(
        KvHeads.MULTI_QUERY, HeadDim.SHARE, layers=_LAYERS, heads=_HEADS, width=_WIDTH
    ),
    "BloomForCausalLM": Architecture(
        KvHeads.ALL, HeadDim.SHARE, layers=_LAYERS, heads=_HEADS, width=("hidden_size", "n_embed")
    ),
    "FalconForCausalLM": Architecture(
        KvHeads.FALCON,
        HeadDim.SHARE,
        layers=("num_hidden_layers", "n_layer"),
        heads=("num_attention_heads", "n_head"),
    ),
    "MptForCausalLM": Architecture(
        KvHeads.MPT, HeadDim.SHARE, layers=("n_layers",), heads=("n_heads",), width=("d_model",)
    ),
}
ARCHITECTURES["MPTForCausalLM"] = ARCHITECTURES["MptForCausalLM"]
ARCHITECTURES["RWForCausalLM"] = ARCHITECTURES["FalconForCausalLM"]

"""Bytes of a token by a model's config.json: what transformers really keeps, published files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvmon.errors import InputError
from kvmon.serving.model_shape import shape_of_config

BF16 = {"torch_dtype": "bfloat16"}


def written(folder: Path, architecture: str, **fields: Any) -> Path:
    """A config.json of these fields."""
    path = folder / "config.json"
    path.write_text(json.dumps({"architectures": [architecture], **fields}))
    return path


# As they were published, as far as the cache goes.
PUBLISHED = {
    "meta-llama/Llama-2-7b": ("LlamaForCausalLM", {
        "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "torch_dtype": "float16"}, 524_288, 0, 0),
    "huggyllama/llama-7b": ("LlamaForCausalLM", {
        "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "torch_dtype": "float16"},
        524_288, 0, 0),
    "mistralai/Mistral-7B-v0.1": ("MistralForCausalLM", {
        "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "sliding_window": 4096, **BF16}, 0, 131_072, 4096),
    "mistralai/Mistral-Nemo": ("MistralForCausalLM", {
        "hidden_size": 5120, "head_dim": 128, "num_attention_heads": 32, "num_hidden_layers": 40,
        "num_key_value_heads": 8, "sliding_window": None, **BF16}, 163_840, 0, 0),
    "mistral, silent": ("MistralForCausalLM", {
        "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, **BF16},
        0, 131_072, 4096),
    "Qwen/Qwen2.5-7B-Instruct": ("Qwen2ForCausalLM", {
        "hidden_size": 3584, "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "sliding_window": 131072, "max_window_layers": 28, "use_sliding_window": False, **BF16}, 57_344, 0, 0),
    "Qwen/Qwen3-8B": ("Qwen3ForCausalLM", {
        "hidden_size": 4096, "head_dim": 128, "num_attention_heads": 32, "num_hidden_layers": 36,
        "num_key_value_heads": 8, "sliding_window": None, "max_window_layers": 36, "use_sliding_window": False,
        **BF16}, 147_456, 0, 0),
    "Qwen/Qwen3-30B-A3B": ("Qwen3MoeForCausalLM", {
        "hidden_size": 2048, "head_dim": 128, "num_attention_heads": 32, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "use_sliding_window": False, **BF16}, 98_304, 0, 0),
    "mistralai/Mixtral-8x7B": ("MixtralForCausalLM", {
        "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "sliding_window": None, **BF16}, 131_072, 0, 0),
    "google/gemma-3-4b-it": ("Gemma3ForConditionalGeneration", {
        "text_config": {"hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024}, **BF16},
        20_480, 118_784, 1024),
    "openai/gpt-oss-20b": ("GptOssForCausalLM", {
        "hidden_size": 2880, "head_dim": 64, "num_attention_heads": 64, "num_hidden_layers": 24,
        "num_key_value_heads": 8, "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12, **BF16}, 24_576, 24_576, 128),
    "deepseek-ai/DeepSeek-V3": ("DeepseekV3ForCausalLM", {
        "hidden_size": 7168, "num_attention_heads": 128, "num_hidden_layers": 61, "num_key_value_heads": 128,
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "num_nextn_predict_layers": 1,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}, **BF16}, 70_272, 0, 0),
    "facebook/opt-13b": ("OPTForCausalLM", {
        "hidden_size": 5120, "num_attention_heads": 40, "num_hidden_layers": 40, "word_embed_proj_dim": 5120,
        "torch_dtype": "float16"}, 819_200, 0, 0),
    "openai-community/gpt2-xl": ("GPT2LMHeadModel", {
        "n_embd": 1600, "n_head": 25, "n_layer": 48, "torch_dtype": "float32"}, 614_400, 0, 0),
    "bigscience/bloom": ("BloomForCausalLM", {
        "n_embed": 14336, "num_attention_heads": 112, "n_layer": 70, **BF16}, 4_014_080, 0, 0),
    "tiiuae/falcon-7b": ("FalconForCausalLM", {
        "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32, "multi_query": True,
        "new_decoder_architecture": False, **BF16}, 8192, 0, 0),
    "tiiuae/falcon-40b": ("FalconForCausalLM", {
        "hidden_size": 8192, "num_attention_heads": 128, "num_hidden_layers": 60, "num_kv_heads": 8,
        "multi_query": True, "new_decoder_architecture": True, **BF16}, 122_880, 0, 0),
    "tiiuae/falcon-rw-1b": ("FalconForCausalLM", {
        "hidden_size": 2048, "num_attention_heads": 32, "num_hidden_layers": 24, "multi_query": False, **BF16},
        196_608, 0, 0),
    "mosaicml/mpt-7b": ("MPTForCausalLM", {
        "d_model": 4096, "n_heads": 32, "n_layers": 32, "attn_config": {"attn_type": "multihead_attention"}, **BF16},
        524_288, 0, 0),
    "bigcode/starcoder": ("GPTBigCodeForCausalLM", {
        "n_embd": 6144, "n_head": 48, "n_layer": 40, "multi_query": True, "torch_dtype": "float32"}, 40_960, 0, 0),
    "CohereLabs/c4ai-command-r7b": ("Cohere2ForCausalLM", {
        "hidden_size": 4096, "head_dim": 128, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "sliding_window": 4096, "sliding_window_pattern": 4, **BF16},
        32_768, 98_304, 4096),
    "microsoft/Phi-3-mini-4k": ("Phi3ForCausalLM", {
        "hidden_size": 3072, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "sliding_window": 2047, **BF16}, 0, 393_216, 2047),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_give_published_bytes(name: str, tmp_path: Path) -> None:
    """Each by the names that its architecture uses, by hand: 2 * layers * heads * dimension * bytes."""
    architecture, fields, full, window_bytes, window = PUBLISHED[name]
    shape = shape_of_config(written(tmp_path, architecture, **fields))
    assert (shape.bytes_per_token, shape.window_bytes_per_token, shape.window_tokens) == (full, window_bytes, window)


LLAMA = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, **BF16}
QWEN = {**LLAMA, "use_sliding_window": True}


@pytest.mark.parametrize(
    ("architecture", "fields", "says"),
    [
        ("JambaForCausalLM", LLAMA, "no formula"),
        ("Mamba2ForCausalLM", LLAMA, "no formula"),
        ("T5ForConditionalGeneration", LLAMA, "no formula"),
        ("Gemma3nForConditionalGeneration", LLAMA, "no formula"),
        ("Qwen3NextForCausalLM", LLAMA, "no formula"),
        ("Llama4ForConditionalGeneration", LLAMA, "no formula"),
        ("MiniMaxText01ForCausalLM", LLAMA, "no formula"),
        ("LlamaForCausalLM", {**LLAMA, "is_encoder_decoder": True}, "encoder"),
        ("LlamaForCausalLM", {**LLAMA, "attention_chunk_size": 8192}, "chunks"),
        ("LlamaForCausalLM", {**LLAMA, "hidden_size": 66}, "evenly"),
        ("LlamaForCausalLM", {**LLAMA, "num_hidden_layers": 10**30}, "num_hidden_layers is"),
        ("LlamaForCausalLM", {**LLAMA, "num_hidden_layers": 2.0}, "num_hidden_layers is"),
        ("LlamaForCausalLM", {**LLAMA, "torch_dtype": "float8_e4m3fn"}, "--kv-dtype"),
        ("LlamaForCausalLM", {**LLAMA, "quantization_config": {"kv_cache_scheme": {"num_bits": 8}}}, "quantized"),
        ("Qwen2ForCausalLM", {**QWEN, "max_window_layers": 1}, "sliding_window is missing"),
        ("Qwen2ForCausalLM", {**QWEN, "sliding_window": 32}, "max_window_layers is missing"),
        ("Qwen2ForCausalLM",
         {**LLAMA, "sliding_window": 32, "layer_types": ["full_attention", "sliding_attention"]}, "says that none"),
        ("Qwen2MoeForCausalLM", {**QWEN, "sliding_window": 32}, "not known here"),
        ("GptOssForCausalLM", {**LLAMA, "head_dim": 16, "sliding_window": 128}, "layer_types is missing"),
        ("FalconForCausalLM", {**LLAMA, "new_decoder_architecture": True}, "num_kv_heads is missing"),
        ("MptForCausalLM",
         {"d_model": 64, "n_heads": 4, "n_layers": 2, "attn_config": {"attn_type": "multiquery_attention"}, **BF16},
         "multiquery"),
        ("BloomForCausalLM", {"hidden_size": 64, "n_head": 4, "n_layer": 2, "num_hidden_layers": 3, **BF16}, "differ"),
        ("GemmaForCausalLM", LLAMA, "head_dim is missing"),
        ("Gemma3ForConditionalGeneration", {"text_config": 3, **BF16}, "num_hidden_layers is missing"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(architecture: str, fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    """In one line that names the file; a wrong number would be worse."""
    path = written(tmp_path, architecture, **fields)
    with pytest.raises(InputError) as refused:
        shape_of_config(path)
    assert says in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_type_that_is_given_needs_none_in_the_file(tmp_path: Path) -> None:
    """Nor does a quantized cache stand in the way then."""
    fields = {name: value for name, value in LLAMA.items() if name != "torch_dtype"}
    path = written(tmp_path, "LlamaForCausalLM", **fields, quantization_config={"kv_cache_scheme": {"num_bits": 8}})
    assert shape_of_config(path, 1).bytes_per_token == 2 * 2 * 2 * 16


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    """No device is read for ever, and no huge file kept in memory."""
    for path, says in ((Path("/dev/zero"), "no file"), (tmp_path, "no file"), (tmp_path / "no.json", "cannot read")):
        with pytest.raises(InputError, match=says):
            shape_of_config(path)
    long, binary = tmp_path / "long.json", tmp_path / "binary.json"
    with open(long, "wb") as file:
        file.truncate(64 << 20)
    binary.write_bytes(b"\xff\xfe{}")
    for path, says in ((long, "too long"), (binary, "no JSON")):
        with pytest.raises(InputError, match=says):
            shape_of_config(path)


TINY = {
    "llama": {"num_key_value_heads": 2}, "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 2}, "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 24},
    "qwen2_moe": {"num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1},
    "phi": {}, "phi3": {"sliding_window": 8},
    "gemma": {"num_key_value_heads": 1, "head_dim": 24}, "gemma2": {"num_key_value_heads": 2, "sliding_window": 8},
    "gemma3_text": {"sliding_window": 8}, "gpt_oss": {
        "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 24,
        "sliding_window": 8},
    "cohere": {"num_key_value_heads": 2}, "cohere2": {"num_key_value_heads": 2, "sliding_window": 8},
    "olmo2": {"num_key_value_heads": 2}, "stablelm": {"num_key_value_heads": 2},
    "starcoder2": {"num_key_value_heads": 4}, "opt": {"ffn_dim": 64, "word_embed_proj_dim": 64}, "gpt_neox": {},
    "gpt2": {}, "gptj": {"rotary_dim": 8}, "gpt_bigcode": {}, "bloom": {}, "mpt": {}, "falcon": {},
    "falcon rw": {"multi_query": False},
}  # fmt: skip


@pytest.mark.parametrize("model_type", TINY)
def test_bytes_are_those_that_transformers_keeps(model_type: str, tmp_path: Path) -> None:
    """A tiny model of each architecture, its cache after some tokens, and the shape of the file that it writes."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
    family = model_type.partition(" ")[0]
    old = {"n_layer": 7, "n_head": 4, "n_embd": 64, "n_layers": 7, "n_heads": 4, "d_model": 64, "hidden_size": 64}
    new = {"num_hidden_layers": 7, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 64}
    known = transformers.AutoConfig.for_model(family).to_dict()
    names = {name: value for name, value in {**old, **new}.items() if name in known}
    asked = {**names, "vocab_size": 128, **TINY[model_type]}
    config = transformers.AutoConfig.for_model(family, pad_token_id=0, bos_token_id=1, eos_token_id=2, **asked)
    config._attn_implementation = "eager"
    with torch.device("cpu"), torch.random.fork_rng():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.config.architectures, model.config.dtype = [type(model).__name__], torch.float32
    model.config.save_pretrained(tmp_path)
    shape = shape_of_config(tmp_path / "config.json")
    for tokens in (5, 20):
        with torch.no_grad():
            cache = model(torch.ones(1, tokens, dtype=torch.long), use_cache=True).past_key_values
        full = window = 0
        for layer in cache.layers:
            size = layer.keys.nbytes + layer.values.nbytes
            if getattr(layer, "is_sliding", False):
                assert layer.keys.shape[-2] == min(tokens, shape.window_tokens - 1)  # the next one comes beside
                window += size // layer.keys.shape[-2]
            else:
                full += size // tokens
        assert (shape.bytes_per_token, shape.window_bytes_per_token) == (full, window)

"""Shapes of models: published numbers, windows, names, and a model's own config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvmon.errors import ConfigError, InputError
from kvmon.serving.model_shape import KNOWN_MODELS, ModelShape, kv_bytes_per_token, model_shape, parse_model_shape


@pytest.mark.parametrize(
    ("name", "bytes_a_token"),
    [
        ("llama-2-7b", 524_288),
        ("Llama-3.1-8B", 131_072),
        ("llama-3.1-8b-fp8", 65_536),
        ("llama-3.1-8b-bf16", 131_072),
        ("llama-3.1-70b", 327_680),
        ("llama-3.1-405b", 516_096),
        ("llama-3.2-1b", 32_768),
        ("qwen2.5-7b", 57_344),
        ("qwen3-32b", 262_144),
        ("mistral-7b-v0.3", 131_072),
        ("opt-13b", 819_200),
        ("opt-13b-fp32", 1_638_400),
        ("deepseek-v3", 70_272),
        ("deepseek-r1", 70_272),
        ("deepseek-v2-lite", 31_104),
        ("32,8,128,2", 131_072),
        (" 1, 1,1,1 ", 2),
    ],
)
def test_published_bytes_a_token(name: str, bytes_a_token: int) -> None:
    """Names in any case, with and without the type of the cache, give the published number; four numbers theirs."""
    assert parse_model_shape(name) == model_shape(name).bytes_per_token == bytes_a_token
    assert model_shape(name).bytes_at(1000) == 1000 * bytes_a_token


def test_known_models_are_in_lower_case_and_named_as_they_are_called() -> None:
    """So that a name from the list can be typed, with any suffix."""
    for name, shape in KNOWN_MODELS.items():
        assert name == name.lower() == shape.name
        assert model_shape(f"{name}-fp8").layer_elements == shape.layer_elements
    assert kv_bytes_per_token(61, 128, 128, 2) == 3_997_696  # what DeepSeek-V3 would take without its latent cache


@pytest.mark.parametrize(
    ("name", "full", "windowed", "window", "at_8192"),
    [
        ("gemma-2-9b", 172_032, 172_032, 4096, 8192 * 172_032 + 4096 * 172_032),
        ("gemma-3-27b", 81_920, 425_984, 1024, 8192 * 81_920 + 1024 * 425_984),
        ("gemma-3-1b-fp8", 2048, 11_264, 512, 8192 * 2048 + 512 * 11_264),
        ("mistral-7b-v0.1", 0, 131_072, 4096, 4096 * 131_072),
    ],
)
def test_layers_that_slide_count_up_to_their_window(
    name: str, full: int, windowed: int, window: int, at_8192: int
) -> None:
    """Full and sliding layers are told apart; beyond the window a token costs what full layers keep of it."""
    shape = model_shape(name)
    assert (shape.bytes_per_token, shape.window_bytes_per_token, shape.window_tokens) == (full, windowed, window)
    assert shape.bytes_at(0) == 0
    assert shape.bytes_at(window) == window * (full + windowed)
    assert shape.bytes_at(8192) == at_8192
    with pytest.raises(ConfigError, match="keep only the last"):
        parse_model_shape(name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gpt-9", "LAYERS,KV_HEADS,HEAD_DIM,BYTES"),
        ("llama-3.1-8bb", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("mistral-7b", "mistral-7b-v0.1"),
        ("llama-3.1-8b-int3", "llama-3.1-8b"),
        ("32,8,128", "no model shape"),
        ("32,8,128,0", "no model shape"),
        ("", "no model shape"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(text: str, says: str) -> None:
    """One line says what to write instead, and the names that come near."""
    with pytest.raises(ConfigError, match=says) as refused:
        model_shape(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"full_layers": 0},
        {"full_layers": -1, "window_layers": 2, "window_tokens": 4},
        {"layer_elements": 0},
        {"element_bytes": 0},
        {"window_layers": 3},
        {"window_tokens": 3},
    ],
)
def test_a_shape_that_exists_makes_sense(wrong: dict[str, int]) -> None:
    """No layers, no elements, or a window without a layer is none."""
    with pytest.raises(ConfigError):
        ModelShape(**{"name": "odd", "layer_elements": 8, "element_bytes": 2, "full_layers": 1, **wrong})


def config(architecture: str, **fields: Any) -> dict[str, Any]:
    """A configuration of 4 layers."""
    basic = {"num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 1024, "torch_dtype": "bfloat16"}
    return {"architectures": [architecture], **basic, **fields}


GROUPED = {"num_key_value_heads": 2}
LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}


@pytest.mark.parametrize(
    ("document", "full", "windowed", "window"),
    [
        (config("LlamaForCausalLM"), 4 * 2 * 8 * 128 * 2, 0, 0),
        (config("LlamaForCausalLM", **GROUPED, head_dim=64), 4 * 2 * 2 * 64 * 2, 0, 0),
        (config("Qwen2ForCausalLM", **GROUPED, sliding_window=32, use_sliding_window=False), 4096 * 2 // 2, 0, 0),
        (
            config("Qwen2ForCausalLM", **GROUPED, sliding_window=32, use_sliding_window=True, max_window_layers=3),
            3072,
            1024,
            32,
        ),
        (config("Qwen3ForCausalLM", **GROUPED, head_dim=32, torch_dtype="float32"), 4 * 2 * 2 * 32 * 4, 0, 0),
        (config("MistralForCausalLM", **GROUPED, sliding_window=None), 4096, 0, 0),
        (config("MistralForCausalLM", **GROUPED, sliding_window=64), 0, 4096, 64),
        (config("Gemma2ForCausalLM", num_hidden_layers=5), 2 * 4096, 3 * 4096, 4096),
        (
            config("Gemma3ForConditionalGeneration", text_config={"num_hidden_layers": 34, "sliding_window": 1024}),
            20_480,
            118_784,
            1024,
        ),
        (
            config(
                "Gemma3ForCausalLM",
                layer_types=["sliding_attention"] * 3 + ["full_attention"],
                sliding_window=512,
                dtype="float16",
            ),
            4096,
            3 * 4096,
            512,
        ),
        (config("DeepseekV3ForCausalLM", **LATENT, num_hidden_layers=61), 70_272, 0, 0),
        (config("DeepseekV2ForCausalLM", **LATENT), 4 * 576 * 2, 0, 0),
    ],
)
def test_a_config_json_gives_its_shape(
    tmp_path: Path, document: dict[str, Any], full: int, windowed: int, window: int
) -> None:
    """Each architecture has its rule; the file and its directory name the same."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document))
    shape = model_shape(str(path))
    assert (shape.bytes_per_token, shape.window_bytes_per_token, shape.window_tokens) == (full, windowed, window)
    assert model_shape(str(tmp_path)) == shape


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("{", "no JSON"),
        ([1], "names no architecture"),
        ({"architectures": []}, "names no architecture"),
        (config("MambaForCausalLM"), "MambaForCausalLM has no formula"),
        (config("DeepseekV32ForCausalLM", **LATENT), "DeepseekV32ForCausalLM has no formula"),
        (config("LlamaForCausalLM", num_kv_shared_layers=2), "share their keys"),
        (config("LlamaForCausalLM", num_hidden_layers=None), "num_hidden_layers is missing"),
        (config("LlamaForCausalLM", num_hidden_layers="4"), "num_hidden_layers is '4'"),
        (config("LlamaForCausalLM", torch_dtype=None), "type is None"),
        (config("Qwen2ForCausalLM"), "num_key_value_heads is missing"),
        (config("Qwen3ForCausalLM", **GROUPED), "head_dim is missing"),
        (config("Qwen3ForCausalLM", **GROUPED, head_dim=8, layer_types=["linear_attention"] * 4), "linear_attention"),
        (config("Gemma2ForCausalLM", layer_types=["full_attention"]), "not as many"),
        (config("DeepseekV3ForCausalLM"), "kv_lora_rank is missing"),
    ],
)
def test_a_config_json_without_a_formula_is_refused_by_name(tmp_path: Path, document: object, says: str) -> None:
    """An architecture, a kind of layer or a number that is not understood is named, in one line, with the file."""
    path = tmp_path / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(InputError, match=says) as refused:
        model_shape(str(path))
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_config_json_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A path that ends in .json is a file, and a directory needs one."""
    for text in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            model_shape(str(text))

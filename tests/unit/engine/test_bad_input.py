"""Models that cannot be used, sizes that cannot be, memory that is not there: one clear line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvmon.allocators import PagedConfig
from kvmon.cli.engine_build import build_engine
from kvmon.cli.main import run as kvmon
from kvmon.engine import Engine, Sampling, load_weights, read_config
from kvmon.engine.device_memory import asked_bytes
from kvmon.errors import ConfigError, InputError, SystemRefused
from tests.unit.engine.models import theirs, tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory as transformers writes it."""
    theirs("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def changed(directory: Path, **fields: Any) -> None:
    """Change `config.json`; None takes a field away."""
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"architectures": ["MambaForCausalLM"]}, "is a MambaForCausalLM: the reference engine"),
    "no architecture": ({"architectures": None}, "names no architecture"),
    "another activation": ({"hidden_act": "gelu"}, "'gelu' is not computed here"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantised weights are not computed here"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "missing size": ({"hidden_size": None}, "hidden_size is missing"),
    "heads that do not divide": ({"num_key_value_heads": 5}, "6 query heads cannot share 5 KV heads evenly"),
    "dynamic positions": (
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "type 'dynamic' is not computed here",
    ),
    "a scaling without a factor": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
        "factor of the rotary embedding is None",
    ),
    "another type": ({"dtype": "int8"}, "its type is 'int8'"),
    "odd layers": ({"layer_types": ["chunked_attention"] * 3}, "layers of chunked_attention"),
    "another shape": ({"intermediate_size": 97}, r"up_proj|gate_proj.*is \(96, 96\), its config.json says \(97, 96\)"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "1000000000 layers are no model's"),
    "more layers": ({"num_hidden_layers": 4}, "has no tensor model.layers.3"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_cannot_be_computed_is_refused_by_name(name: str, model: Path) -> None:
    """What is odd is named, before anything is computed."""
    fields, says = CONFIGS[name]
    changed(model, **fields)
    with pytest.raises(InputError, match=says):
        load_weights(read_config(model), model)


def _without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def _cut(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _index_without_file(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "absent.safetensors"}}))


def _index_outside(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))


def _odd_index(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text("[]")


def _no_json(model: Path) -> None:
    (model / "config.json").write_text("{")


def _no_config(model: Path) -> None:
    (model / "config.json").unlink()


def _lacks_norm(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def _norm(model: Path, norm: torch.Tensor) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file({**tensors, "model.norm.weight": norm}, model / "model.safetensors", {"format": "pt"})


def _not_a_number(model: Path) -> None:
    _norm(model, torch.full((96,), float("nan")))


def _whole_numbers(model: Path) -> None:
    _norm(model, torch.ones(96, dtype=torch.int8))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without_weights, r"holds no \*\.safetensors"),
        (_cut, "is no whole safetensors file"),
        (_index_without_file, "lacks absent.safetensors"),
        (_index_outside, "lacks"),
        (_odd_index, "should map tensors to files"),
        (_no_json, "is no JSON"),
        (_no_config, "cannot read"),
        (_lacks_norm, "has no tensor model.norm.weight"),
        (_not_a_number, "model.norm.weight has numbers that are none"),
        (_whole_numbers, "model.norm.weight is of type torch.int8"),
    ],
)
def test_files_that_are_missing_or_damaged_are_one_line(
    damage: Callable[[Path], None], says: str, model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The library names the file, and so does the command line, with exit code 3."""
    damage(model)
    with pytest.raises(InputError, match=says):
        load_weights(read_config(model), model)
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    assert kvmon(["engine", "run", str(tmp_path / "in.jsonl"), "--model", str(model)]) == 3
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ("--capacity-tokens 8", 2, "a pool of 8 tokens holds no block of 16"),
        ("--capacity-bytes 100", 2, "hold no block of 16 tokens"),
        ("--memory-share 1.5", 2, "is no share of the free memory"),
        ("--memory-share nan", 2, "is no share of the free memory"),
        ("--capacity-bytes 16TiB", 4, "choose a smaller one"),
        ("--block-size 0", 2, "a block of 0 tokens"),
        ("--layout contiguous --reserve half", 2, "no reservation policy"),
        ("--max-model-len 0", 2, "a sequence of at most 0 tokens"),
        ("--max-model-len -1", 2, "a sequence of at most -1 tokens"),
        ("--dtype int8", 2, "type 'int8' is unknown"),
        ("--model absent", 3, "absent is no directory"),
        ("--threads 100000", 2, "100000 threads are not possible"),
        ("--preemption swap", 2, "--preemption swap and --host-tokens go together"),
        ("--name a/b", 2, "--name is for files and labels"),
        ("--reserve=", 2, "--reserve is empty"),
        ("--dir=", 2, "--dir is empty"),
        ("--dir /sys", 4, "nothing can be recorded in /sys (disk)"),
    ],
)
def test_options_that_cannot_be_are_one_line(
    options: str, code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes and options that contradict each other, the model, or the machine."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    assert kvmon(["engine", "run", str(tmp_path / "in.jsonl"), "--device", "cpu", *options.split()]) == code
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"capacity_tokens": 100}, 96),
        ({"capacity_bytes": 100 << 10}, 96),
        ({"capacity_bytes": 100 << 10, "dtype": "bfloat16", "block_size": 8}, 200),
        ({}, 16_384),
    ],
)
def test_a_pool_is_as_large_as_it_was_asked_for(options: dict[str, Any], tokens: int) -> None:
    """In tokens or bytes, in whole blocks; 1 KiB a token of the tiny model in float32."""
    assert build_engine(device="cpu", **options).capacity_tokens == tokens


def test_a_pool_can_be_a_share_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of what is free, in whole blocks."""
    monkeypatch.setattr("kvmon.engine.devices.free_memory", lambda device: 10_000 << 10)
    assert build_engine(device="cpu", memory_share=0.25).capacity_tokens == 2496


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about a GPU that is not there")
def test_a_gpu_that_is_not_there_is_not_replaced() -> None:
    """Asked for by name it is an error."""
    with pytest.raises(ConfigError, match="no CUDA device here: choose --device cpu"):
        build_engine(device="cuda")


def test_memory_that_is_short_beside_the_pool_is_told_before_the_engine_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error carries what was asked for; the engine ends with one line."""
    engine = Engine(tiny(), PagedConfig(20, 4))
    asked: list[int] = []
    engine.out_of_memory.append(lambda error: asked.append(asked_bytes(error)))

    def refused(*arguments: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 384.00 MiB. GPU 0 has a total ...")

    monkeypatch.setattr(engine, "_logits", refused)
    engine.add([1, 2, 3], Sampling(4))
    with pytest.raises(SystemRefused, match="ran out of memory beside the KV pool"):
        engine.step()
    assert asked == [384 << 20]
    assert asked_bytes(RuntimeError("no number")) == 0


def test_two_engines_of_one_name_do_not_record_into_one_directory(tmp_path: Path) -> None:
    """The second is told before it serves anybody; under another name it may."""
    first = build_engine(device="cpu", directory=tmp_path)
    with pytest.raises(SystemRefused, match="another engine called reference records there: give"):
        build_engine(device="cpu", directory=tmp_path)
    build_engine(device="cpu", directory=tmp_path, name="second").close()
    first.close()


def test_scores_that_are_no_numbers_end_the_engine_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a token is drawn from them."""
    engine = Engine(tiny(), PagedConfig(20, 4))
    monkeypatch.setattr(engine, "_logits", lambda *arguments: torch.full((1, 320), float("nan")))
    engine.add([1, 2, 3], Sampling(4, temperature=1.0))
    with pytest.raises(InputError, match="the model's scores are no numbers"):
        engine.step()

"""`kvmon engine` as it is used: under OpenAI's client, a public load generator, and clients that hang up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from kvmon.cli.main import run
from kvmon.cli.watch import Watch
from tests.integration.engine_server import SAMPLING, Server, engine_run, engine_server
from tests.servers import wait_for
from tests.unit.engine.models import theirs
from tests.unit.engine.test_tokenizer import byte_level

GUIDELLM = Path(__file__).parents[2] / ".venv" / "guidellm" / "bin" / "guidellm"
SECRET = "the secret of the golden pangolin"
LAYOUTS = {"paged": (), "contiguous": ("--reserve", "chunk:64")}


@pytest.fixture(scope="module", params=LAYOUTS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of each layout."""
    place = tmp_path_factory.mktemp("server")
    with engine_server(place, "--layout", request.param, *LAYOUTS[request.param]) as one:
        yield one


def completion(server: Server, prompt: Any, **options: Any) -> Any:
    """An answer in one piece."""
    return server.client.completions.create(model="kvmon-tiny", prompt=prompt, **{**SAMPLING, **options})


def streamed(server: Server, prompt: Any, **options: Any) -> tuple[list[str], list[str | None]]:
    """The pieces of a streamed answer, and the reasons to end that came with them."""
    chunks = list(completion(server, prompt, stream=True, **options))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return [choice.text for choice in choices], [choice.finish_reason for choice in choices]


def test_the_same_seed_gives_the_same_text_however_it_is_asked_for(server: Server, tmp_path: Path) -> None:
    """In one piece or streamed, alone or in company, over HTTP or from a file, from pages or from blocks."""
    text = completion(server, "once upon").choices[0].text
    assert text
    pieces, reasons = streamed(server, "once upon")
    assert "".join(pieces) == text
    assert len(pieces) > 3
    assert reasons[-1] in ("length", "stop")
    assert set(reasons[:-1]) == {None}
    assert completion(server, ["there was", "once upon"]).choices[1].text == text
    assert completion(server, [256, *b"once upon"]).choices[0].text == text
    assert completion(server, "once upon", seed=8).choices[0].text != text
    lines = tmp_path / "in.jsonl"
    lines.write_text(json.dumps({"prompt": "once upon", **SAMPLING}) + "\n")
    done = engine_run(str(lines))
    assert json.loads(done.stdout)["choices"][0]["text"] == text


def test_a_chat_is_answered_in_one_piece_and_in_many(server: Server) -> None:
    """The same text, who speaks, why it ended and how many tokens there were."""
    body: dict[str, Any] = {"model": "kvmon-tiny", "messages": [{"role": "user", "content": "hi"}], **SAMPLING}
    whole = server.client.chat.completions.create(**body)
    chunks = list(server.client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert whole.choices[0].message.role == chunks[0].choices[0].delta.role == "assistant"
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(deltas) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert whole.usage is not None
    assert chunks[-1].usage == whole.usage
    assert whole.usage.prompt_tokens == 1 + len("user: hi\nassistant:")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_several_answers_differ_and_come_in_order(server: Server) -> None:
    """n answers for each prompt, numbered; each is what it was before, streamed or not."""
    choices = completion(server, ["a", "b"], n=2, echo=True).choices
    assert [choice.index for choice in choices] == [0, 1, 2, 3]
    assert [choice.text[0] for choice in choices] == ["a", "a", "b", "b"]
    assert len({choice.text for choice in choices}) == 4
    texts = [""] * 4
    for chunk in completion(server, ["a", "b"], n=2, echo=True, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in choices]


def test_a_stop_text_is_neither_given_nor_followed(server: Server) -> None:
    """The answer ends before it, with the reason `stop`, and its memory comes back at once."""
    text = completion(server, "x", max_tokens=100).choices[0].text
    stop = text[5:8]
    expected = text[: text.index(stop)]
    whole = completion(server, "x", max_tokens=100, stop=["never to be seen", stop])
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (expected, "stop")
    pieces, reasons = streamed(server, "x", max_tokens=100, stop=stop)
    assert ("".join(pieces), reasons[-1]) == (expected, "stop")
    server.until_idle()


def test_ignore_eos_makes_answers_as_long_as_they_were_asked_for(server: Server) -> None:
    """What load generators need: exactly so many tokens."""
    answer = completion(server, "x", max_tokens=200, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 200
    assert answer.choices[0].finish_reason == "length"


def test_what_cannot_be_served_is_an_error_that_the_client_knows(server: Server) -> None:
    """Types of OpenAI's client, parameters by name, and numbers where something does not fit."""
    assert [model.id for model in server.client.models.list()] == ["kvmon-tiny"]
    assert server.client.models.retrieve("kvmon-tiny").id == "kvmon-tiny"
    with pytest.raises(openai.NotFoundError, match="ask for kvmon-tiny"):
        server.client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.BadRequestError) as unsupported:
        completion(server, "x", presence_penalty=1)
    assert unsupported.value.param == "presence_penalty"
    with pytest.raises(openai.BadRequestError, match="1000001 tokens") as long:
        completion(server, "x" * 1_000_000)
    assert long.value.code == "context_length_exceeded"
    request = urllib.request.Request(f"{server.root}/v1/completions", b"{", method="POST")
    with pytest.raises(urllib.error.HTTPError) as broken:
        urllib.request.urlopen(request)
    assert broken.value.code == 400
    assert json.loads(broken.value.read())["error"]["code"] == "invalid_json"
    broken.value.close()


def test_a_model_directory_is_served_with_its_own_words(tmp_path: Path) -> None:
    """Named as the directory, its tokenizer and template in use, its greedy text the one of transformers."""
    directory = tmp_path / "tiny-qwen"
    model, library = theirs("qwen3"), byte_level()
    model.save_pretrained(directory)
    library.save(str(directory / "tokenizer.json"))
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>"
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": template}))
    prompt = library.encode("the quick brown").ids
    whole = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=40, eos_token_id=None)[0].tolist()
    expected = library.decode(whole[len(prompt) :])
    greedy: dict[str, Any] = {
        "model": "tiny-qwen",
        "temperature": 0,
        "max_tokens": 40,
        "extra_body": {"ignore_eos": True},
    }
    with engine_server(tmp_path, "--model", str(directory)) as server:
        assert "kvmon: serving tiny-qwen at" in server.log.read_text()
        answer = server.client.completions.create(prompt="the quick brown", **greedy)
        assert answer.choices[0].text == expected
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(prompt)
        chat = server.client.chat.completions.create(messages=[{"role": "user", "content": "the fox"}], **greedy)
        same = library.encode("[user]the fox>", add_special_tokens=False).ids
        assert (
            chat.choices[0].message.content == server.client.completions.create(prompt=same, **greedy).choices[0].text
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_request_that_the_pool_can_never_hold_is_refused(tmp_path: Path, layout: str) -> None:
    """Status 400 with what it needs and what the pool has, though the model would take it; others are served."""
    options = ("--layout", layout, "--capacity-tokens", "64", "--block-size", "16", "--max-model-len", "200")
    with engine_server(tmp_path, *options) as server:
        for prompt, tokens in (("x" * 100, 8), ("x", 100)):
            with pytest.raises(openai.BadRequestError, match="the pool holds 64") as refused:
                completion(server, prompt, max_tokens=tokens)
            assert refused.value.code == "context_length_exceeded"
        assert completion(server, "x", max_tokens=8).usage is not None


def test_overload_is_answered_429_where_it_is_asked_for(tmp_path: Path) -> None:
    """Once as many wait as may, further requests are refused and those that wait are served."""
    with engine_server(tmp_path, "--max-sequences", "1", "--overload", "refuse", "--max-waiting", "2") as server:
        codes = asyncio.run(_many(server, [{"max_tokens": 60} for _ in range(12)]))
        assert set(codes) == {200, 429}
        assert codes.count(200) >= 2
        server.until_idle()


async def _many(server: Server, requests: list[dict[str, Any]]) -> list[int]:
    """The status of each of these requests, sent together."""
    async with openai.AsyncOpenAI(base_url=f"{server.root}/v1", api_key="none", max_retries=0) as client:

        async def one(options: dict[str, Any]) -> int:
            try:
                await client.completions.create(model="kvmon-tiny", prompt="x", seed=1, **options)
            except openai.RateLimitError as error:
                assert error.response.headers["retry-after"] == "1"
                return error.status_code
            return 200

        return list(await asyncio.gather(*(one(options) for options in requests)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_hundred_clients_of_whom_some_hang_up_leave_nothing_behind(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under pressure, with stop texts and broken connections, every unit comes back, and the recording proves it."""
    recording = tmp_path / "rec"
    options = ("--capacity-tokens", "2048", "--max-sequences", "32", "--dir", str(recording))
    with engine_server(tmp_path, "--layout", layout, *LAYOUTS[layout], *options) as server:
        finished = asyncio.run(_crowd(server, 100))
        assert finished.count("hung up") >= 20
        assert finished.count("done") >= 50
        server.until_idle()
        watch = Watch(recording)
        wait_for(lambda: _empty(watch), "memory is held though nobody runs", 20)
        watch.close()
        assert server.end() == 0
        log = server.log.read_text()
    assert run(["verify", str(recording)]) == 0
    assert "exclusive and conserved at every one of" in capsys.readouterr().out
    kept = b"".join(path.read_bytes() for path in recording.rglob("*") if path.is_file())
    assert SECRET.encode() not in kept
    assert SECRET not in log
    assert log.count("\n") == 1, log


def _empty(watch: Watch) -> bool:
    """Whether the recording shows every unit free or reusable, nobody running, nothing lost and nothing unowned, and
    the engine's own numbers add up to its pool."""
    watch.catch_up()
    (state,) = (stream.state for stream in watch.streams())
    assert all(claims.residual(state.pools[pool].capacity_units) == 0 for pool, claims in state.claims.items())
    assert state.claims
    (view,) = watch.screen().streams
    return (
        not view.running
        and not view.waiting
        and not view.lost_records
        and all(pool.units["active"] == 0 and pool.unowned == 0 for pool in view.pools)
    )


async def _crowd(server: Server, clients: int) -> list[str]:
    """What became of each client: every third hangs up, before the first piece or in the middle of the stream."""
    async with openai.AsyncOpenAI(base_url=f"{server.root}/v1", api_key="none", max_retries=0, timeout=300) as client:

        async def one(number: int) -> str:
            create = client.completions.create(
                model="kvmon-tiny",
                prompt=SECRET * (1 + number % 4),
                max_tokens=20 + 7 * (number % 19),
                seed=number,
                n=1 + number % 2,
                stop=["e"] if number % 5 == 0 else None,
                stream=number % 4 != 1,
                extra_body={"ignore_eos": True},
            )
            if number % 6 == 0:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(create, 0.05)
                return "hung up"
            answer = await create
            if not isinstance(answer, openai.AsyncStream):
                return "done"
            async with answer:
                seen = 0
                async for _ in answer:
                    seen += 1
                    if number % 6 == 3 and seen > number % 11:
                        return "hung up"
            return "done"

        return list(await asyncio.gather(*(one(number) for number in range(clients))))


def test_a_body_that_no_encoding_holds_is_refused_without_a_word_in_the_log(server: Server) -> None:
    """Half a surrogate pair as a key, an endless key: OpenAI's error object, short, and nothing for the operator."""
    before = server.log.read_text()
    for body in (b'{"\\ud800": 1, "prompt": "a"}', b'{"' + b"k" * 1_000_000 + b'": 1, "prompt": "a"}'):
        request = urllib.request.Request(f"{server.root}/v1/completions", body, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
        answer = refused.value.read()
        assert refused.value.code == 400 and len(answer) < 1000
        assert json.loads(answer)["error"]["code"] == "unknown_parameter"
    assert server.log.read_text() == before


def test_a_client_that_is_still_sending_is_told_that_the_server_ends(tmp_path: Path) -> None:
    """Half a body when SIGTERM comes: an answer that says so, no traceback, exit code 0."""
    with engine_server(tmp_path) as server:
        address = urllib.parse.urlsplit(server.root)
        with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n" + b"{" * 200)
            wait_for(lambda: server.health()["status"] == "ok", "the server does not answer")
            assert server.end() == 0
            answer = client.recv(65536)
        assert b"503" in answer.splitlines()[0] and b'"stopping"' in answer
        assert "Traceback" not in server.log.read_text() and server.log.read_text().count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_the_server_whatever_it_does(tmp_path: Path, number: int, code: int) -> None:
    """Within seconds, though an answer is far from its end; the client is told, and the recording is closed."""
    recording = tmp_path / "rec"
    with engine_server(tmp_path, "--dir", str(recording)) as server:
        body = {"prompt": "x", "stream": True, "max_tokens": 12_000, "ignore_eos": True}
        request = urllib.request.Request(f"{server.root}/v1/completions", json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            assert answer.readline().startswith(b"data: ")
            start = time.monotonic()
            assert server.end(number) == code
            assert time.monotonic() - start < 8
            assert b"the server is stopping" in answer.read()
    assert run(["verify", str(recording)]) == 0


@pytest.mark.parametrize("server", ["paged"], indirect=True)
@pytest.mark.slow  # the load generator takes ten seconds to start
def test_a_public_load_generator_drives_it(server: Server, tmp_path: Path) -> None:
    """GuideLLM, unchanged: all its requests succeed, with as many tokens as it asked for."""
    if not GUIDELLM.exists():
        message = "guidellm is missing: run 'make test' once"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    prompts = tmp_path / "prompts.jsonl"
    lines = (json.dumps({"prompt": f"story number {n}", "output_tokens_count": 12}) for n in range(60))
    prompts.write_text("\n".join(lines))
    report = tmp_path / "report.json"
    command = [str(GUIDELLM), "run", "--disable-console", "--backend", f"kind=openai_http,target={server.root}"]
    command += ["--profile", "kind=concurrent,streams=8", "--constraint", "kind=max_requests,count=40"]
    command += ["--data", f"kind=json_file,path={prompts}", "--output", f"kind=json,path={report}"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    assert benchmark["metrics"]["request_totals"]["successful"] == 40
    assert benchmark["metrics"]["request_totals"]["errored"] == 0
    server.until_idle()

"""Tokenizers: text in and out, piece by piece, and chats through templates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from kvmon.engine.server.api_error import ApiError
from kvmon.engine.server.chat import load_chat_template, plain_chat
from kvmon.engine.server.protocol import Message
from kvmon.engine.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer, check_vocabulary, load_tokenizer
from kvmon.errors import InputError

CORPUS = ["the quick brown fox jumps over the lazy dog, and the café closes at 5 €", "größer als die Straße", "日本語"]
# Nothing that a tokenizer writes in another way, such as the sign that stands for a space.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=40)


def byte_level() -> Library:
    """Byte-level BPE, as of GPT-2 and Llama 3: a token may end within a character."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer)
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return library


def sentencepiece_style() -> Library:
    """As of Llama 2: a sign for each space, bytes as tokens for what is not in the vocabulary, first space cut off."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += ["\u2581", *"abcdefghijklmnopqrstuvwxyz", "th", "the", "\u2581the"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the")]
    library = Library(
        models.BPE(
            {name: at for at, name in enumerate(names)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return library


KINDS = {"byte-level": byte_level, "sentencepiece": sentencepiece_style}


@pytest.fixture(scope="module", params=[*KINDS, "bytes"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Each kind of tokenizer."""
    if request.param == "bytes":
        return load_tokenizer(None)
    directory = tmp_path_factory.mktemp(request.param)
    KINDS[request.param]().save(str(directory / "tokenizer.json"))
    return load_tokenizer(directory)


def pieces(tokenizer: Tokenizer, tokens: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    """What a decoder gives, token by token and at the end."""
    decoder = tokenizer.decoder(prompt)
    return [*(decoder.push(token) for token in tokens), decoder.finish()]


@given(text=TEXT)
def test_the_pieces_of_a_text_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    """Tokenised and decoded token by token, a text comes back, and no piece breaks a character."""
    parts = pieces(tokenizer, tokenizer.encode(text, special=False))
    assert "".join(parts) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


@given(text=TEXT.filter(bool), cut=st.integers(0, 60))
def test_an_answer_goes_on_where_the_prompt_ends(tokenizer: Tokenizer, text: str, cut: int) -> None:
    """Whatever part of the tokens is the prompt, prompt and pieces together are the text."""
    tokens = tokenizer.encode(text)
    cut = min(cut, len(tokens))
    start = tokenizer.decode(tokens[:cut])
    if not start.endswith("\N{REPLACEMENT CHARACTER}"):
        assert start + "".join(pieces(tokenizer, tokens[cut:], tokens[:cut])) == text


def test_a_word_after_the_prompt_keeps_its_space(tokenizer: Tokenizer) -> None:
    """The space that a whole text's first word loses is not lost in the middle."""
    prompt, whole = tokenizer.encode("the"), tokenizer.encode("the fox")
    assert "".join(pieces(tokenizer, whole[len(prompt) :], prompt)) == " fox"


@given(tokens=st.lists(st.integers(0, 284), max_size=200))
def test_tokens_that_are_no_text_still_come_out(tokenizer: Tokenizer, tokens: list[int]) -> None:
    """Broken bytes become replacement characters; nothing raises, and little is held back until the end."""
    parts = pieces(tokenizer, tokens)
    assert len(parts[-1]) <= 3


@given(data=st.binary(max_size=60))
def test_bytes_read_as_python_reads_them(data: bytes) -> None:
    """The pieces of any bytes are their text with replacement characters, whole or in pieces."""
    assert "".join(pieces(ByteTokenizer(), list(data))) == data.decode(errors="replace")


def test_special_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    """What opens and ends a sequence is in no piece; an empty text has one token where the kind opens texts."""
    opened = tokenizer.encode("")
    assert len(opened) == 1
    assert tokenizer.encode("", special=False) == []
    assert "".join(pieces(tokenizer, [*opened, *tokenizer.encode("fox", special=False)])) == "fox"


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0", "model": 7}', "\x00\x01"])
def test_a_damaged_tokenizer_is_one_clear_error(tmp_path: Path, content: str) -> None:
    """The message names the file, on one line."""
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json is damaged") as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"eos_token": "</s>"}}, (1,)),
        ({"tokenizer_config.json": {"eos_token": {"content": "</s>"}}}, (1,)),
        ({"tokenizer_config.json": {"eos_token": "</s>"}, "generation_config.json": {"eos_token_id": [5, 6]}}, (5, 6)),
        ({"generation_config.json": {"eos_token_id": 7}}, (7,)),
    ],
)
def test_the_end_of_a_sequence_is_what_the_directory_says(
    tmp_path: Path, files: dict[str, object], eos: tuple[int, ...] | None
) -> None:
    """generation_config.json first, then the tokenizer's own; nothing where neither says."""
    byte_level().save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert FileTokenizer(tmp_path).eos == eos


def test_a_tokenizer_that_is_larger_than_its_model_is_refused() -> None:
    """Ids that the model does not know would end the engine."""
    check_vocabulary(ByteTokenizer(), 258)
    with pytest.raises(InputError, match="258 ids and the model 257"):
        check_vocabulary(ByteTokenizer(), 257)


CHAT = [Message("system", "be brief"), Message("user", "hi <b>")]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}\n{% endfor %}>"


@pytest.mark.parametrize("place", ["config", "named", "file"])
def test_a_model_brings_its_template(tmp_path: Path, place: str) -> None:
    """From tokenizer_config.json, as one or as the default of several, or from a file of its own."""
    byte_level().save(str(tmp_path / "tokenizer.json"))
    config: dict[str, object] = {"bos_token": "<s>", "eos_token": "</s>"}
    if place == "config":
        config["chat_template"] = TEMPLATE
    elif place == "named":
        config["chat_template"] = [{"name": "tools", "template": ""}, {"name": "default", "template": TEMPLATE}]
    else:
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    template = load_chat_template(tmp_path, tokenizer)
    assert template is not None
    text = template(CHAT)
    assert text == "<s>[system]be brief</s>\n[user]hi <b></s>\n>"
    assert tokenizer.encode(text, special=False)[0] == 0


def test_a_model_without_a_template_gets_the_plain_one(tmp_path: Path) -> None:
    """A line a message, and the assistant's turn."""
    assert load_chat_template(None, ByteTokenizer()) is None
    assert load_chat_template(tmp_path, ByteTokenizer()) is None
    assert plain_chat(CHAT) == "system: be brief\nuser: hi <b>\nassistant:"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no system\n role here') }}", "no system role here"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ messages[9].role }}", "refuses"),
        ("{{ 1 / 0 }}", "division"),
    ],
)
def test_a_template_that_fails_is_the_clients_error(tmp_path: Path, template: str, says: str) -> None:
    """One line, and no way out of the sandbox."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    render = load_chat_template(tmp_path, ByteTokenizer())
    assert render is not None
    with pytest.raises(ApiError, match=says) as raised:
        render(CHAT)
    assert raised.value.status == 400
    assert "\n" not in str(raised.value)


def test_a_template_that_loops_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs its client the time that a chat may take, and nobody else anything."""
    monkeypatch.setattr("kvmon.engine.server.chat._MOST_SECONDS", 0.2)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(loop)
    render = load_chat_template(tmp_path, ByteTokenizer())
    assert render is not None
    with pytest.raises(ApiError, match=r"it takes longer than 0\.2 s"):
        render(CHAT)


NAMED_BY_A_LIST = '{"chat_template": [{"name": ["x"], "template": 1}, {"name": "default", "template": 1}]}'


@pytest.mark.parametrize(
    "config",
    [
        '{"chat_template": "{% if %}"}',
        '{"chat_template": "{% break %}"}',
        json.dumps({"chat_template": "{{" + "[" * 2000 + "]" * 2000 + "}}"}),
        NAMED_BY_A_LIST,
        '{"chat_template": 7}',
        "[]",
        "{",
    ],
)
def test_a_damaged_template_is_the_directorys_error(tmp_path: Path, config: str) -> None:
    """Said when the server starts, not at the first chat."""
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(InputError, match=r"tokenizer_config\.json"):
        load_chat_template(tmp_path, ByteTokenizer())

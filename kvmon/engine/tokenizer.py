"""Text into token ids and back, the way back token by token.

Purpose: bytes where a model has no tokenizer, else its `tokenizer.json` through the `tokenizers` library. Invariant: no
piece that a decoder gives ends within a character, and all of them joined are the text of the whole. What is no
character becomes U+FFFD. It knows neither the model nor the protocol.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kvmon.errors import ConfigError, InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

__all__ = [
    "ByteTokenizer",
    "Decoder",
    "FileTokenizer",
    "Tokenizer",
    "check_vocabulary",
    "load_tokenizer",
    "read_json",
]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MOST_CONTINUATION = 3  # bytes of a character that is not complete, and so tokens
_CONTEXT = 8  # tokens of the prompt that decide how the first token after it reads
_LONGEST_WINDOW = 64  # tokens that are decoded again; a text with so many broken characters is no text


class Decoder(Protocol):
    """Turns the tokens of one answer into text as they come."""

    def push(self, token: int) -> str:
        """The text that is certain with this token: nothing, or whole characters."""

    def finish(self) -> str:
        """The rest, once no token follows."""


class Tokenizer(Protocol):
    """`vocabulary`: its ids are below it. `eos`: ids that end an answer; None: the model knows."""

    vocabulary: int
    eos: tuple[int, ...] | None
    bos_text: str
    eos_text: str

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text, with what the model expects around it unless `special` is False."""

    def decoder(self, prompt: Sequence[int] = ()) -> Decoder:
        """A decoder for an answer to this prompt."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""


class ByteTokenizer:
    """The UTF-8 bytes of a text as ids 0 to 255, behind one id that opens it."""

    BOS, EOS = 256, 257

    vocabulary = 258
    eos: tuple[int, ...] | None = (EOS,)
    bos_text = eos_text = ""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """One id a byte; BOS first unless `special` is False."""
        return [*((self.BOS,) if special else ()), *text.encode()]

    def decoder(self, prompt: Sequence[int] = ()) -> Decoder:
        """A decoder that holds back the bytes of an unfinished character. The prompt changes nothing."""
        return _ByteDecoder()

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the bytes among the tokens."""
        return bytes(token for token in tokens if token < self.BOS).decode(errors="replace")


class _ByteDecoder:
    def __init__(self) -> None:
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._bytes.decode(bytes((token,))) if token < ByteTokenizer.BOS else ""

    def finish(self) -> str:
        return self._bytes.decode(b"", final=True)


class FileTokenizer:
    """The tokenizer of a model directory: `tokenizer.json`, with `tokenizer_config.json` and `generation_config.json`
    where they are.

    Raises InputError where a file is damaged, ConfigError where the library is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from tokenizers import Tokenizer as Library
        except ImportError:
            raise ConfigError("a tokenizer.json needs the tokenizers library: pip install 'kvmon[engine]'") from None
        path = directory / "tokenizer.json"
        try:
            self._library = Library.from_file(str(path))
        except Exception as error:  # whatever the library raises for a file that it cannot read
            raise InputError(f"{path} is damaged ({str(error)[:120]}): fetch it again or remove it") from None
        self._library.no_truncation()
        self._library.no_padding()
        self.vocabulary = 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=0)
        config = read_json(directory / "tokenizer_config.json")
        self.bos_text, self.eos_text = _token_text(config.get("bos_token")), _token_text(config.get("eos_token"))
        self.eos = _ids(read_json(directory / "generation_config.json").get("eos_token_id"))
        if self.eos is None and self.eos_text:
            known = self._library.token_to_id(self.eos_text)
            self.eos = None if known is None else (known,)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids, with the special tokens of the file's own template unless `special` is False."""
        return list(self._library.encode(text, add_special_tokens=special).ids)

    def decoder(self, prompt: Sequence[int] = ()) -> Decoder:
        """A decoder that goes on where the prompt ends, so that a word after it keeps its space."""
        context: Sequence[int] = ()
        for length in range(_CONTEXT, _CONTEXT + _MOST_CONTINUATION + 1):
            context = prompt[-length:]
            if _REPLACEMENT not in self.decode(context):
                break  # it does not begin within a character
        return _WindowDecoder(self._library, context)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self._library.decode(list(tokens)))


class _WindowDecoder:
    """Decodes a short window of tokens again with each new one: how a token reads depends on those before it.

    `_window` are the tokens that are decoded together, `_given` the characters of their text that were given or belong
    to the prompt, `_last` where in the window the tokens begin whose text is not settled, `_broken` for
    how many tokens the text has ended in what is no character.
    """

    def __init__(self, library: LibraryTokenizer, context: Sequence[int]) -> None:
        self._library = library
        self._window = list(context)
        self._last = len(self._window)
        self._given = len(self._text())
        self._broken = 0

    def push(self, token: int) -> str:
        self._window.append(token)
        text = self._text()
        broken = text.endswith(_REPLACEMENT)
        self._broken = self._broken + 1 if broken else 0
        full = len(self._window) >= _LONGEST_WINDOW
        certain = len(text)
        if broken and not full:
            if self._broken <= _MOST_CONTINUATION:
                return ""  # a character of up to four bytes may be complete with the next token
            # It never was one, or each token ends one and begins another: all but the last is certain.
            certain = max(len(text.rstrip(_REPLACEMENT)), len(text) - _MOST_CONTINUATION)
        piece = text[self._given : certain]
        if full or (piece and certain == len(text)):
            self._window = self._window[self._last :]
            self._last = len(self._window)
            self._given = len(self._text())
        else:
            self._given += len(piece)
        return piece

    def finish(self) -> str:
        piece = self._text()[self._given :]
        self._given += len(piece)
        return piece

    def _text(self) -> str:
        return str(self._library.decode(self._window))


def load_tokenizer(directory: Path | None) -> Tokenizer:
    """The tokenizer of a model directory, or bytes where it has none or there is no directory.

    Raises InputError where a file is damaged.
    """
    if directory is not None and (directory / "tokenizer.json").exists():
        return FileTokenizer(directory)
    return ByteTokenizer()


def check_vocabulary(tokenizer: Tokenizer, vocabulary: int) -> None:
    """Raise InputError where the tokenizer has ids that a model of so many does not know."""
    if tokenizer.vocabulary > vocabulary:
        raise InputError(
            f"the tokenizer has {tokenizer.vocabulary} ids and the model {vocabulary}: give a model directory whose "
            "tokenizer.json belongs to its weights"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a model directory; empty without a file. Raises InputError where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): fetch it again or remove it") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object: fetch it again or remove it")
    return value


def _token_text(entry: object) -> str:
    """A special token as tokenizer_config.json names it: its text, or an object with it."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else ""


def _ids(entry: object) -> tuple[int, ...] | None:
    if type(entry) is int:
        return (entry,)
    if isinstance(entry, list) and entry and all(type(one) is int for one in entry):
        return tuple(entry)
    return None

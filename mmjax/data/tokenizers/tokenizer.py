"""Text to token ids: what wraps a HuggingFace tokenizer, and one from a local HuggingFace folder."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core import quiet
from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.data.tokenizers.special import with_special

quiet.transformers()

TIME = re.compile(r"<\|\d+\.\d\d\|>")  # of Whisper
HALVES = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A HuggingFace tokenizer behind the few calls that we need; safe to share between threads and to pickle.

    Attributes:
      vocab_size: ids are in [0, vocab_size).
      pad_id: fills rows up; the end id where the tokenizer has none of its own.
      bos_id: begins a sequence ([CLS] where there is no other; the pad id, as in T5, where there is neither).
      eos_id: ends a sequence ([SEP] where there is no other).
      mask_id: of the masked token, or None.
      special_ids: all special tokens, ascending; without `delimiter_id`.
      delimiter_id: of the letter that stands for a space in a tokenizer of letters, `transformers.Wav2Vec2CTCTokenizer`, which
        takes it for a special token, and the ids of a text for frames; None for any other. Its texts have neither a first nor
        a last token.
      opening: ids that come before each text, of which the rest is gone on with: of Whisper's several.
      begins, ends: ids that `encode` adds, for a tokenizer that does not write them by itself: GPT-2's writes neither a first
        nor a last token, Llama's no last one. () where it does: what ends by itself (BERT, CLIP, T5) is left as it is.
      untimed: of Whisper's, the id that says that a text has no times; those after it are times. None of others.
    """

    def __init__(self, huggingface: Any) -> None:
        """Wrap a `transformers` tokenizer. Raises `UserError` if nothing in it can end a sequence."""
        self.huggingface = huggingface
        eos = _first(huggingface.eos_token_id, huggingface.sep_token_id)
        if eos is None:
            raise UserError("tokenizer: it has neither an eos_token nor a sep_token; set one in its tokenizer_config.json")
        self.vocab_size = len(huggingface)
        self.eos_id = eos
        self.pad_id: int = _first(huggingface.pad_token_id, eos)
        self.bos_id: int = _first(huggingface.bos_token_id, huggingface.cls_token_id, self.pad_id)
        self.mask_id: int | None = huggingface.mask_token_id
        self.delimiter_id: int | None = getattr(huggingface, "word_delimiter_token_id", None)
        self.special_ids: tuple[int, ...] = tuple(sorted({*huggingface.all_special_ids} - {self.delimiter_id}))
        begun, ended = _writes(huggingface)
        bare = self.delimiter_id is not None
        self.begins: tuple[int, ...] = () if begun or ended or bare else (self.bos_id,)
        self.opening: tuple[int, ...] = begun or (self.bos_id,)
        self.ends: tuple[int, ...] = () if ended or bare else (self.eos_id,)
        self.untimed = self.number("<|notimestamps|>")
        self._spaced: bool | None = None  # whether words are given the space before them; found out when first asked
        self._lock = threading.Lock()  # HuggingFace keeps the truncation asked for in the tokenizer itself

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Any]]:
        return Tokenizer, (self.huggingface,)

    def number(self, token: str) -> int | None:
        """The id of a token, None where there is no such token."""
        found = self.huggingface.convert_tokens_to_ids(token)
        return found if isinstance(found, int) and self.huggingface.convert_ids_to_tokens(found) == token else None

    def encode(self, texts: Sequence[str], max_length: int, pairs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Token ids with the tokenizer's own special tokens and those of `begins` and `ends`, padded on the right.

        A text that is too long loses tokens before its final special token, which stays; of two texts the longer one is cut.

        Returns:
          `ids` int32 [N, T] and `mask` bool [N, T] (True = a real token), T = max_length; `segments` int32 [N, T], 1 where a
          token is of the second text; `truncated` bool [N].

        Raises:
          UserError: max_length leaves no room beside the special tokens.
        """
        room = max_length - len(self.begins) - len(self.ends)
        if room <= self.huggingface.num_special_tokens_to_add(pair=pairs is not None):
            raise UserError(f"max_length={max_length} leaves no room for text beside the special tokens")
        found = self._encode(list(texts), None if pairs is None else list(pairs))
        truncated_N = np.array([len(ids) > room for ids in found["input_ids"]], bool)
        ids_NT = np.full((len(texts), max_length), self.pad_id, np.int32)
        mask_NT = np.zeros_like(ids_NT, bool)
        segments_NT = np.zeros_like(ids_NT)
        for n, truncated in enumerate(truncated_N):
            if truncated:
                cut = self._encode([texts[n]], None if pairs is None else [pairs[n]], room)
                ids, segments = cut["input_ids"][0], cut["token_type_ids"][0]
            else:
                ids, segments = found["input_ids"][n], found["token_type_ids"][n]
            ids = [*self.begins, *ids, *self.ends]
            last = segments[-1] if segments else 0
            segments = [0] * len(self.begins) + segments + [last] * len(self.ends)
            ids_NT[n, : len(ids)] = ids
            mask_NT[n, : len(ids)] = True
            segments_NT[n, : len(ids)] = segments
        return {"ids": ids_NT, "mask": mask_NT, "segments": segments_NT, "truncated": truncated_N}

    def encode_words(self, words: Sequence[Sequence[str]], max_length: int) -> dict[str, np.ndarray]:
        """Token ids of texts that are words already, as `transformers` gives them with `is_split_into_words=True`.

        A tokenizer that marks the space before a word (byte-level BPE) and does not put it there by itself is given it before
        each word but the first: the ids are those of the words with spaces between them.

        Returns:
          `ids`, `mask` and `truncated` as `encode` gives them; `words` int32 [N, T]: the number of the word that a token is of,
          -1 for special tokens and padding. A word may have no token.

        Raises:
          UserError: max_length leaves no room beside the special tokens; a tokenizer without a fast form.
        """
        if self._spaced is None:
            apart, spaced, whole = ([*one.ids] for one in self._encodings([["a", "b"], ["a", " b"], "a b"], None))
            self._spaced = apart != whole and spaced == whole
        given = [[" " * bool(n and self._spaced) + word for n, word in enumerate(one)] for one in words]
        found, encodings = self._rows(given, max_length)
        words_NT = np.full_like(found["ids"], -1)
        for row_T, one in zip(words_NT, encodings, strict=True):
            row_T[len(self.begins) :][: len(one)] = [-1 if word is None else word for word in one.word_ids]
        return {**found, "words": words_NT}

    def encode_places(self, texts: Sequence[str], max_length: int) -> dict[str, np.ndarray]:
        """As `encode`, and where each token stands in its text.

        Returns:
          `ids`, `mask` and `truncated`; `places` int32 [N, T, 2]: the first character of a token and the one after its last, -1
          for special tokens and padding; `words` as `encode_words` gives them, of the words that the tokenizer parts.

        Raises:
          UserError: max_length leaves no room beside the special tokens; a tokenizer without a fast form.
        """
        found, encodings = self._rows(list(texts), max_length)
        places_NT2 = np.full((*found["ids"].shape, 2), -1, np.int32)
        words_NT = np.full_like(found["ids"], -1)
        for row_T, row_T2, one in zip(words_NT, places_NT2, encodings, strict=True):
            row_T[len(self.begins) :][: len(one)] = [-1 if word is None else word for word in one.word_ids]
            special = zip(one.offsets, one.special_tokens_mask, strict=True)
            own = [(-1, -1) if is_special else place for place, is_special in special]
            row_T2[len(self.begins) :][: len(one)] = np.array(own, np.int32).reshape(-1, 2)
        return {**found, "places": places_NT2, "words": words_NT}

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Any]:
        """The library's own account of each two texts, as long as they are: `ids`, `type_ids`, `sequence_ids`, `offsets`.
        Raises `UserError` for a tokenizer without a fast form."""
        return self._encodings(list(pairs), None)

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, without special ones. Raises `UserError` for a tokenizer without a fast form."""
        backend = self._backend()
        with self._lock:
            backend.no_padding()
            backend.no_truncation()
            return [len(one) for one in backend.encode_batch(list(map(whole_letters, texts)), add_special_tokens=False)]

    def whole(self, text: str) -> list[int]:
        """The ids of one text as `encode` gives them, however many they are."""
        return [*self.begins, *self._encode([text], None)["input_ids"][0], *self.ends]

    def unknown(self, ids_NT: np.ndarray, mask_NT: np.ndarray) -> np.ndarray:
        """[N]: how many real tokens of each row stand for what the tokenizer does not know.

        0 where the token for that means something else as well (GPT-2's is the end of a text) or there is none.
        """
        unknown = self.huggingface.unk_token_id
        if unknown is None or unknown in (self.eos_id, self.bos_id, self.pad_id):
            return np.zeros(len(ids_NT), np.int64)
        return ((ids_NT == unknown) & mask_NT).sum(axis=1)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of one row of ids, without the special tokens."""
        own = [int(i) for i in ids]
        if self.delimiter_id is not None:
            kept = [i for i in own if i not in self.special_ids]
            return str(self.huggingface.decode(kept, group_tokens=False, clean_up_tokenization_spaces=False))
        return self.huggingface.decode(own, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def pieces(self, size: int) -> list[bytes]:
        """What each of so many tokens adds to a text, UTF-8; nothing for a special token, or a number that has no token."""
        letters, special = _byte_letters(), set(self.huggingface.all_special_ids)
        names = self.huggingface.convert_ids_to_tokens(range(min(size, len(self.huggingface))))
        first = self.huggingface.encode("a", add_special_tokens=False)
        before, found = self.decode(first), []
        bytewise = "ByteLevel" in str(self.huggingface.backend_tokenizer.decoder)
        for number, name in enumerate(names):
            if name is None or number in special:
                found.append(b"")
            elif bytewise and all(letter in letters for letter in name):
                found.append(bytes(letters[letter] for letter in name))
            else:  # a piece of a word, or a word with the space before it, as it is after another
                found.append(self.decode([*first, number])[len(before) :].encode())
        return found + [b""] * (size - len(found))

    def save(self, directory: str | Path) -> None:
        """Write a HuggingFace tokenizer folder, which `AutoTokenizer.from_pretrained` opens too."""
        self.huggingface.save_pretrained(str(directory))

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Open a HuggingFace tokenizer folder. Raises `UserError` if there is none."""
        return Pretrained(str(directory)).train(())

    def _rows(self, inputs: list[Any], max_length: int) -> tuple[dict[str, np.ndarray], list[Any]]:
        """`ids`, `mask` and `truncated` of texts or of lists of words, and the library's own account of each."""
        room = max_length - len(self.begins) - len(self.ends)
        if room <= self.huggingface.num_special_tokens_to_add():
            raise UserError(f"max_length={max_length} leaves no room for text beside the special tokens")
        encodings = self._encodings(inputs, None)
        truncated_N = np.array([len(one) > room for one in encodings], bool)
        for n in np.flatnonzero(truncated_N).tolist():
            encodings[n] = self._encodings([inputs[n]], room)[0]
        ids_NT = np.full((len(inputs), max_length), self.pad_id, np.int32)
        mask_NT = np.zeros_like(ids_NT, bool)
        for n, one in enumerate(encodings):
            ids = [*self.begins, *one.ids, *self.ends]
            ids_NT[n, : len(ids)], mask_NT[n, : len(ids)] = ids, True
        return {"ids": ids_NT, "mask": mask_NT, "truncated": truncated_N}, encodings

    def _encodings(self, inputs: list[Any], max_length: int | None) -> list[Any]:
        """The library's own account of texts, of texts as lists of words and of two texts in a tuple: ids, words and places."""
        backend = self._backend()
        with self._lock:  # HuggingFace sets both anew for each of its own calls
            backend.no_padding()
            backend.no_truncation()
            if max_length is not None:
                backend.enable_truncation(max_length)
            found = [
                backend.encode(*map(whole_letters, one))
                if isinstance(one, tuple)
                else backend.encode(whole_letters(one))
                if isinstance(one, str)
                else backend.encode(list(map(whole_letters, one)), is_pretokenized=True)
                for one in inputs
            ]
            backend.no_truncation()
        return found

    def _backend(self) -> Any:
        backend = getattr(self.huggingface, "backend_tokenizer", None)
        if backend is None:
            raise UserError("tokenizer: it has no fast form (tokenizer.json), which alone says of which word a token is")
        return backend

    def _encode(self, texts: list[str], pairs: list[str] | None, max_length: int | None = None) -> Any:
        with self._lock:
            found = self.huggingface(
                [whole_letters(text) for text in texts],
                None if pairs is None else [whole_letters(text) for text in pairs],
                truncation=max_length is not None,
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=True,
                verbose=False,
            )
        return found if self.untimed is None else self._timed(texts, found)

    def _timed(self, texts: list[str], found: Any) -> dict[str, list[list[int]]]:
        """The same of texts of Whisper, of which those that begin with a time do not say that there are none.

        Raises:
          UserError: a text with a time, of which the tokenizer has no token.
        """
        assert self.untimed is not None
        if (said := next(filter(None, map(TIME.search, texts)), None)) and self.number(said[0]) is None:
            raise UserError(
                f"tokenizer: a text has the time {said[0]}, and it has no such token: add those of times to tokenizer.json, as "
                "the files of openai/whisper have them, or leave times out of the texts"
            )
        kept: dict[str, list[list[int]]] = {"input_ids": [], "token_type_ids": []}
        for ids, segments in zip(found["input_ids"], found["token_type_ids"], strict=True):
            at = ids.index(self.untimed) if self.untimed in ids else len(ids)
            out = at if at + 1 < len(ids) and ids[at + 1] > self.untimed else len(ids)
            kept["input_ids"].append(ids[:out] + ids[out + 1 :])
            kept["token_type_ids"].append(segments[:out] + segments[out + 1 :])
        return kept


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A tokenizer from a local HuggingFace folder, as it is. Nothing is downloaded, and no code of the folder is run.

    Attributes:
      path: the folder.
      special: further tokens that are never cut. `[unused0]` and its like, which BERT's vocabulary has, keep their ids; others
        come after all, so that the model's `vocab_size` must have room for them.
    """

    path: str = setting(everyday=True, path=True)
    special: tuple[str, ...] = ()

    def train(self, texts: Iterable[str]) -> Tokenizer:
        """Open the folder; `texts` are not read. Raises `UserError` if it is missing, holds no tokenizer or wants code run."""
        from transformers import AutoTokenizer

        if not Path(self.path).is_dir():
            raise UserError(f"Pretrained.path={self.path!r}: no such folder; give a local HuggingFace folder with a tokenizer")
        try:
            own = AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
            return Tokenizer(with_special(own, self.special))
        except UserError as error:
            raise UserError(f"Pretrained.path={self.path!r}: {error}") from None
        except ImportError as error:  # of a package that only some kinds of tokenizer need, with pages of advice
            raise UserError(f"Pretrained.path={self.path!r}: {str(error).strip().partition('. ')[0]}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            if "trust_remote_code" in str(error):
                tip = "use one of a class that transformers has"
                raise UserError(
                    f"Pretrained.path={self.path!r}: its tokenizer is code of its own, which is not run; {tip}"
                ) from None
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"Pretrained.path={self.path!r}: no tokenizer can be read from it ({reason})") from error


def whole_letters(text: str) -> str:
    """A text whose halves of surrogate pairs, which JSON may hold and no encoding has, are U+FFFD each."""
    return HALVES.sub("\ufffd", text)


def _writes(huggingface: Any) -> tuple[tuple[int, ...], bool]:
    """The special tokens that a tokenizer writes before a text, and whether it writes some after it."""
    for text in ("a", "1", "."):  # the first that it has tokens for
        whole, alone = (huggingface(text, add_special_tokens=special, verbose=False)["input_ids"] for special in (True, False))
        for start in range(len(whole) - len(alone) + 1 if alone else 0):
            if whole[start : start + len(alone)] == alone:
                return tuple(whole[:start]), start + len(alone) < len(whole)
    whole = huggingface("", add_special_tokens=True, verbose=False)[
        "input_ids"
    ]  # of a tokenizer without letters: what it writes around nothing
    return tuple(whole[:1]), len(whole) > 0


def _byte_letters() -> dict[str, int]:
    """The letter by which byte-level BPE writes each byte: its own where that is printable, else one from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _first(*ids: int | None) -> Any:
    return next((i for i in ids if i is not None), None)

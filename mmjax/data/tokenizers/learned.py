"""Tokenizers that are trained on the corpus: by pieces of words, bytes, characters, or whole words.

WordPiece is BERT's (Wu et al. 2016, arXiv:1609.08144), byte-level BPE GPT-2's (Radford et al. 2019). All write `[CLS] text
[SEP]`, or `[CLS] text [SEP] pair [SEP]`; `[CLS]` begins and `[SEP]` ends a sequence for a causal model.
"""

from __future__ import annotations

import abc
import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from mmjax.core.config import setting
from mmjax.core.errors import UserError, nearest
from mmjax.data.tokenizers.special import with_special
from mmjax.data.tokenizers.tokenizer import Tokenizer, whole_letters

ROLES = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FORMS = {"nfc": normalizers.NFC, "nfkc": normalizers.NFKC}


@dataclasses.dataclass(frozen=True)
class WordPiece:
    """BERT's tokenizer, trained on the corpus: whole frequent words, and `##` pieces of the others.

    Attributes:
      vocab_size: at most; a small corpus gives fewer.
      lowercase: fold case and strip accents.
      special: further tokens that are never cut: those of `Markers`, for instance.
      unicode: `nfkc` reads full-width letters and digits, half-width kana and other forms as the usual ones; "" leaves them.
    """

    vocab_size: int = setting(least=1, default=1000)
    lowercase: bool = True
    special: tuple[str, ...] = ()
    unicode: str = ""

    def train(self, texts: Iterable[str]) -> Tokenizer:
        """Learn the vocabulary; the same texts give the same one.

        Raises:
          UserError: no texts, or more characters in them than vocab_size has room for.
        """
        texts = _corpus(texts)
        special = list(SPECIAL)
        normalizer = _normalizer("WordPiece", self.unicode, normalizers.BertNormalizer(lowercase=self.lowercase))
        words = pre_tokenizers.BertPreTokenizer()
        # The library numbers the `##` letters in the order of a hash map, so that two runs learn different pieces. Letters that
        # it is given as special tokens are numbered first; the vocabulary is then put into a tokenizer where they are not.
        inner = {c for text in texts for word, _ in words.pre_tokenize_str(normalizer.normalize_str(text)) for c in word[1:]}
        first = special + [f"##{c}" for c in sorted(inner)]
        learner = Backend(models.WordPiece(unk_token="[UNK]"))
        learner.normalizer, learner.pre_tokenizer = normalizer, words
        trainer = trainers.WordPieceTrainer(vocab_size=self.vocab_size, special_tokens=first, show_progress=False)
        learner.train_from_iterator(texts, trainer)
        vocabulary = learner.get_vocab()
        _check_size("WordPiece", self.vocab_size, len(vocabulary))
        backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]"))
        backend.normalizer, backend.pre_tokenizer = normalizer, words
        backend.decoder = decoders.WordPiece()
        return _finish(backend, {**ROLES, "unk_token": "[UNK]"}, self.special)


@dataclasses.dataclass(frozen=True)
class BPE:
    """Byte-level BPE, trained on the corpus: any text is encoded without loss.

    Attributes:
      vocab_size: at most; 260 at least.
      special, unicode: as those of `WordPiece`.
    """

    vocab_size: int = setting(least=1, default=1000)
    special: tuple[str, ...] = ()
    unicode: str = ""

    def train(self, texts: Iterable[str]) -> Tokenizer:
        """Learn the merges; the same texts give the same ones. Raises `UserError` for no texts or too small a vocab_size."""
        backend = Backend(models.BPE())
        if self.unicode:
            backend.normalizer = _normalizer("BPE", self.unicode)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=list(ROLES.values()),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(_corpus(texts), trainer)
        _check_size("BPE", self.vocab_size, backend.get_vocab_size())
        return _finish(backend, ROLES, self.special)


@dataclasses.dataclass(frozen=True)
class _Whole(abc.ABC):
    """Whole tokens, the most frequent of the corpus.

    Attributes:
      vocab_size: at most: the most frequent ones; the others are unknown, and counted.
      lowercase: fold case.
      special, unicode: as those of `WordPiece`.
    """

    vocab_size: int = setting(least=1, default=8000)
    lowercase: bool = True
    special: tuple[str, ...] = ()
    unicode: str = "nfkc"

    @abc.abstractmethod
    def _parts(self) -> tuple[list[Any], Any, Any]:
        """What else normalises a text, what parts it, and what puts it together (None: spaces)."""

    def train(self, texts: Iterable[str]) -> Tokenizer:
        """Count the tokens; the most frequent come first and equals in their order: the same texts give the same tokenizer.

        Raises:
          UserError: no texts, or a vocab_size that leaves nothing beside the special tokens.
        """
        kind = type(self).__name__
        further, parted, decoder = self._parts()
        lower = [normalizers.Lowercase()] if self.lowercase else []
        normalizer = _normalizer(kind, self.unicode, *lower, *further)
        counts: Counter[str] = Counter()
        for text in _corpus(texts):
            counts.update(token for token, _ in parted.pre_tokenize_str(normalizer.normalize_str(text)))
        if self.vocab_size <= len(SPECIAL):
            raise UserError(f"{kind}.vocab_size={self.vocab_size}: the special tokens alone are {len(SPECIAL)}")
        ranked = sorted(counts, key=lambda token: (-counts[token], token))
        vocabulary = {token: number for number, token in enumerate([*SPECIAL, *ranked][: self.vocab_size])}
        backend = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
        backend.normalizer, backend.pre_tokenizer = normalizer, parted
        if decoder is not None:
            backend.decoder = decoder
        return _finish(backend, {**ROLES, "unk_token": "[UNK]"}, self.special)


class Characters(_Whole):
    """Each character is a token, spaces as well, of which a run is one: for Chinese and Japanese. Its fields are `_Whole`'s."""

    def _parts(self) -> tuple[list[Any], Any, Any]:
        spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        return spaces, pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()


class Words(_Whole):
    """Each word is a token: what spaces and punctuation part. Chinese wants spaces between words. Its fields are `_Whole`'s."""

    def _parts(self) -> tuple[list[Any], Any, Any]:
        return [], pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]), None


def _normalizer(kind: str, unicode: str, *rest: Any) -> Any:
    """What brings a text into a form of Unicode, and then does the rest."""
    if unicode not in ("", *FORMS):
        raise UserError(f"{kind}.unicode={unicode!r}{nearest(unicode, FORMS)}: use one of {', '.join(FORMS)}, or none")
    steps = [*([FORMS[unicode]()] if unicode else []), *rest]
    return steps[0] if len(steps) == 1 else normalizers.Sequence(steps)


def _finish(backend: Backend, roles: dict[str, str], special: tuple[str, ...] = ()) -> Tokenizer:
    # Imported here because it costs seconds, PyTorch included where that is installed, which reading a config should not.
    from transformers import PreTrainedTokenizerFast

    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    ends = {"bos_token": roles["cls_token"], "eos_token": roles["sep_token"]}
    return Tokenizer(with_special(PreTrainedTokenizerFast(tokenizer_object=backend, **roles, **ends), special))


def _corpus(texts: Iterable[str]) -> list[str]:
    corpus = [whole_letters(text) for text in texts]
    if not corpus:
        raise UserError("tokenizer: no texts to train on; give the source captions, add Caption, or use Pretrained")
    return corpus


def _check_size(tokenizer: str, asked: int, smallest: int) -> None:
    if smallest > asked:
        raise UserError(f"{tokenizer}.vocab_size={asked}: the characters of the corpus alone take {smallest}; give more")

"""What a Predictor writes: prompts as token ids, the programs that go on with them, and texts again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Batch, Params
from mmjax.generate import Rules, Settings, decode
from mmjax.generate.decode import begin, more
from mmjax.generate.stops import tables
from mmjax.generate.times import Times
from mmjax.models.encoders.text import slots_before
from mmjax.models.forward import VALID, BoundForward, spliced_tokens
from mmjax.objectives.causal_lm import next_tokens
from mmjax.objectives.losses import cross_entropy
from mmjax.predict.segments import Segment
from mmjax.predict.work import Work

BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048)  # lengths of prompts that programs are compiled for
DOES = {"image": "looks at", "audio": "listens to", "video": "watches"}
NAMES = {"audio": "sound"}
PLACE = "place"  # of a batch, [B] int32: which of all prompts a row is
Rows = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Writing:
    """Prompts that are gone on with by one decoder, N of them.

    Attributes:
      prompts: their token ids, without padding.
      batch: what the decoder's context is encoded from, N rows; {} where it has none.
      times: the rule by which times are written among the words; None where there are none.
      most: a text ends where it and its prompt have so many tokens; 0 for as many as its settings say.
    """

    work: Work
    decoder: str
    prompts: Rows
    batch: dict[str, np.ndarray]
    times: Times | None = None
    most: int = 0

    @property
    def spec(self) -> Any:
        """The decoder."""
        return self.work.model.decoders[self.decoder]

    @property
    def tokenizer(self) -> Any:
        """Of what it writes."""
        return self.work.writer(self.spec.writes)

    @property
    def room(self) -> int:
        """Tokens of a prompt and of what follows, which virtual tokens and a prefix leave less of."""
        return int(self.spec.max_length) - slots_before(self.work.params[f"decoders_{self.decoder}"])

    @property
    def said_length(self) -> str:
        """The decoder's length, and what of it is taken."""
        taken = self.spec.max_length - self.room
        return f"{self.spec.max_length}" + f", of which {taken} are virtual tokens or a prefix" * bool(taken)

    def padded(self, some: Sequence[int], left: bool = True) -> dict[str, np.ndarray]:
        """`prompt` and `prompt_mask` [n, T] of those rows, T one of `BUCKETS` where they fit into one that the decoder has."""
        rows = [self.prompts[n] for n in some]
        most, pad = max(map(len, rows)), self.tokenizer.pad_id
        length = next((size for size in BUCKETS if most <= size <= self.room), most)
        before = [length - len(row) if left else 0 for row in rows]
        ids, mask = np.full((len(rows), length), pad, np.int32), np.zeros((len(rows), length), bool)
        for n, (row, start) in enumerate(zip(rows, before, strict=True)):
            ids[n, start : start + len(row)], mask[n, start : start + len(row)] = row, True
        return {"prompt": ids, "prompt_mask": mask}

    def by_length(self) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        """Rows of about a length together, the short ones first, so that none is padded to the longest of all; and their batch.

        A decoder that attends to its context's padding (BLIP's answers) gives what `transformers` gives of a question alone
        where there is none: those of a run were trained with theirs, of others each length stands by itself.
        """
        bare = not (self.work.trained or getattr(self.spec, "mask_context", True)) and "text_mask" in self.batch

        def size(n: int) -> tuple[int, int]:
            own = len(self.prompts[n])
            return int(self.batch["text_mask"][n].sum()) if bare else 0, next((size for size in BUCKETS if size >= own), own)

        order = sorted(range(len(self.prompts)), key=size)
        for length in dict.fromkeys(map(size, order)):
            some = [n for n in order if size(n) == length]
            batch = {key: x[some] for key, x in self.batch.items()}
            yield some, {key: x[:, : length[0]] if bare and key.startswith("text") else x for key, x in batch.items()}


def ready(
    work: Work,
    decoder: str,
    prompts: Sequence[Any] | None,
    beside: Mapping[str, Sequence[Any]],
    new: int,
    batch_of: Callable[[Any, Any], dict[str, np.ndarray]],
) -> Writing:
    """Prompts, and what a decoder looks at or listens to, as it takes them.

    Args:
      prompts: texts, or the token ids of each; None for the first token alone.
      beside: `image`, `audio`, `video` -> the inputs of it.
      new: how many tokens will follow, at least.
      batch_of: (such inputs, texts) -> what encoders read.

    Raises:
      UserError: images where it looks at none, or none where it does; a prompt that does not fit, or another number of them.
    """
    spec, forward = work.model.decoders[decoder], BoundForward(work.model, work.params, {})
    read = {one for context in spec.context for one in forward.modalities(context)}
    for modality, does in DOES.items():
        if (modality in read) != (modality in beside):
            thing = NAMES.get(modality, modality)
            one = f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
            said = f"{does} {one}, and there is none" if modality in read else f"{does} no {thing}"
            raise UserError(f"decoders.{decoder} {said}")
    asked = prompts if "text" in read else None
    if "text" in read and asked is None:
        raise UserError(f"decoders.{decoder} answers a question: give one a prompt")
    batch = _shorter(work, spec, batch_of(beside, asked)) if read else {}
    count = len(next(iter(batch.values()))) if batch else len([""] if prompts is None else prompts)
    for context in spec.context:
        rows_of = [batch[f"{one}_{VALID}"] for one in forward.modalities(context) if f"{one}_{VALID}" in batch]
        if rows_of and not (has_B := np.any(rows_of, axis=0)).all():
            raise UserError(f"input {int(np.flatnonzero(~has_B)[0])}: decoders.{decoder} reads {context}, which it lacks")
    if prompts is not None and len(prompts) != count:
        what = " and ".join(NAMES.get(one, one) + "s" for one in beside) or "texts"
        raise UserError(f"{count} {what} and {len(prompts)} prompts: give as many of both")
    tokens = spliced_tokens(work.model, work.params, batch, decoder) if hasattr(spec, "place") and batch else 0
    texts = [None] * count if prompts is None or asked is not None else list(prompts)
    rows = [_with_places(list(one) if isinstance(one, list | tuple) else work.prompt(one, spec), spec, tokens) for one in texts]
    found = Writing(work, decoder, rows, batch)
    for text, row in zip(texts, rows, strict=True):
        if wrong := [token for token in row if not 0 <= token < spec.vocab_size]:
            raise UserError(f"a prompt holds token {wrong[0]}; decoders.{decoder} has 0 to {spec.vocab_size - 1}")
        if len(row) + new > found.room:
            raise UserError(
                f"a prompt of {len(row)} tokens and max_new_tokens={new} do not fit into "
                f"decoders.{decoder}.max_length={found.said_length}" + (f": {str(text)[:40]!r}" if text is not None else "")
            )
    return found


def _shorter(work: Work, spec: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch without padding that no text of it needs, down to one of `BUCKETS`, of a sequence-to-sequence model: its
    encoder and its decoder hide padding, and it may read 512 tokens."""
    encoder, mask = work.model.encoders.get("text"), batch.get("text_mask")
    hidden = getattr(encoder, "mask_padding", False) and getattr(encoder, "depth", 0) and getattr(spec, "mask_context", False)
    if mask is None or not hidden or spec.start_token is None:
        return batch
    most = int(mask.sum(axis=1).max())
    length = next((size for size in BUCKETS if most <= size), mask.shape[1])
    return {key: x[:, :length] if key.split("_")[0] == "text" else x for key, x in batch.items()}


def _with_places(row: list[int], spec: Any, tokens: int) -> list[int]:
    """A prompt whose one place for an image, after its first token where it has none, is as long as the image."""
    place = int(getattr(spec, "place", -1))
    if not tokens or row.count(place) == tokens:
        return row
    if row.count(place) > 1:
        raise UserError(f"a prompt holds {row.count(place)} places for an image: give it one, or the image's {tokens}")
    at = row.index(place) if place in row else min(1, len(row))
    return [*row[:at], *[place] * tokens, *row[at + (place in row) :]]


@dataclasses.dataclass(frozen=True)
class Written:
    """A text that was written after a prompt.

    Attributes:
      text: without the prompt and special tokens.
      ids: its tokens, its end among them.
      score: as `generate.Texts.scores`.
      ended: False where it was cut at `max_new_tokens`.
      segments: of a sound, what was said from when to when, where times were written.
    """

    text: str
    ids: list[int]
    score: float
    ended: bool
    segments: tuple[Segment, ...] = ()


def written(
    writing: Writing, s: Settings, processor: Any, numbers: Sequence[int], rows_of: Callable[..., Any]
) -> list[list[Written]]:
    """Of each prompt its `num_return_sequences` texts.

    Args:
      processor: a function of the user's, see `Predictor.generate`; None for none.
      numbers: of the prompts, on which what is drawn depends.
      rows_of: `Predictor._rows`.
    """
    name, batch, tokenizer = writing.decoder, writing.batch, writing.tokenizer
    ends = _ends(writing, s)

    def write(params: Params, rows: Batch) -> Any:
        own, rules = {key: rows[key] for key in batch}, _rules(writing, s, processor)  # where it is traced: once a program
        texts = decode(writing.work.model, params, name, own, rows["prompt"], rows["prompt_mask"], rules, rows["row"])
        return jax.tree.map(lambda x: x.reshape(-1, s.num_return_sequences, *x.shape[1:]), texts)

    found: dict[int, list[Written]] = {}
    for some, own in writing.by_length():
        rows = own | writing.padded(some) | {"row": np.array([numbers[n] for n in some], np.int32)}
        rows |= {PLACE: np.array(some, np.int32)}
        out = rows_of(("generate", name, s, processor, writing.times, writing.most, *batch), write, rows, bound=False)
        for n, *each in zip(some, out.ids, out.lengths, out.scores, strict=True):
            texts = [(row[:length].tolist(), float(score)) for row, length, score in zip(*each, strict=True)]
            found[n] = [
                Written(tokenizer.decode(ids), ids, score, _has_ended(writing, n, ids, s.max_new_tokens, ends))
                for ids, score in texts
            ]
    return [found[n] for n in range(len(writing.prompts))]


def streamed(writing: Writing, s: Settings, processor: Any, compiled: Callable[..., Any]) -> Iterator[str]:
    """The one text of the one prompt, piece by piece; the pieces together are what `written` gives, unless the tokenizer writes
    the beginning of a text otherwise once more of it is there ("do n't", "don't").

    Args:
      compiled: (key, function, donated arguments) -> the jitted function.
    """
    name, batch, tokenizer = writing.decoder, writing.batch, writing.tokenizer
    model, key = writing.work.model, (name, s, processor, *batch)
    rules = functools.partial(_rules, writing, s, processor)
    first = compiled(("begin", *key), lambda params, own, ids, mask: begin(model, params, name, own, ids, mask, rules()), ())
    then = compiled(("more", *key), lambda going: more(model, name, going, rules()), (0,))
    ((_, rows),) = writing.by_length()
    going = first(writing.work.params, {key: jnp.asarray(x) for key, x in rows.items()}, *writing.padded([0]).values())
    said, start = "", going.turn.written.ids.shape[1] - s.max_new_tokens
    for count in range(1, s.max_new_tokens + 1):
        done, length = bool(going.turn.done[0]), int(going.turn.lengths[0])
        text = tokenizer.decode(np.asarray(going.turn.written.ids)[0, start : start + length])
        whole = done or count == s.max_new_tokens
        settled = whole or not text.endswith("\ufffd")  # half a letter, of which the next token is the rest
        if settled and text != said and (whole or text.startswith(said)):
            yield text[_same(said, text) :]
            said = text
        if whole:
            return
        going = then(going)


def _rules(writing: Writing, s: Settings, processor: Any) -> Rules:
    """How a program writes."""
    tokenizer = writing.tokenizer
    stops = tables(s.stop_strings, tokenizer, writing.spec.vocab_size)
    own = [one for one in (writing.times, processor) if one]
    return Rules(s, _ends(writing, s), tokenizer.pad_id, stops, own, writing.most)


def _has_ended(writing: Writing, n: int, ids: list[int], new: int, ends: tuple[int, ...]) -> bool:
    """Whether a text came to its end, or was cut."""
    full = len(ids) >= new or len(writing.prompts[n]) + len(ids) == writing.most
    return not full or ids[-1] in ends


def _ends(writing: Writing, s: Settings) -> tuple[int, ...]:
    """The tokens that end a text."""
    return s.eos_token_id or (writing.tokenizer.eos_id,)


def scored(
    work: Work,
    decoder: str,
    prompts: Sequence[str],
    continuations: Sequence[str],
    beside: Mapping[str, Sequence[Any]],
    batch_of: Callable[[Any, Any], dict[str, np.ndarray]],
    rows_of: Callable[..., Any],
) -> list[dict[str, Any]]:
    """See `Predictor.score`."""
    forward = BoundForward(work.model, work.params, {})
    asked = any("text" in forward.modalities(context) for context in work.model.decoders[decoder].context)
    begun = ready(work, decoder, prompts, beside, 0, batch_of)
    texts = [after if asked else prompt + after for prompt, after in zip(prompts, continuations, strict=True)]
    wholes, starts = [], []
    for prompt, text, own in zip(prompts, texts, begun.prompts, strict=True):
        whole = _with_places(work.prompt(text, begun.spec), begun.spec, _places(own, begun.spec))
        if not prompt and whole[:1] != own[:1]:  # after nothing is after the token that begins a text
            whole = [*own, *whole]
        same = _same(own, whole)
        if same == len(whole):
            raise UserError(f"a continuation of no tokens, after {text[:40]!r}")
        if len(whole) > begun.room:
            raise UserError(
                f"a prompt and its continuation of {len(whole)} tokens are longer than decoders.{decoder}.max_length="
                f"{begun.said_length}: {text[:40]!r}"
            )
        wholes.append(whole)
        starts.append(same)
    return likelihoods(dataclasses.replace(begun, prompts=wholes), starts, rows_of)


def _places(row: list[int], spec: Any) -> int:
    """How many places for an image a prompt has."""
    return row.count(spec.place) if hasattr(spec, "place") else 0


def likelihoods(writing: Writing, starts: Sequence[int], rows_of: Callable[..., Any]) -> list[dict[str, Any]]:
    """`log_likelihood` of the tokens of each row from a place on, how many `tokens` those are, and whether each was the
    likeliest (`greedy`)."""
    name, batch = writing.decoder, writing.batch

    def score(params: Params, rows: Batch) -> dict[str, Any]:
        forward = BoundForward(writing.work.model, params, {key: rows[key] for key in batch})
        context = {one: forward.tokens(one) for one in writing.spec.context if batch}
        text, ids_BT = writing.spec.writes, rows["prompt"]
        logits_BTV = forward.decode(name, {text: ids_BT, f"{text}_mask": rows["prompt_mask"]}, context or None, key="score")
        labels_BT, counts_BT = next_tokens(ids_BT, rows["prompt_mask"])
        place_BT = jnp.arange(ids_BT.shape[1])[None] + 1
        counts_BT &= place_BT >= rows["start"][:, None]
        right_BT = jnp.argmax(logits_BTV, axis=-1) == labels_BT
        total_B = -jnp.sum(jnp.where(counts_BT, cross_entropy(logits_BTV, labels_BT), 0.0), axis=1)
        return {"total": total_B, "tokens": jnp.sum(counts_BT, axis=1), "greedy": jnp.all(right_BT | ~counts_BT, axis=1)}

    found: dict[int, dict[str, Any]] = {}
    for some, own in writing.by_length():
        rows = own | writing.padded(some, left=False)
        rows |= {"start": np.array([starts[n] for n in some], np.int32), PLACE: np.array(some, np.int32)}
        out: Mapping[str, Any] = rows_of(("score", name, *batch), score, rows, bound=False)
        for n, total, tokens, greedy in zip(some, out["total"], out["tokens"], out["greedy"], strict=True):
            found[n] = {"log_likelihood": float(total), "tokens": int(tokens), "greedy": bool(greedy)}
    return [found[n] for n in range(len(writing.prompts))]


def _same(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items two sequences begin alike with."""
    return next((n for n, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def conversations(work: Work, messages: Any) -> list[Any]:
    """The token ids of a conversation, or of each of several, as the tokenizer's own template puts it.

    Raises:
      UserError: a tokenizer without a template, one that refuses the messages, or no messages.
    """
    tokenizer = work.tokenizer
    if tokenizer is None or not tokenizer.huggingface.chat_template:
        raise UserError(f"{work.path}: its tokenizer has no chat template; use generate with a prompt of your own")
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError(f"messages={messages!r}: give a list of messages, or of such lists")
    several = [messages] if isinstance(messages[0], dict) else list(messages)
    apply = tokenizer.huggingface.apply_chat_template
    try:
        return [apply(one, add_generation_prompt=True, tokenize=True, return_dict=False) for one in several]
    except Exception as error:  # templates are programs, and raise what they like
        raise UserError(f"{work.path}: its chat template refuses these messages: {error}") from None

"""The model: named encoders, fusions, decoders and heads, and the few ways through them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError, nearest, within
from mmjax.core.remember import once_each
from mmjax.core.types import Array, Params, Tokens
from mmjax.models.decoders import DECODERS
from mmjax.models.encoders import ENCODERS
from mmjax.models.fusion import FUSIONS
from mmjax.models.heads import HEADS
from mmjax.models.parts import example_of, one_token, run
from mmjax.nn.augment import AUGMENTATIONS


class Multimodal(nn.Module):
    """Named parts of a multimodal Transformer. Parts refer to each other by name, never by object.

    Attributes:
      encoders: modality -> encoder; the batch holds the modality's input under the same name, and under `MODALITY_PART` the
        parts that the encoder's `__call__` names. One that it gives a default may be missing.
      fusions: name -> fusion.
      decoders: name -> decoder of the modality that its field `writes` names.
      heads: name -> head.
      augment: modality -> on-device augmentation, applied when training (see `nn.augment`).
      huggingface: the config.json that the model was converted from; what no field here holds is written back from it.
      unread: name -> shape of tensors that came with the weights and that no forward pass reads; kept as the parameters
        `unread/NAME`, never trained, so that they are written back bit for bit.
      dtype: compute dtype: `float32`, `bfloat16`, or `auto` (bfloat16 on TPU and GPU, float32 on CPU).
    """

    encoders: Mapping[str, Any] = setting(ENCODERS)
    fusions: Mapping[str, Any] = setting(FUSIONS, default_factory=dict)
    decoders: Mapping[str, Any] = setting(DECODERS, default_factory=dict)
    heads: Mapping[str, Any] = setting(HEADS, default_factory=dict)
    augment: Mapping[str, Any] = setting(AUGMENTATIONS, default_factory=dict)
    huggingface: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unread: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    dtype: str = setting(everyday=True, default="auto")

    def __call__(self) -> dict[str, Any]:
        """Run every part once on example inputs: what initialises all parameters, whatever tasks use them."""
        tokens = {name: self.encode(name, example_of(encoder)) for name, encoder in self.encoders.items()}
        known = dict(tokens)
        for name, fusion in self.fusions.items():
            known[name] = self.fuse(name, {m: self._named(tokens, m, f"fusions.{name}") for m in fusion.modalities})
        for name, decoder in self.decoders.items():
            context = {m: self._named(known, m, f"decoders.{name}.context") for m in decoder.context}
            self.decode(name, example_of(decoder), context)
        for name, head in self.heads.items():
            self.head(name, join_inputs(head.input, functools.partial(self._input, known, f"heads.{name}.input")))
        return known

    def encode(self, modality: str, parts: Mapping[str, Array]) -> Tokens:
        """Raw input of one modality, by part ("" its own array) -> Tokens."""
        with _part(self, "encoders", modality) as encoder:
            return run(encoder, parts)

    def embed(self, fusion: str, modality: str, tokens: Tokens) -> Array:
        """[B, E] float32 of unit length, in the space of a dual fusion."""
        with _part(self, "fusions", fusion) as dual:
            _require(dual, "embed", "no space that modalities share; Dual has one")
            return dual.embed(modality, self._through(dual, modality, tokens.alone("it")))

    def fuse(self, fusion: str, tokens: Mapping[str, Tokens]) -> Tokens:
        """Several Tokens -> one."""
        with _part(self, "fusions", fusion) as module:
            return module({modality: self._through(module, modality, own.alone("it")) for modality, own in tokens.items()})

    def decode(self, decoder: str, parts: Mapping[str, Array], context: Mapping[str, Tokens] | None) -> Array:
        """What a decoder makes of the parts of the modality it writes: [B, T, V] logits of the next token, or pixels."""
        with _part(self, "decoders", decoder) as module:
            return run(module.decode, parts, context=context, **self._table(decoder, module))

    def begin(
        self, decoder: str, ids_BT: Array, mask_BT: Array, places_BT: Array, context: Mapping[str, Tokens] | None
    ) -> tuple[Array, Any]:
        """What a decoder that writes texts makes of prompts, and its cache (`TextDecoder.begin`)."""
        with _part(self, "decoders", decoder) as module:
            _require(module, "begin", "no next token; TextDecoder has one")
            return module.begin(ids_BT, mask_BT, places_BT, context, **self._table(decoder, module))

    def step(self, decoder: str, *rest: Any) -> tuple[Array, Any]:
        """What it makes of one token more (`TextDecoder.step`)."""
        with _part(self, "decoders", decoder) as module:
            return module.step(*rest, **self._table(decoder, module))

    def head(self, head: str, tokens: Any) -> Array:
        """Logits of one task, from the Tokens of the head's `input`, or a tuple of them where that is one."""
        with _part(self, "heads", head) as module:
            tied_to = getattr(module, "tied_to", "")
            if not tied_to:
                return module(tokens, None)
            encoder = self._named(self.encoders, tied_to, f"heads.{head}.tied_to")
            _require(encoder, "word_table", f"no words that tied_to={tied_to!r} could tie to")
            return module(tokens, encoder.word_table())

    def scalar(self, fusion: str, name: str) -> Array:
        """A learned scalar of a dual fusion: `scale` or `bias`."""
        module = self._named(self.fusions, fusion, "fusions")
        with within(f"model.fusions.{fusion}"):
            _require(module, "scale", "no learned scale; Dual has one")
        return module.scale() if name == "scale" else module.bias_value()

    def _through(self, fusion: Any, modality: str, tokens: Tokens) -> Tokens:
        """What a fusion takes of a modality: its tokens, or those after another fusion's layers (`Dual.through`)."""
        first = getattr(fusion, "through", {}).get(modality)
        return tokens if first is None else self.fuse(first, {modality: tokens})

    def _table(self, decoder: str, module: Any) -> dict[str, Any]:
        """The word table that a decoder reads by where it is another part's, as an argument."""
        if not (name := getattr(module, "words_of", "")):
            return {}
        encoder = self._named(self.encoders, name, f"decoders.{decoder}.words_of")
        _require(encoder, "word_table", f"no words that words_of={name!r} could name")
        own, its = ((part.vocab_size, part.embed_width or part.width) for part in (module, encoder))
        if own != its:
            raise UserError(
                f"words_of={name!r}: {own[0]} words of width {own[1]}, and encoders.{name} has {its[0]} of {its[1]}"
            )
        return {"table": encoder.words}

    def _input(self, known: Mapping[str, Tokens], field: str, name: str) -> Tokens:
        """Tokens by name, by name and layer, or what a dual fusion gives of one modality alone (`dual:image`)."""
        name, _, layer = name.partition(":")
        if layer and name in self.fusions:
            return one_token(self.embed(name, layer, self._named(known, layer, field)))
        tokens: Tokens = self._named(known, name, field)
        return tokens.tapped(layer, f"model.{field}={name}:{layer}") if layer else tokens

    def _named(self, parts: Mapping[str, Any], name: str, field: str) -> Any:
        if name not in parts:
            raise UserError(f"model.{field}: there is no {name!r}{nearest(name, parts)}; it has {', '.join(parts) or 'none'}")
        return parts[name]


def join_inputs(named: str | Sequence[str], find: Callable[[str], Tokens]) -> Any:
    """What a head is given: the Tokens of its one input, or a tuple of those of several."""
    return find(named) if isinstance(named, str) else tuple(find(name) for name in named)


def _require(part: Any, method: str, lacks: str) -> None:
    """Raises UserError for a part that cannot do what is asked of it."""
    if not hasattr(part, method):
        raise UserError(f"{type(part).__name__} has {lacks}")


@contextlib.contextmanager
def _part(model: Multimodal, field: str, name: str) -> Iterator[Any]:
    """A part by its name; what is wrong with it in the block is said with its path."""
    part = model._named(getattr(model, field), name, field)
    with within(f"model.{field}.{name}"):
        yield part


def init_params(model: Multimodal, key: Array) -> Params:
    """Float32 parameters of every part of the model, a plain nested dict; those under `unread` are zeros."""
    return init_model(model, key)[0]


def init_model(model: Multimodal, key: Array) -> tuple[Params, dict[str, Any]]:
    """The parameters, and the variables that its modules keep: Linen collection -> tree, {} where none keeps any."""
    made = dict(nn.meta.unbox(model.init({"params": key})))
    params = made.pop("params", {})
    made.pop("intermediates", None)
    if model.unread:
        params = {**params, "unread": {name: jnp.zeros(shape, jnp.float32) for name, shape in model.unread.items()}}
    return params, made


def param_shapes(model: Multimodal) -> Params:
    """Shapes and dtypes of the parameters, nothing computed; of equal models the model is traced once."""
    return jax.tree.map(lambda leaf: leaf, _param_shapes(model))  # dicts of the caller's own


@once_each
def _param_shapes(model: Multimodal) -> Params:
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))

"""The bound model, as objectives and evaluators see it. No flax here: each computation is one pure `apply`.

What was computed once in a step is remembered by its name and inputs: a modality is encoded once however many objectives ask
for it, and nobody gets another's result. Dropout and augmentation keys are folded with that name (the caller's `key` is part of
it), so the order in which objectives ask changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mmjax.core.errors import UserError, nearest, within
from mmjax.core.random import example_keys, fold_name
from mmjax.core.spatial import image_of, over
from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Array, Batch, Params, Tokens
from mmjax.models.casting import cast_params, compute_dtype
from mmjax.models.multimodal import Multimodal, init_model, join_inputs
from mmjax.models.parts import declared, gather, key_of, one_token
from mmjax.models.teaching import TAUGHT, Teaching

LENGTHS = "lengths"  # the part that says how long each of several texts in a row is, see `core.packed`
VALID = "valid"  # the part, and the key of a batch, that says which rows count
VARIABLES = "variables"  # beside the parameters, what modules keep that no gradient makes


def augmented(
    augment: Any, image: str, taken: Mapping[str, Array], over_it: Mapping[str, str], keys_B: Array
) -> dict[str, Array]:
    """An image and what lies over it (key -> kind, see `core.spatial`), moved together.

    Raises:
      UserError: the augmentation moves images alone.
    """
    if not over_it:
        return {image: augment(taken[image], keys_B)}
    if not hasattr(augment, "together"):
        keys, name = ", ".join(over_it), type(augment).__name__
        raise UserError(f"model.augment.{image}: {name} has no `together`, so it cannot move {keys} with the image")
    pixels, rest = augment.together(taken[image], keys_B, {key: (kind, taken[key]) for key, kind in over_it.items()})
    return {image: pixels, **rest}


class BoundForward:
    """`core.types.Forward` over a model, its parameters and one batch.

    Args:
      params: the model's; under "variables" what its modules keep beside them, Linen collection -> tree, where they keep any.
      rng: key of this step's dropout and augmentation; None when not training.
      part: [] int32, which micro-batch of the step this is: each has dropout of its own. Augmentation is an example's own.
      embedded: (fusion, modality) -> [B, E], embeddings of this batch that are known already.
      teachers: name -> what is known of a teacher, and its parameters.
      still: the parts of the parameters that nothing trains (`encoders_image`): an encoder among them that keeps variables
        reads them as in an evaluation, and draws nothing.

    Attributes:
      gave: head -> the shape of what it gave, for each head that was run.
      taught: name -> the forward of a teacher, of those that somebody has asked.
    """

    def __init__(
        self,
        model: Multimodal,
        params: Params,
        batch: Batch,
        rng: Array | None = None,
        part: Array | None = None,
        embedded: Mapping[tuple[str, str], Array] | None = None,
        teachers: Mapping[str, tuple[Teaching, Params]] | None = None,
        still: Collection[str] = (),
    ):
        self.batch = batch
        self.train = rng is not None
        self.gave: dict[str, tuple[int, ...]] = {}
        self.taught: dict[str, BoundForward] = {}
        self._model = model
        self._dtype = compute_dtype(model.dtype)
        self._variables = params.get(VARIABLES, {})
        own = {name: tree for name, tree in params.items() if name != VARIABLES} if self._variables else params
        self._given, self._params = params, cast_params(own, self._dtype)
        self._rng = rng
        self._part = part
        self._embedded = embedded or {}
        self._teachers = teachers or {}
        self._still = still
        self._teaches = ""  # `teachers.NAME` of the forward of one
        self._prefix, self._writes = "", self.train
        self._written: list[dict[str, Array]] = []
        self.lacking = any(key_of(modality, VALID) in batch for modality in model.encoders)
        self._complete: list[Array] = []  # where rows may lack modalities, of what was read: bool [B], the rows that have it
        self._tokens: Mapping[str, Tokens] = {}
        self._seen: frozenset[str] = frozenset()  # keys of the batch that are augmented already
        self._memory: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    @property
    def model(self) -> Multimodal:
        """The model that is bound, for what runs it otherwise than forward: writing texts."""
        return self._model

    @property
    def params(self) -> Params:
        """The parameters as they were given."""
        return self._given

    def encode(self, modality: str, inputs: Mapping[str, Array] | None = None, key: str = "") -> Tokens:
        return self._noted(self._encoded(modality, inputs, key))

    def _encoded(self, modality: str, inputs: Mapping[str, Array] | None = None, key: str = "") -> Tokens:
        if inputs is None and modality in self._tokens:
            return self._tokens[modality]
        source: Batch = {**self.batch, **(inputs or {})}
        if modality not in source:
            raise UserError(f"the batch has no {modality!r}{nearest(modality, source)}; it has {', '.join(source)}")
        call = type(self._part_named("encoders", modality)).__call__
        has_B = None if modality in (inputs or {}) else source.get(key_of(modality, VALID))
        if self.train and VALID in declared(call) and VALID in source:
            source = self._with_rows(key_of(modality, VALID), source)
        parts, room = self._parts("encoders", modality, modality, call, source), f"encoders_{modality}"
        if hasattr(self._part_named("encoders", modality), "front"):
            source, parts = self._fronted(modality, parts, source)
        still = room in self._still and any(room in kept for kept in self._variables.values())

        def compute() -> Tokens:
            seen = {part: self._cast(self._moved(key_of(modality, part), source)) for part in parts}
            tokens: Tokens = self._apply("encode", f"encode/{modality}/{key}", modality, seen, still=still)
            return tokens if has_B is None else tokens.where(has_B)

        return self._once(("encode", modality, key), parts, compute)

    def view(self, key: str) -> Array:
        if key not in self.batch:
            raise UserError(f"the batch has no {key!r}{nearest(key, self.batch)}; it has {', '.join(self.batch)}")
        return self._moved(key, self.batch)

    def tokens(self, name: str, key: str = "") -> Tokens:
        name, _, layer = name.partition(":")
        if layer and name in self._model.fusions:
            return one_token(self.embed(layer, name, key=key), self._encoded(layer).mask.any(axis=1) if self.lacking else None)
        if layer:
            return self.tokens(name, key).tapped(layer, f"{name}:{layer}")
        if name in self._model.encoders:
            return self.encode(name)
        fusion = self._part_named("fusions", name, self._model.encoders)
        return self.fuse(name, {modality: self._encoded(modality) for modality in fusion.modalities}, key=key)

    def embed(self, modality: str, fusion: str = "dual", inputs: Mapping[str, Array] | None = None, key: str = "") -> Array:
        if inputs is None and not key and (fusion, modality) in self._embedded:
            return self._embedded[fusion, modality]
        tokens = self.encode(modality, inputs, key)
        name = f"embed/{fusion}/{modality}/{key}"
        return self._once(
            ("embed", fusion, modality, key), tokens, lambda: self._apply("embed", name, fusion, modality, tokens)
        )

    def fuse(self, fusion: str, tokens: Mapping[str, Tokens], key: str) -> Tokens:
        taken = dict(tokens)
        return self._noted(
            self._once(("fuse", fusion, key), taken, lambda: self._apply("fuse", f"fuse/{fusion}/{key}", fusion, taken))
        )

    def decode(
        self, decoder: str, inputs: Mapping[str, Array], context: Mapping[str, Tokens] | None = None, key: str = ""
    ) -> Array:
        module = self._part_named("decoders", decoder)
        packed = f"{module.writes}_{LENGTHS}"
        if packed in self.batch and packed not in inputs and inputs.get(module.writes) is self.batch.get(module.writes):
            raise UserError(
                f"the rows of {module.writes!r} hold several texts each: give {packed!r} with them, or leave data.packing away"
            )
        parts = self._parts("decoders", decoder, module.writes, type(module).decode, inputs)
        taken = dict(context or {})
        for one in taken.values():
            self._noted(one)

        def compute() -> Array:
            return self._apply("decode", f"decode/{decoder}/{key}", decoder, parts, taken).astype(jnp.float32)

        return self._once(("decode", decoder, key), (parts, taken), compute)

    def head(self, head: str, tokens: Any = None, key: str = "") -> Array:
        if tokens is None:
            tokens = join_inputs(self._part_named("heads", head).input, lambda name: self.tokens(name, key))
        logits: Array = self._once(("head", head, key), tokens, lambda: self._apply("head", f"head/{head}/{key}", head, tokens))
        self.gave[head] = logits.shape
        return logits

    def spec(self, path: str) -> Any:
        room, name = path.split(".", 1)
        return self._part_named(room, name)

    def modalities(self, name: str) -> tuple[str, ...]:
        name, _, layer = name.partition(":")
        if name in self._model.encoders:
            return (name,)
        if layer and name in self._model.fusions:
            return (layer,)
        return tuple(self._part_named("fusions", name, self._model.encoders).modalities)

    def scalar(self, fusion: str, name: str) -> Array:
        return self._once(("scalar", fusion, name), (), lambda: self._apply("scalar", "scalar", fusion, name))

    def with_(
        self,
        params: Params | None = None,
        inputs: Mapping[str, Array] | None = None,
        tokens: Mapping[str, Tokens] | None = None,
        train: bool | None = None,
        key: str = "",
        views: Mapping[str, Array] | None = None,
    ) -> BoundForward:
        rng = self._rng if train is None or train else None
        if train and rng is None:
            raise UserError("with_(train=True): an evaluation has no random key; leave it out")
        given = self._given if params is None else dict(params) | {VARIABLES: self._variables}
        changed = {**(inputs or {}), **(views or {})}
        batch, known = {**self.batch, **changed}, (self._teachers, self._still)
        other = BoundForward(self._model, given, batch, rng, self._part, None, *known)
        other._seen = (self._seen - {*(inputs or {})}) | {*(views or {})}
        other._teaches = self._teaches
        other._complete = self._complete
        other.gave, other._writes, other._prefix = self.gave, False, f"{self._prefix}{key}/" if key else self._prefix
        if views and params is None and self._writes and other.train:  # a use like the step's own
            other._writes, other._written = True, self._written
        # Tokens taken for what an encoder would give are no longer that once it is given other inputs.
        kept = {m: own for m, own in self._tokens.items() if not any(f"{key}_".startswith(f"{m}_") for key in changed)}
        other._tokens = {**kept, **(tokens or {})}
        return other

    def teacher(self, name: str) -> BoundForward:
        if name not in self._teachers:
            known = ", ".join(self._teachers) or "none"
            raise UserError(f"there is no teacher {name!r}{nearest(name, self._teachers)}; teachers has {known}")
        if name not in self.taught:
            teaching, params = self._teachers[name]
            with within(f"teachers.{name}"):
                self.taught[name] = BoundForward(teaching.model, params, teaching.batch(self.batch, self.view))
            self.taught[name]._complete = self._complete  # a row counts where the teacher too has what it reads
            self.taught[name]._teaches = f"teachers.{name}"
        return self.taught[name]

    def complete(self, ask: Callable[[BoundForward], Any] | None = None) -> Array | None:
        """[B] bool: the rows that have all that was read so far, or all that `ask` reads of this model; of a fusion of all its
        modalities, any that it can do with. None where no row lacks anything.

        `ask` is traced apart: of what it computes, only which rows these are is kept.
        """
        if not self.lacking:
            return None
        found = self._complete
        if ask is not None:
            other = self.with_()
            found = other._complete = []
            ask(other)
        size = next(self.batch[key].shape[0] for m in self._model.encoders if (key := key_of(m, VALID)) in self.batch)
        own = [has_B for has_B in found if has_B.shape[0] == size]  # prompts are other rows
        return functools.reduce(jnp.logical_and, own, jnp.ones((size,), bool))

    def _noted(self, tokens: Tokens) -> Tokens:
        if self.lacking:
            self._complete.append(jnp.any(tokens.mask, axis=1))
        return tokens

    def used(self) -> set[str]:
        """The modalities that were read so far, by an encoder or by the decoder that writes them."""
        read = {name[1] for name in self._memory if name[0] == "encode"}
        return read | {self._model.decoders[name[1]].writes for name in self._memory if name[0] == "decode"}

    def written(self) -> list[dict[str, Array]]:
        """What each use of the model has made of what its modules keep: path -> array, of those that it has written."""
        return self._written

    def _part_named(self, field: str, name: str, others: Mapping[str, Any] | None = None) -> Any:
        parts = getattr(self._model, field)
        if name not in parts:
            known = [*(others or {}), *parts]
            raise UserError(f"model.{field}: there is no {name!r}{nearest(name, known)}; it has {', '.join(known) or 'none'}")
        return parts[name]

    def _parts(self, field: str, name: str, modality: str, call: Any, source: Mapping[str, Array]) -> dict[str, Array]:
        """What a module takes of a batch. Raises `UserError` for a missing part, and for packed rows that it would not know."""
        wanted = declared(call)
        if key_of(modality, LENGTHS) in source and LENGTHS not in wanted:
            kind = type(self._part_named(field, name)).__name__
            raise UserError(f"model.{field}.{name}: {kind} reads one {modality} a row, and data.packing puts several into one")
        return gather(modality, wanted, source)

    def _with_rows(self, key: str, source: Batch) -> Batch:
        """The batch with the rows that count for a modality: those of the batch, and of them those that have it (`key`)."""
        rows = [source[name] for name in (VALID, key) if name in source]
        return {**source, key: rows[0] if len(rows) == 1 else self._once(("rows", key), rows, lambda: rows[0] & rows[1])}

    def _fronted(self, modality: str, parts: dict[str, Array], source: Batch) -> tuple[Batch, dict[str, Array]]:
        """A batch, and a modality's parts of it, as the encoder's front gives them: features of a sound, say, in float32."""
        front = self._part_named("encoders", modality).front
        with within(f"model.encoders.{modality}"):
            made = self._once(("front", modality), parts, lambda: front(parts))
        return {**source, **{key_of(modality, part): x for part, x in made.items()}}, made

    def _cast(self, x: Array) -> Array:
        return x.astype(self._dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def _moved(self, key: str, source: Batch) -> Array:
        """An input among others, augmented when training: an image, or what lies over one and moves with it."""
        image, rng = key if key in self._model.augment else image_of(key, self._model.augment), self._rng
        if key in self._seen and source[key] is self.batch[key]:
            return source[key]
        if image is None or rng is None or image not in source or not jnp.issubdtype(source[image].dtype, jnp.floating):
            return source[key]
        over_it = over(image, source)
        kept = getattr(self._model.encoders.get(image), "positions", "none")
        moves = getattr(self._model.augment[image], "moves", True)
        masks = [name for name, kind in over_it.items() if kind == "mask" and source[name].ndim > 2]  # not of a video's frames
        if moves and masks and kept in ("learned", "fixed"):
            raise UserError(
                f"model.augment.{image} moves {image}_mask as well, and encoders.{image}.positions={kept!r} begin at the "
                "top left of what is real; mirror and crop on the host before images are padded, or use other positions"
            )
        taken = {name: source[name] for name in (image, *over_it)}
        keys = example_keys(fold_name(rng, f"augment/{image}"), self.batch["index"])

        def compute() -> dict[str, Array]:
            return augmented(self._model.augment[image], image, taken, over_it, keys)

        return self._once(("view", image), taken, compute)[key]

    def _apply(self, method: str, name: str, *args: Any, still: bool = False) -> Any:
        name = f"{self._prefix}{name}"
        rngs = None if self._rng is None or still else {"dropout": self._dropout(self._rng, name)}
        known = {"params": self._params, **self._variables}
        if not self._variables or not self.train or still:
            return self._model.apply(known, *args, method=method, rngs=rngs)
        mutable = list(self._variables)
        given, made = self._model.apply(known, *args, method=method, rngs=rngs, mutable=mutable)
        if not self._writes:  # what a module writes when training it may write here too, and nobody reads it
            return given
        old = leaves_by_path(self._variables)
        # What a use has not touched comes back as the very array that it was given.
        new = {path: x for path, x in leaves_by_path(dict(made)).items() if x is not old.get(path)}
        self._written.append(jax.lax.stop_gradient(new))
        return given

    def _dropout(self, rng: Array, name: str) -> Array:
        key = fold_name(rng, name)
        return key if self._part is None else jax.random.fold_in(key, self._part)

    def _once(self, name: tuple[str, ...], inputs: Any, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, computed once for these very inputs; keeping them keeps their identities from being reused."""
        key = (*name, jax.tree.structure(inputs), *map(id, jax.tree.leaves(inputs)))
        if key not in self._memory:
            with within(self._teaches, over="model."):
                made = compute()
            if self._teaches:  # no gradient goes through it, and no backward pass computes it again
                made = jax.tree.map(lambda x: checkpoint_name(jax.lax.stop_gradient(x), TAUGHT), made)
            self._memory[key] = (inputs, made)
        return self._memory[key][1]


def whole_shapes(model: Multimodal) -> Params:
    """Shapes and dtypes of the parameters, with those of what modules keep beside them; nothing is computed."""

    def made() -> Params:
        params, kept = init_model(model, jax.random.key(0))
        return {**params, VARIABLES: kept} if kept else params

    return jax.eval_shape(made)


def spliced_tokens(model: Multimodal, params: Params, batch: Mapping[str, Any], decoder: str) -> int:
    """How many tokens of its context stand in a text of a `SplicedDecoder`; nothing is computed.

    Args:
      batch: arrays or their shapes, of what the context is encoded from.
    """
    spec = model.decoders[decoder]

    def context(params: Params, batch: Batch) -> Array:
        return BoundForward(model, params, batch).tokens(spec.context[0]).real().embeddings

    return int(jax.eval_shape(context, params, dict(batch)).shape[1]) - int(spec.skip)

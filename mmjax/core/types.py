"""The words every room shares: batches, tokens, losses, and what an objective sees of the model.

Shape suffixes, the one legend: B batch, T tokens, S tokens attended to, P patches, D model width, E shared embedding width,
H heads, K head width, F feed-forward width, V vocabulary, C classes, L layers, N examples in the global batch. `x_BTD` is an
array whose three dims are batch, tokens and model width.

A batch is a flat dict of arrays. A modality's raw input is stored under the modality's own name, and its parts under
`MODALITY_PART`: an encoder takes the parts that its `__call__` names, a decoder those of its `decode`. The names are a
config's: these are what the shipped parts use, and the fields of objectives and evaluators say others.

| key             | shape, dtype       | meaning                                                              |
|-----------------|--------------------|----------------------------------------------------------------------|
| `image`         | [B, H, W, 3] f32   | normalised pixels                                                    |
| `image_keep`    | [B, K] int32       | optional, which patches an encoder reads, in that order; all if absent |
| `image_mask`    | [B, H, W] bool     | optional, True = a real pixel, images at the top left of their frame |
| `image_map`     | [B, H, W] int32    | optional, a class for each pixel; below 0 = none (see `core.spatial`) |
| `image_boxes`   | [B, N, 4] f32      | optional, left, top, right, bottom in pixels; -1 = no box             |
| `image_points`  | [B, N, 2] f32      | optional, x and y in pixels; -1 = no point                            |
| `audio`         | [B, N] f32         | a waveform, 1 the most a file holds, padded on the right              |
| `audio_mask`    | [B, N] bool        | True = a real sample                                                 |
| `video`         | [B, T, H, W, 3] f32 | normalised pixels of T frames                                       |
| `video_mask`    | [B, T] bool        | True = a frame of its own, not the last one repeated                  |
| `video_keep`    | [B, K] int32       | optional, as `image_keep`, of tubelets                                |
| `text`          | [B, T] int32       | token ids, padded on the right                                       |
| `text_mask`     | [B, T] bool        | True = a real token                                                  |
| `text_segments` | [B, T] int32       | optional, sentence A = 0 and B = 1                                   |
| `text_lengths`  | [B, S] int32       | of rows that several texts are packed into: how long each is, or 0    |
| `MODALITY_id`   | [B] int32          | optional, equal where records hold one and the same image (or text)   |
| `MODALITY_added` | [B, T, D] f32     | optional, added to the embeddings of an input before the first layer |
| `label`         | [B] int32          | class; below 0 = none                                                |
| `next`          | [B] int32          | 1 = the second sentence follows the first, 0 = not, below 0 = ignored |
| `group`         | [B] int32          | examples with an equal group are each other's positives              |
| `index`         | [B] int32          | row in the global batch: the source of per-example randomness        |
| `valid`         | [B] bool           | False = padding of the last evaluation batch, must not count         |
| `image_valid`   | [B] bool           | optional, False = a row without an image, in no statistic of a batch  |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError

Array = jax.Array
Batch = Mapping[str, Array]
Params = Mapping[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """A sequence of embeddings, what every encoder and fusion returns.

    Attributes:
      embeddings: [B, T, D], compute dtype.
      mask: [B, T] bool, True = a real token.
      positions: [B, T] int32 or None, the place of each token in its own sequence.
      segments: [B, T] int32 or None, which part a token came from (sentence A or B; a modality's rank after a fusion).
      packed: [B, T] int32 or None, of rows that hold several texts: the number of each token's text, -1 for padding (see
        `core.packed`). Whoever takes a row for one example calls `alone` first.
      coordinates: [B, T, n] or None, where each token lies: (row, column) where rows differ and `grid` is None; of a video
        (time, row, column).
      taps: layer -> [B, T, D], what that layer of the encoder gave, for each layer that its `taps` name.
      grid: (height, width, firsts) where all rows share it, else None: after `firsts` other tokens come height * width patches
        in reading order. Static: it is part of the tree's structure.
      virtual: the places of learned tokens that a prompt has put among them (`adapt.Prompt`). Attention sees those as it sees
        others; `raster`, and whoever reads token by token, takes the `real` ones. Static, and `grid` does not count them.
    """

    embeddings: Array
    mask: Array
    positions: Array | None = None
    segments: Array | None = None
    packed: Array | None = None
    coordinates: Array | None = None
    taps: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    grid: tuple[int, int, int] | None = dataclasses.field(default=None, metadata={"static": True})
    virtual: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    def real(self) -> Tokens:
        """Those that the input gave, without virtual ones."""
        if not self.virtual:
            return self
        kept = np.setdiff1d(np.arange(self.mask.shape[1]), self.virtual)
        runs = np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1)
        own = jax.tree.map(lambda x: jnp.concatenate([x[:, run[0] : run[-1] + 1] for run in runs], axis=1), self)
        return dataclasses.replace(own, virtual=())

    def where(self, has_B: Array) -> Tokens:
        """Itself in the rows that have it; in the others zeros, which no mask shows."""

        def kept(x: Array) -> Array:
            return jnp.where(has_B.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))

        taps = {layer: kept(x) for layer, x in self.taps.items()}
        return dataclasses.replace(self, embeddings=kept(self.embeddings), mask=kept(self.mask), taps=taps)

    def alone(self, who: str) -> Tokens:
        """Itself, where each row is one example.

        Args:
          who: who needs that, for the complaint.

        Raises:
          UserError: rows hold several texts.
        """
        if self.packed is not None:
            raise UserError(f"{who} takes a row for one text, and data.packing puts several into one; leave it away")
        return self

    def raster(self, who: str) -> Array:
        """[B, height, width, D]: the patches where they lie.

        Args:
          who: who needs it, for the complaint.

        Raises:
          UserError: these tokens are no raster.
        """
        if self.grid is None:
            raise UserError(f"{who} needs a raster, and its input's tokens have no grid: use the tokens of an image encoder")
        height, width, firsts = self.grid
        return self.real().embeddings[:, firsts:].reshape(self.embeddings.shape[0], height, width, -1)

    def tapped(self, layer: str, who: str) -> Tokens:
        """The same tokens as one layer gave them.

        Raises:
          UserError: that layer is not tapped.
        """
        if layer not in self.taps:
            raise UserError(f"{who}: layer {layer} is not tapped; the encoder's taps are ({', '.join(self.taps) or 'none'})")
        return dataclasses.replace(self, embeddings=self.taps[layer], taps={})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss as a sum and a count, so that accumulation and sharding are exact: its value is `sum / count`.

    Attributes:
      sum: [] float32, summed over what is counted (examples, or tokens).
      count: [] float32, how many were counted; a batch that has none gives sum 0 and count 0, and its value is 0.
      metrics: name -> ([] float32 sum, [] float32 count), averaged in the same way.
      variables: what an objective that keeps variables has made of them; see `Objective`.
    """

    sum: Array
    count: Array
    metrics: dict[str, tuple[Array, Array]] = dataclasses.field(default_factory=dict)
    variables: Any = None


class Forward(Protocol):
    """The bound model as an objective or an evaluator sees it. A computation asked for twice in a step runs once.

    `batch` is the batch it is bound to, `train` tells whether dropout and augmentation are on, and `lacking` whether rows may
    lack modalities (`Data.optional`).
    """

    batch: Batch
    train: bool
    lacking: bool

    def encode(self, modality: str, inputs: Mapping[str, Array] | None = None, key: str = "") -> Tokens:
        """Run one encoder on the batch, or on `inputs` (batch keys that replace the batch's own).

        Here and below, a result is remembered by its inputs and its `key`, which also names its dropout.
        """
        ...

    def view(self, key: str) -> Array:
        """An input of the batch as encoders see it: augmented when training, in its own dtype. What lies over an image (its
        mask, maps, boxes, points) has moved with it."""
        ...

    def tokens(self, name: str, key: str = "") -> Tokens:
        """What an encoder gives, or a fusion of all its modalities; `NAME:LAYER` is what that layer of an encoder gave, and
        `FUSION:MODALITY` one token, a modality's embedding in the space of a dual fusion.

        `key` is the fusion's: encoders are shared.
        """
        ...

    def embed(self, modality: str, fusion: str = "dual", inputs: Mapping[str, Array] | None = None, key: str = "") -> Array:
        """[B, E] float32, of unit length: a modality in the space that the fusion `fusion` shares between modalities."""
        ...

    def fuse(self, fusion: str, tokens: Mapping[str, Tokens], key: str) -> Tokens:
        """Fuse several `Tokens`, by modality name, into one."""
        ...

    def decode(
        self, decoder: str, inputs: Mapping[str, Array], context: Mapping[str, Tokens] | None = None, key: str = ""
    ) -> Array:
        """What a decoder gives for `inputs`: the batch key of the modality that it `writes`, and its parts.

        A decoder of text gives [B, T, V] float32 logits of the next token; one of pixels is given an image of the size to
        paint, and gives [B, P, pixels of a patch] float32.
        """
        ...

    def head(self, head: str, tokens: Any = None, key: str = "") -> Array:
        """What a head gives, float32: [B, C] from a pooling head, [B, T, V] from a token head.

        `tokens` None: those that the head's own `input` names.
        """
        ...

    def spec(self, path: str) -> Any:
        """A part of the model as its config says it, by its place (`heads.classes`): its fields can be read."""
        ...

    def modalities(self, name: str) -> tuple[str, ...]:
        """The encoders that an encoder (itself) or a fusion reads."""
        ...

    def scalar(self, fusion: str, name: str) -> Array:
        """[] float32: a learned scalar of a fusion; `dual` has `scale` (already exponentiated) and `bias`."""
        ...

    def with_(
        self,
        params: Params | None = None,
        inputs: Mapping[str, Array] | None = None,
        tokens: Mapping[str, Tokens] | None = None,
        train: bool | None = None,
        key: str = "",
        views: Mapping[str, Array] | None = None,
    ) -> Forward:
        """The same model once more: an average of it, a reference, a perturbed input, an inner step. It writes no variables.

        Args:
          params: other parameters, of the same shapes.
          inputs: batch keys that replace the batch's own, or come to it.
          tokens: encoder -> tokens to take for what it would give.
          train: whether dropout and augmentation are on; None: as here.
          key: names its dropout; "" draws as here.
          views: as `inputs`, of what encoders see, as `view` gives it: augmented already, and not once more. Modules write
            their variables from it as from the batch itself.
        """
        ...

    def complete(self, ask: Callable[[Forward], Any] | None = None) -> Array | None:
        """[B] bool: the rows that have all the modalities that were read so far, or that `ask` reads of this model; of a fusion
        of all its modalities, any that it can do with. None where no row lacks anything."""
        ...

    def teacher(self, name: str) -> Forward:
        """The forward of one of the experiment's `teachers`: another model with its own parameters, which nothing trains, on
        the same inputs as augmented here, without dropout. What it has computed in a step all objectives share; no gradient
        goes through it.

        Raises:
          UserError: there is no such teacher.
        """
        ...


class Objective(Protocol):
    """A frozen dataclass called with the forward, the batch and its own random key.

    Four attributes of the class, all optional: `needs` lists the batch keys it reads, so that a missing one is a clear error
    before anything is compiled; `together` is the key of which equal values have to be in one batch, since records are compared
    with those that share it (`data.Grouped`); `in_batch` is True when the examples of a batch are each other's negatives, so
    that accumulation would change the loss and is refused; unless `embeds_only` is True as well: of the forward it then reads
    the embeddings of its `modalities` in its `fusion`, and scalars, and nothing else, and is given those of the whole batch.

    One that keeps variables (an average of the parameters, a queue, weights of groups) has a method
    `init_variables(params, batch)`: from the first parameters and the shapes of its batches, a tree of arrays. It is then
    called with that tree as a fourth argument, and what its `Loss.variables` holds takes its place, micro-batch after
    micro-batch; None leaves it. A method `after_step(variables, params)` makes of the tree what it is after a step, from the
    parameters that the step has made: an average of them, for instance. A bad step changes neither. Variables are sharded by
    the table of parameters, saved and resumed.

    One that reads texts of its own (prompts of classes) has a field `label` and a method `bound(own, data, encode)`, called at
    set-up with the names of the data's classes, what the data is called, and what makes ids of texts: it gives the objective
    that steps call, and `notes` of it are said to the user. One that leaves examples out has `told`: metric -> what is said,
    once, after the share that the metric has when it is first above 0.
    """

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss: ...

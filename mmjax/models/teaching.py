"""A model that teaches another: what it is, and what it is given of the other's batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp

from mmjax.core.errors import UserError, nearest
from mmjax.core.types import Array, Batch
from mmjax.models.multimodal import Multimodal

TAUGHT = "taught"  # the name of a teacher's results, by which rematerialisation keeps them

Affine = tuple[tuple[float, ...], tuple[float, ...]]  # a scale and a shift, a number a channel each


@dataclasses.dataclass(frozen=True)
class Teaching:
    """What a forward must know of a teacher beside its parameters.

    Attributes:
      model: in the dtype that it computes in.
      inputs: its own modality -> that of the student's batch which it takes in its place, with all parts; the others it takes
        under their own names.
      pixels: its own image -> (scale, shift), which make pixels normalised as it wants them of the student's.
    """

    model: Multimodal
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pixels: Mapping[str, Affine] = dataclasses.field(default_factory=dict)

    def batch(self, batch: Batch, view: Callable[[str], Array]) -> dict[str, Array]:
        """The teacher's batch: the student's as `view` shows it, under the teacher's names, normalised as it wants it.

        Raises:
          UserError: the student's batch has no such modality.
        """
        found = {key: view(own) for key, own in self.keys(batch).items()}
        for image, (scale, shift) in self.pixels.items():
            if image in found:
                channels = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1) for x in (scale, shift))
                found[image] = found[image] * next(channels) + next(channels)
        return found

    def keys(self, batch: Mapping[str, object]) -> dict[str, str]:
        """Key of the teacher's batch -> the student's that it is."""
        missing = next((own for own in self.inputs.values() if own not in batch), None)
        if missing is not None:
            raise UserError(f"inputs={dict(self.inputs)}: the batch has no {missing!r}{nearest(missing, batch)}")
        found = {key: key for key in batch if not any(_of(theirs, key) for theirs in self.inputs)}
        for theirs, own in self.inputs.items():
            found |= {f"{theirs}{key[len(own) :]}": key for key in batch if _of(own, key)}
        return found


def _of(modality: str, key: str) -> bool:
    """Whether a key is a modality's own array or a part of it."""
    return key == modality or key.startswith(f"{modality}_")

"""What a masked autoencoder paints where it is shown a part of a picture (He 2021, figure 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.random import example_uniform
from mmjax.data import Normalise
from mmjax.models.decoders.pixels import PixelDecoder
from mmjax.objectives import MaskedImage
from mmjax.predict.work import Work


@dataclasses.dataclass(frozen=True)
class Painted:
    """One picture, uint8 [H, W, 3] each.

    Attributes:
      seen: the picture as the model reads it, grey where it was hidden.
      painted: what was hidden is painted.
      whole: the picture as the model reads it.
      error: the mean squared error over the hidden patches, as the objective counts it.
    """

    seen: np.ndarray
    painted: np.ndarray
    whole: np.ndarray
    error: float

    def side_by_side(self) -> np.ndarray:
        """uint8 [H, 3 W, 3]: what was seen, what was painted, and the whole."""
        return np.concatenate([self.seen, self.painted, self.whole], axis=1)


def objective_of(work: Work) -> MaskedImage | None:
    """The objective by which a run learned to paint, or that of an imported checkpoint; None where nothing paints."""
    if work.paints is not None:
        return None if work.paints.tubelet else work.paints  # what is painted of a video is no picture
    model = work.model
    found = [name for name, part in model.decoders.items() if isinstance(part, PixelDecoder) and not part.tubelet]
    if len(found) != 1:
        return None
    spec, said = model.decoders[found[0]], model.huggingface
    ratio, normed = float(said.get("mask_ratio", 0.75)), bool(said.get("norm_pix_loss", False))
    own = {"modality": spec.writes, "decoder": found[0]}
    return MaskedImage(patch=tuple(spec.patch), mask_ratio=ratio, norm_pixels=normed, **own)


def paint(
    work: Work,
    objective: MaskedImage,
    pixels: Sequence[np.ndarray],
    numbers: Sequence[int],
    seed: int,
    rows_of: Callable[..., Any],
) -> list[Painted]:
    """Hide patches of each picture, paint them, and put the pixels back into 0 to 255.

    Where the objective paints patches normalised by their own mean and deviation, those of the hidden patch are taken, which
    the model does not know: the paper's pictures are made so too.

    Args:
      pixels: [H, W, 3] float32 each, as the run's transforms make them.
      numbers: of the pictures; what is hidden of one depends on its number and the seed alone.
    """
    batch = {objective.modality: np.stack(pixels), "row": np.array(numbers, np.int32)}

    def ask(forward: Any) -> dict[str, Any]:
        image = forward.view(objective.modality)
        count = objective.patches(image).shape[1]
        noise_BP = example_uniform(jax.random.key(seed), forward.batch["row"], (count,))
        _, painted_BPX = objective.paint(forward, noise_BP)
        return {"painted": painted_BPX, "target": objective.target(image), "hidden": objective.choose(noise_BP)[1]}

    out = rows_of(("paint", objective, seed), ask, batch)
    found = []
    for image, *own in zip(pixels, out["painted"], out["target"], out["hidden"], strict=True):
        found.append(_shown(work, objective, image, *own))
    return found


def _shown(
    work: Work, objective: MaskedImage, image: np.ndarray, painted_PX: np.ndarray, target_PX: np.ndarray, hidden_P: np.ndarray
) -> Painted:
    whole_PX = np.asarray(objective.patches(jnp.asarray(image[None])), np.float32)[0]
    error = float(np.square(painted_PX - target_PX).mean(axis=-1)[hidden_P].mean())
    if objective.norm_pixels:
        deviation = np.sqrt(whole_PX.var(axis=-1, keepdims=True, ddof=1) + 1e-6)
        painted_PX = painted_PX * deviation + whole_PX.mean(axis=-1, keepdims=True)
    hidden_P1 = hidden_P[:, None]
    patches = {"painted": np.where(hidden_P1, painted_PX, whole_PX), "whole": whole_PX}
    made = {name: _bytes(work, _joined(own, image.shape, objective.patch)) for name, own in patches.items()}
    grey = _joined(np.broadcast_to(hidden_P1, whole_PX.shape), image.shape, objective.patch)
    return Painted(np.where(grey, np.uint8(128), made["whole"]), made["painted"], made["whole"], error)


def _joined(patches_PX: np.ndarray, shape: tuple[int, ...], patch: tuple[int, int]) -> np.ndarray:
    """[H, W, channels] of patches in reading order."""
    (height, width, channels), (ph, pw) = shape, patch
    return patches_PX.reshape(height // ph, width // pw, ph, pw, channels).transpose(0, 2, 1, 3, 4).reshape(shape)


def _bytes(work: Work, image_HW3: np.ndarray) -> np.ndarray:
    """uint8 from what the last Normalise of the transforms made."""
    normalise = next((one for one in reversed(work.transforms or ()) if isinstance(one, Normalise)), None)
    if normalise is None:
        raise UserError(f"{work.path}: its transforms have no Normalise, so nothing says what its numbers are as colours")
    colours = (image_HW3 * np.asarray(normalise.std, np.float32) + np.asarray(normalise.mean, np.float32)) * 255
    return np.rint(np.clip(colours, 0, 255)).astype(np.uint8)

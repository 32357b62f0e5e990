"""What a `Predictor` says of the spaces that modalities share."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.predict.running import Running


class Spaces(Running):
    """The part of `Predictor` that gives vectors."""

    def embed_image(self, images: Any) -> np.ndarray:
        """[N, E] float32 of unit length, in the space that images share with texts."""
        return self._embed("image", self._batch({"image": images}))

    def embed_text(self, texts: Any) -> np.ndarray:
        """[N, E] float32 of unit length, in the space that texts share with images."""
        return self._embed("text", self._batch({"text": texts}))

    def embed_audio(self, sounds: Any) -> np.ndarray:
        """[N, E] float32 of unit length, in the space that sounds share with others."""
        return self._embed("audio", self._batch({"audio": sounds}))

    def embed_video(self, videos: Any) -> np.ndarray:
        """[N, E] float32 of unit length, in the space that videos share with others."""
        return self._embed("video", self._batch({"video": videos}))

    def similarity(self, images: Any, texts: Any) -> np.ndarray:
        """[images, texts] float32: the cosines of all pairs."""
        return self.embed_image(images) @ self.embed_text(texts).T

    def shares(self, modality: str) -> bool:
        """Whether a modality has a space that it shares with others."""
        return any(modality in getattr(fusion, "pool", {}) for fusion in self.work.model.fusions.values())

    def space(self, modality: str) -> str:
        """The fusion that holds the space which a modality shares with others. Raises `UserError` where there is none."""
        found = [name for name, fusion in self.work.model.fusions.items() if modality in getattr(fusion, "pool", {})]
        if not found:
            raise UserError(f"{self.work.path}: {modality} has no space that it shares with another modality; {self._can()}")
        return found[0]

    def _embed(self, modality: str, batch: dict[str, np.ndarray]) -> np.ndarray:
        fusion = self.space(modality)
        rows: np.ndarray = self._rows(("embed", modality), lambda forward: forward.embed(modality, fusion), batch)
        return rows

"""`mmjax.Predictor`: one object that answers for a run or a HuggingFace folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Batch, Params
from mmjax.generate import decode, settings_of
from mmjax.generate.stops import tables
from mmjax.models.decoders import writes_texts
from mmjax.models.forward import BoundForward, spliced_tokens
from mmjax.predict.work import open_work

logger = logging.getLogger("mmjax")
BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048)  # lengths of prompts that programs are compiled for


class Predictor:
    """Answers for a run's best checkpoint, or for a HuggingFace folder, on new images and texts.

    An image is a path, a PIL image or uint8 [H, W, 3]; a text a string; one input or a list of them. Each is made ready as the
    run's evaluation makes its own.

    Usage:
      ask = mmjax.Predictor("runs/pets")
      ask.classify(["one.jpg", "two.png"], top_k=3)  # [[{"label": "cat", "score": 0.93}, ...], ...]
      mmjax.Predictor("path/to/blip").generate(images="one.jpg", max_new_tokens=30)

    Args:
      path: of a run or a HuggingFace folder.
      batch_size: inputs that are computed at once.

    Raises:
      UserError: as `mmjax.load`.
    """

    def __init__(self, path: str | Path, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: use 1 or more")
        self.work, self.batch_size = open_work(path), batch_size
        self._compiled: dict[Any, Callable[..., Any]] = {}

    @property
    def model(self) -> Any:
        """The model."""
        return self.work.model

    def classifies(self) -> bool:
        """Whether a head says the class of a whole input."""
        return len(self._heads()) == 1

    def classify(
        self,
        images: Any = None,
        texts: Any = None,
        top_k: int = 5,
        head: str = "",
        classes: Sequence[str] = (),
        template: str = "{}",
    ) -> list[list[dict[str, Any]]]:
        """The likeliest classes of each input, and how likely each is.

        Args:
          images, texts: what is classified, as many of both where the head reads both.
          top_k: so many classes; 0 for all.
          head: the head; "" for the only one that classifies whole inputs.
          classes: of images, without a head: that one whose text is nearest (Radford 2021, section 3.1).
          template: makes the text of a class, `a photo of a {}.` for instance.

        Raises:
          UserError: no such head, or inputs that it does not read.
        """
        if classes:
            logits_NC, names = self._nearest(images, [template.format(one) for one in classes]), tuple(classes)
        else:
            name = self._head(head)
            logits_NC = self._rows(("classify", name), lambda forward: forward.head(name), self._batch(images, texts))
            names = self.work.classes.get(name) or tuple(str(i) for i in range(logits_NC.shape[-1]))
        shares_NC = np.exp(logits_NC - logits_NC.max(-1, keepdims=True))
        shares_NC /= shares_NC.sum(-1, keepdims=True)
        order_NC = np.argsort(-shares_NC, axis=-1, kind="stable")[:, : top_k or None]
        return [
            [{"label": names[i], "score": float(row[i])} for i in order] for row, order in zip(shares_NC, order_NC, strict=True)
        ]

    def _nearest(self, images: Any, texts: list[str]) -> np.ndarray:
        """[N, C]: cosines times the learned scale."""
        fusion = self.space("image")
        scale = BoundForward(self.work.model, self.work.params, {}).scalar(fusion, "scale")
        logits: np.ndarray = float(scale) * self.similarity(images, texts)
        return logits

    def embed_image(self, images: Any) -> np.ndarray:
        """[N, E] float32 of unit length, in the space that images share with texts."""
        return self._embed("image", self._batch(images, None))

    def embed_text(self, texts: Any) -> np.ndarray:
        """[N, E] float32 of unit length, in the space that texts share with images."""
        return self._embed("text", self._batch(None, texts))

    def similarity(self, images: Any, texts: Any) -> np.ndarray:
        """[images, texts] float32: the cosines of all pairs."""
        return self.embed_image(images) @ self.embed_text(texts).T

    def generate(
        self, prompts: Any = None, images: Any = None, logits_processor: Any = None, decoder: str = "", **settings: Any
    ) -> list[Any]:
        """A text after each prompt, without the prompt: a caption of an image, an answer to a question about one.

        With `num_return_sequences` above 1 a list of texts of each prompt, of beams the best first.

        Args:
          prompts: texts that are gone on with, or questions where the decoder reads the text by an encoder; None for none.
          images: as many, where the decoder looks at them.
          logits_processor: a traceable function `(logits [R, V] float32, generate.Written) -> logits`, after all settings' own.
          decoder: which writes; "" for the only one that writes texts.
          settings: of `mmjax.generate.Settings`, by the names that `transformers` gives them; an end is the tokenizer's own.

        Raises:
          UserError: a model that writes no text, a prompt longer than it reads, an unknown setting.
        """
        work, name = self.work, self._decoder(decoder)
        spec, tokenizer, s = work.model.decoders[name], work.tokenizer, settings_of(settings)
        if tokenizer is None:
            raise UserError(f"{work.path}: there is no tokenizer in it, so it writes no text")
        texts, images = _listed(prompts), _listed(images)
        forward = BoundForward(work.model, work.params, {})
        read = {one for context in spec.context for one in forward.modalities(context)}
        if ("image" in read) != (images is not None):
            raise UserError(
                f"decoders.{name} {'looks at an image, and there is none' if 'image' in read else 'looks at no image'}"
            )
        asked = texts if "text" in read else None
        if "text" in read and asked is None:
            raise UserError(f"decoders.{name} answers a question: give one a prompt")
        batch = self._batch(images, asked) if read else {}
        count = len(next(iter(batch.values()))) if batch else len(texts or [""])
        if texts is not None and len(texts) != count:
            raise UserError(f"{count} images and {len(texts)} prompts: give as many of both")
        places = spliced_tokens(work.model, work.params, batch, name) if hasattr(spec, "place") and batch else 0
        ids = self._prompts(None if asked is not None else texts, count, name, s.max_new_tokens, places)
        ends = s.eos_token_id or (tokenizer.eos_id,)

        def write(params: Params, rows: Batch) -> Any:
            own = {key: x for key, x in rows.items() if key in batch}
            prompts, rules = (rows["prompt"], rows["prompt_mask"]), [logits_processor] if logits_processor else []
            stops = tables(s.stop_strings, tokenizer, spec.vocab_size)  # made where it is traced: once a program
            texts = decode(
                work.model, params, name, own, *prompts, s, ends, tokenizer.pad_id, rows["row"], stops=stops, own=rules
            )
            return jax.tree.map(lambda x: x.reshape(-1, s.num_return_sequences, *x.shape[1:]), texts)

        rows = batch | ids | {"row": np.arange(count, dtype=np.int32)}
        written = self._rows(("generate", name, s, logits_processor, *batch), write, rows, bound=False)
        several = [
            [tokenizer.decode(row[:length]) for row, length in zip(*own, strict=True)]
            for own in zip(written.ids, written.lengths, strict=True)
        ]
        return several if s.num_return_sequences > 1 else [own[0] for own in several]

    def _prompts(self, texts: list[str] | None, count: int, name: str, new: int, tokens: int) -> dict[str, np.ndarray]:
        """Prompts without their end, padded on the left to one of `BUCKETS`; the first token alone where there are none."""
        tokenizer, most = self.work.tokenizer, self.work.model.decoders[name].max_length
        assert tokenizer is not None
        rows = [[tokenizer.bos_id]] * count
        if texts is not None:
            found, cut = self.work.texts(texts)
            rows = [ids[mask].tolist() for ids, mask in zip(found["ids"], found["mask"], strict=True)]
            rows = [row[:-1] if row[-1:] == [tokenizer.eos_id] and len(row) > 1 else row or [tokenizer.bos_id] for row in rows]
            rows = [self._with_places(row, name, tokens) for row in rows]
            for text, row, was_cut in zip(texts, rows, cut, strict=True):
                if was_cut or len(row) + new > most:
                    raise UserError(
                        f"a prompt of {'more than ' * was_cut}{len(row)} tokens and max_new_tokens={new} do not fit into "
                        f"decoders.{name}.max_length={most}: {text[:40]!r}"
                    )
        length = next((size for size in BUCKETS if size >= max(map(len, rows))), max(map(len, rows)))
        pad = tokenizer.pad_id
        return {
            "prompt": np.array([[pad] * (length - len(row)) + row for row in rows], np.int32),
            "prompt_mask": np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows]),
        }

    def _with_places(self, row: list[int], name: str, tokens: int) -> list[int]:
        """A prompt whose one place for an image, after its first token where it has none, is as long as the image."""
        place = int(getattr(self.work.model.decoders[name], "place", -1))
        if not tokens or row.count(place) == tokens:
            return row
        if row.count(place) > 1:
            raise UserError(f"a prompt holds {row.count(place)} places for an image: give it one, or the image's {tokens}")
        at = row.index(place) if place in row else min(1, len(row))
        return [*row[:at], *[place] * tokens, *row[at + (place in row) :]]

    def _embed(self, modality: str, batch: dict[str, np.ndarray]) -> np.ndarray:
        fusion = self.space(modality)
        rows: np.ndarray = self._rows(("embed", modality), lambda forward: forward.embed(modality, fusion), batch)
        return rows

    def space(self, modality: str) -> str:
        """The fusion that holds the space which a modality shares with others. Raises `UserError` where there is none."""
        found = [name for name, fusion in self.work.model.fusions.items() if modality in getattr(fusion, "pool", {})]
        if not found:
            raise UserError(f"{self.work.path}: {modality} has no space that it shares with another modality; {self._can()}")
        return found[0]

    def _heads(self) -> list[str]:
        return [name for name in self.work.model.heads if name in self.work.classes or name == "classes"]

    def _head(self, asked: str) -> str:
        heads = self._heads()
        if asked and asked not in self.work.model.heads:
            raise UserError(f"head={asked!r}: the heads are {', '.join(self.work.model.heads) or 'none'}")
        if not asked and len(heads) != 1:
            which = f"say which head: {', '.join(heads)}" if heads else "no head classifies; name the classes"
            raise UserError(f"{self.work.path}: {which}; {self._can()}")
        return asked or heads[0]

    def _decoder(self, asked: str) -> str:
        found = [name for name, part in self.work.model.decoders.items() if writes_texts(part)]
        if asked and asked not in found:
            raise UserError(f"decoder={asked!r}: the decoders that write texts are {', '.join(found) or 'none'}")
        if not found:
            raise UserError(f"{self.work.path}: no decoder writes texts; {self._can()}")
        if not asked and len(found) > 1:
            raise UserError(f"{self.work.path}: say which decoder writes: {', '.join(found)}")
        return asked or found[0]

    def _can(self) -> str:
        """What the model has, for whoever asks for something else."""
        m = self.work.model
        return "the model has " + ", ".join(
            f"{room} {', '.join(parts)}" for room in ("encoders", "fusions", "decoders", "heads") if (parts := getattr(m, room))
        )

    def _batch(self, images: Any, texts: Any) -> dict[str, np.ndarray]:
        """What encoders read, one row an input."""
        images, texts = _listed(images), _listed(texts)
        if images is None and texts is None:
            raise UserError("give images, texts, or both")
        if images is not None and texts is not None and len(images) != len(texts):
            raise UserError(f"{len(images)} images and {len(texts)} texts: give as many of both")
        batch: dict[str, np.ndarray] = {}
        if images is not None:
            made = [self.work.pixels(image) for image in images]
            if len(sizes := {one.shape for one in made}) > 1:
                raise UserError(
                    f"{self.work.path}: images of {len(sizes)} sizes after its transforms, which have no Resize: {sizes}"
                )
            batch["image"] = np.stack(made)
        if texts is not None:
            found, cut = self.work.texts(texts)
            if any(cut):
                logger.warning("mmjax: %d of %d texts were cut to %d tokens", sum(cut), len(cut), found["ids"].shape[1])
            batch |= {"text": found["ids"], "text_mask": found["mask"]}
        return batch

    def _rows(self, key: Any, ask: Callable[..., Any], batch: dict[str, np.ndarray], bound: bool = True) -> Any:
        """What `ask` gives of the forward (or of parameters and a batch), some rows at a time: a tree of numpy [N, ...]."""
        work, size = self.work, self.batch_size
        if key not in self._compiled:
            run = (lambda params, rows: ask(BoundForward(work.model, params, rows))) if bound else ask
            self._compiled[key] = jax.jit(run)
        count, given = len(next(iter(batch.values()))), []
        for start in range(0, count, size):
            rows = {name: x[start : start + size] for name, x in batch.items()}
            real = len(next(iter(rows.values())))
            # Filled up to a power of two, so that batches which lack some rows need few programs.
            full = size if start else min(size, 1 << (real - 1).bit_length())
            rows = {name: np.concatenate([x, np.repeat(x[-1:], full - real, 0)]) for name, x in rows.items()}
            out = self._compiled[key](work.params, {name: jnp.asarray(x) for name, x in rows.items()})
            given.append(jax.tree.map(lambda x, real=real: np.asarray(x)[:real], out))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *given)


def _listed(inputs: Any) -> list[Any] | None:
    """One input as a list of one."""
    if inputs is None:
        return None
    if isinstance(inputs, list | tuple):
        return list(inputs)
    return [inputs]

"""A run as it is handed over: made, exported by the command, and opened by `transformers` from the files of the folder alone.

Each class is handed over in three ways (`WAYS`): a run of our own making with its own tokenizer, one that was imported with the
ids of another tokenizer in its config, and one whose images are of another size than its config's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import transformers
from cases import Case, Made, image_config
from parity import bound, compiled, save
from PIL import Image

import mmjax
from mmjax.cli import main
from mmjax.convert import FAMILIES
from mmjax.convert.api import save_params
from mmjax.convert.tokenizer import CONTINUE
from mmjax.data import Data, Normalise, Resize, Tokenizer, WordPiece
from mmjax.models import Multimodal
from mmjax.objectives import Classification
from mmjax.train import Experiment, Task
from mmjax.train.run import Run, environment

WAYS = ("own", "imported", "resized")
TEXTS = ["a good and long film about cats", "bad cats", "a very long film"]
VOCABULARY, ROOM = 60, 16  # at most; and tokens of a text
PLACE = 63  # stands for a token of the image in LLaVA's texts
LARGER = 20  # pixels a side, of images that the config does not expect; whole patches of 4


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A source that is never read."""

    def build(self) -> Any:
        raise AssertionError


@functools.cache
def tokenizer() -> Tokenizer:
    """Trained on the texts: pad 0, unknown 1, first 2, last 3."""
    return WordPiece(VOCABULARY).train([*TEXTS, "the image shows a film"])


@functools.cache
def pictures() -> list[Image.Image]:
    """Three images of one size."""
    pixels = np.random.default_rng(3).integers(0, 255, (3, 24, 24, 3)).astype(np.uint8)
    return [Image.fromarray(x) for x in pixels]


@dataclasses.dataclass
class Handed:
    """What was handed over.

    Attributes:
      case, made: which HuggingFace model it is.
      model, params: ours, the run's own.
      folder: what was exported.
      size: (height, width) of the run's images; None for a class without.
    """

    case: Case
    made: Made
    model: Multimodal
    params: Any
    folder: Path
    size: tuple[int, int] | None
    asked: dict[str, Any] = dataclasses.field(default_factory=dict)

    def text(self, texts: list[str], room: int = ROOM) -> dict[str, np.ndarray]:
        """Ids and mask of texts as the run encodes them, cut to the longest but where padding counts."""
        found = tokenizer().encode(texts, room)
        if self.made.name in CONTINUE:  # given without their end
            found["mask"] = found["mask"] & np.roll(found["mask"], -1, axis=1)
        padded = all(getattr(part, "mask_padding", True) for part in self.model.encoders.values())
        longest = found["mask"].any(0).sum() if padded else room
        return {"text": found["ids"][:, :longest], "text_mask": found["mask"][:, :longest]}

    def pixels(self, images: list[Image.Image]) -> np.ndarray:
        """[N, H, W, 3] as the run's transforms make them."""
        made = []
        for image in images:
            record: Any = {"image": np.asarray(image)}
            for step in transforms(self.size):
                record = step(record, np.random.default_rng(0), ())
            made.append(record["image"])
        return np.stack(made)

    def say(self, name: str, ask: Callable[[Any], Any], batch: dict[str, np.ndarray]) -> np.ndarray:
        """What `ask` gives of the bound model on a batch, compiled once for each `name`: [...] float64."""
        if name not in self.asked:
            self.asked[name] = compiled(lambda params, batch: ask(bound(self.model, params, batch)))
        arrays = {key: jnp.asarray(x) for key, x in batch.items()}
        return np.asarray(self.asked[name](self.params, arrays), np.float64)

    def theirs(self) -> Any:
        """The model that `transformers` makes of the folder."""
        return getattr(transformers, self.made.name).from_pretrained(self.folder).eval()


def sizes_of(case: Case) -> dict[str, Any]:
    """Room for the tokenizer's words, and for 64 tokens, to which a SigLIP pipeline pads."""
    group = "text_config." if "text_config" in case.sizes else ""
    known = FAMILIES[case.model_type].fields
    length = "n_positions" if "n_positions" in known else f"{group}max_position_embeddings"
    changes = {name: 64 for name in (f"{group}vocab_size", length) if name in known}
    if case.model_type == "roberta":  # whose positions count from the padding id, and take rows for it
        changes |= {"pad_token_id": 0, length: 65}
    if case.model_type == "llava":
        changes |= {"image_token_index": PLACE}
    return changes


def transforms(size: tuple[int, int] | None) -> tuple[Any, ...]:
    return (Resize(size, "bilinear"), Normalise()) if size else ()


def hand_over(case: Case, made: Made, way: str, home: Path) -> Handed:
    """Make a run of this class with random parameters, and export it."""
    hf = case.make(made.of(sizes_of(case)))
    model, params = mmjax.load(save(hf, home / "hf"))
    if way == "own":
        model, params = model.copy(huggingface={}, unread={}), {k: v for k, v in params.items() if k != "unread"}
    size = None
    if "image" in model.encoders:
        side = image_config(hf.config).image_size
        size = (LARGER, LARGER) if way == "resized" else tuple(side if isinstance(side, list | tuple) else (side, side))
    run = Run(home / "run")
    data = Data(Nothing(), transforms(size), max_length=ROOM)
    texts = any(hasattr(part, "vocab_size") for part in (*model.encoders.values(), *model.decoders.values()))
    experiment = Experiment(model=model, data={"train": data}, tasks={"task": Task(Classification())}, steps=1)
    run.path.mkdir()
    run.write_config(experiment)
    shapes = {} if size is None else {"image": [*size, 3]}
    run.write_json("environment.json", environment() | {"data": {"train": {"shapes": shapes}}})
    if texts:
        run.keep_tokenizers({"": tokenizer()})
    save_params(run, params)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = main(["convert", "to-hf", str(home / "run"), str(home / "out")])
    assert status == 0, said.getvalue()
    assert (home / "out" / "config.json").is_file(), said.getvalue()
    return Handed(case, made, model, params, home / "out", size)


def add_places(run, batch, encoder):
    """The image's places in LLaVA's texts, after the first token."""
    decoder = run.model.decoders.get("caption")
    if getattr(decoder, "place", None) is None:
        return
    tokens = (run.size[0] // encoder.patch[0]) * (run.size[1] // encoder.patch[1]) + encoder.cls_token - decoder.skip
    places = np.full((len(TEXTS), tokens), PLACE, np.int32)
    for name, x in (("text", places), ("text_mask", places > 0)):
        batch[name] = np.concatenate([batch[name][:, :1], x, batch[name][:, 1:]], 1)

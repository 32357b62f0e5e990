"""A run as it is handed over: trained, exported by the command, opened by `transformers` from the folder's files alone.

Each class is handed over in three ways (`WAYS`): a run of our own making with its own tokenizer, one that started from an
imported checkpoint with its tokenizer, and one that started there on images of another size than its config's.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from tuned import PLACE, ROOM, experiment, room, tokenizer, transforms, with_places

import mmjax
from mmjax.cli import main
from mmjax.convert import FAMILIES, load_model
from mmjax.convert.tokenizer import CONTINUE
from mmjax.data import Tokenizer
from mmjax.models import Multimodal
from mmjax.models.resize import resized_model
from mmjax.train import train
from mmjax.train.run import Run

WAYS = ("own", "imported", "resized")
SIDE = 32  # pixels a side, of images of which the config says nothing
LARGER = 20  # pixels a side, of images that the config does not expect; whole patches of 4


@dataclasses.dataclass
class Handed:
    """What was handed over.

    Attributes:
      case, made: which HuggingFace model it is.
      model, params: ours, the run's own.
      folder: what was exported.
      size: (height, width) of the run's images; None for a class without.
      tokenizer: the run's own.
      before: what stands before each of its texts.
    """

    case: Case
    made: Made
    model: Multimodal
    params: Any
    folder: Path
    size: tuple[int, int] | None
    tokenizer: Tokenizer | None
    before: str
    asked: dict[str, Any] = dataclasses.field(default_factory=dict)

    def text(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Ids and mask of texts as the run encodes them, cut to the longest but where padding counts."""
        found = self.tokenizer.encode([self.before + text for text in texts], room(self.model) + self.before.count(PLACE))
        if self.made.name in CONTINUE:  # given without their end
            found["mask"] = found["mask"] & np.roll(found["mask"], -1, axis=1)
        longest = found["mask"].any(0).sum() if room(self.model) == ROOM else room(self.model)
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
        changes |= {"image_token_index": with_places().vocab_size - 1}
    return changes


def hand_over(case: Case, made: Made, way: str, home: Path) -> Handed:
    """Train a run of this class, from nothing or from what was imported, and export it."""
    changes = sizes_of(case)
    hf = case.make(made.of(changes))
    folder, start = save(hf, home / "hf"), None
    own = with_places() if "image_token_index" in changes else tokenizer()
    if way == "own":
        model = load_model(folder).copy(huggingface={}, unread={})
    else:
        own.save(folder)
        start = home / "start"
        command("convert", "from-hf", folder, start)
        model = load_model(start)
    size, places = None, 0
    if "image" in model.encoders:
        side = getattr(image_config(hf.config), "image_size", SIDE)
        size = (LARGER, LARGER) if way == "resized" else tuple(side if isinstance(side, list | tuple) else (side, side))
        model = resized_model(model, {"image": size})
        places = places_of(model, size)
    train(experiment(made.name, model, home, size, start, places), home / "run")
    command("convert", "to-hf", home / "run", home / "out")
    assert (home / "out" / "config.json").is_file()
    model, params = mmjax.load(home / "run")
    own = Run(home / "run").tokenizers().get("")
    return Handed(case, made, model, params, home / "out", size, own, PLACE * places)


def command(*words: Any) -> None:
    """Run `mmjax` with these words."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = main([str(word) for word in words])
    assert status == 0, said.getvalue()


def places_of(model: Multimodal, size: tuple[int, int]) -> int:
    """How many tokens of an image stand in LLaVA's texts; 0 in others'."""
    decoder, encoder = model.decoders.get("caption"), model.encoders["image"]
    if getattr(decoder, "place", None) is None:
        return 0
    return (size[0] // encoder.patch[0]) * (size[1] // encoder.patch[1]) + encoder.cls_token - decoder.skip

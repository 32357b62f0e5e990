"""What a run or a HuggingFace folder needs to answer: the model, its tokenizer, its transforms, the names of its classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.convert import FAMILIES, image_transforms, load
from mmjax.convert.api import COMPANION_FOLDER, generation_folder, has_tokenizer, run_at
from mmjax.convert.config_paths import get
from mmjax.convert.export import text_tokenizer
from mmjax.convert.processor import NoProcessorError
from mmjax.convert.sounds import sound_column
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data import Audio, Text, Tokenizer, Video
from mmjax.data.making import text_spec
from mmjax.data.passages import Layout
from mmjax.data.spans import Span
from mmjax.data.transforms import ModalityDropout
from mmjax.evaluate import SpanAnswers, ZeroShot
from mmjax.evaluate.written import Written
from mmjax.generate import Settings, generation_config
from mmjax.models import Multimodal
from mmjax.models.encoders.text import slots_before
from mmjax.models.forward import BoundForward
from mmjax.objectives import ExtractSpan, MaskedImage
from mmjax.predict.letters import Letters, letters_of
from mmjax.predict.pictures import Made, pixels_of
from mmjax.predict.speech import Clock, Speech
from mmjax.train.classes import from_huggingface, uses
from mmjax.train.experiment import Experiment
from mmjax.train.measured import Measured, brought, measured


@dataclasses.dataclass(frozen=True)
class Work:
    """See the module.

    Attributes:
      transforms: those of the data that the run is evaluated on; None where nothing says how images are made ready.
      classes: head -> the names of its classes in the order of its logits; () where there are none.
      max_length: tokens of a text, where the run's data says so; 0 where it does not.
      shape: (H, W, channels) of the images that it is evaluated on; None where nothing says so.
      trained: whether mmjax trained it on data of its own, and so on texts as `Tokenizer.encode` gives them; else prompts are
        what `transformers` makes of them.
      several: whether its head says several labels at once (HuggingFace's `problem_type`), each by itself.
      outcomes: head -> what a task trained its logits for, see `train.classes.Use`.
      templates: those by which the run's own `ZeroShot` makes texts of classes; () where it has none.
      paints: the objective by which it learned to paint what is hidden of an image; None where it did not.
      writes: settings of generation that came with it, by name; `unwritten`: what else its generation_config.json asks for.
      most: tokens of a prompt and of what follows it, by the same file; 0 where it does not say.
      evaluated: decoder -> the settings with which the run's own evaluator writes; of several evaluators those of the first.
      reading: how questions about passages become windows, as its data has it; None where nothing says so.
      impossible: whether its own evaluator says of passages that they have no answer.
      spans: the heads that a task trained to find answers in passages.
      pairs: whether its texts are pairs; None where nothing says so.
      measured: the heads that say numbers -> in which unit (`predict.numbers`).
      fields: what the run's own manifest calls `text` and `text_pair`.
      others: modality -> the tokenizer of its column, of those whose column names another than `text`'s.
      speech: the languages that it writes, by generation_config.json; None where its texts begin alike.
      clock: the tokens of times among words; None where it writes none.
      hears: how a sound is made ready; None where nothing says so.
      letters: the heads that say a letter a frame of sound -> what their classes are.
      watches: how frames are taken of a video; None where nothing says so.
      questions: the decoders that a run has trained, or evaluates, on prompts of their own, and so on questions.
      optional: the modalities that an input may lack, as the run's data has it.
    """

    path: str
    model: Multimodal
    params: Params
    tokenizer: Tokenizer | None
    transforms: tuple[Any, ...] | None
    classes: Mapping[str, tuple[str, ...]]
    max_length: int
    shape: tuple[int, ...] | None = None
    trained: bool = False
    several: bool = False
    outcomes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    templates: tuple[str, ...] = ()
    paints: MaskedImage | None = None
    writes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unwritten: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    most: int = 0
    evaluated: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    questions: frozenset[str] = frozenset()
    reading: Span | None = None
    impossible: bool = False
    spans: tuple[str, ...] = ()
    pairs: bool | None = None
    measured: Mapping[str, Measured] = dataclasses.field(default_factory=dict)
    fields: tuple[str, str] = ("text", "text_pair")
    hears: Audio | None = None
    letters: Mapping[str, Letters] = dataclasses.field(default_factory=dict)
    watches: Video | None = None
    speech: Speech | None = None
    optional: tuple[str, ...] = ()
    clock: Clock | None = None
    others: Mapping[str, Tokenizer] = dataclasses.field(default_factory=dict)

    def new_tokens(self, prompt: int) -> int:
        """How many tokens may follow a prompt of so many, by the generation_config.json that came with it; 0 where that does
        not say. A Whisper's does not count how a text begins."""
        family = FAMILIES.get(self.model.huggingface.get("model_type", ""))
        begun = 0 if family is not None and family.starts_apart else prompt
        return max(1, self.most - begun) if self.most else 0

    def outcome(self, head: str) -> str:
        """What the logits of a head say: `one` class, `several`, each by itself, or an `ordered` one."""
        return self.outcomes.get(head, "several" if self.several else "one")

    def settings(self, decoder: str) -> dict[str, Any]:
        """Settings of generation where nobody says others: the run's evaluator's, else those that came with the weights."""
        own = self.evaluated.get(decoder)
        if own is None:
            return dict(self.writes)
        return {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}

    def answers(self, decoder: str) -> bool:
        """Whether a decoder answers questions: it has them in its context, or beside the image that stands in its text, or was
        trained on prompts. Another would go on with one as if it had written it itself."""
        spec = self.model.decoders[decoder]
        forward = BoundForward(self.model, self.params, {})
        reads = any("text" in forward.modalities(context) for context in spec.context)
        return reads or hasattr(spec, "place") or decoder in self.questions

    def pixels(self, image: Any) -> np.ndarray:
        """[H, W, 3] float32 of a path, a PIL image or a uint8 array [H, W, 3], as the run's evaluation makes them; what is
        `Made` already stays.

        Raises:
          BadRecordError: a file that is no image.
          UserError: something else; a run that says nothing of how images are made ready.
        """
        if isinstance(image, Made):
            return image.pixels
        if self.transforms is None:
            raise UserError(
                f"{self.path}: nothing in it says how an image is made ready (preprocessor_config.json is not there)"
            )
        record: dict[str, Any] = {"image": pixels_of(image)}
        for transform in self.transforms:
            # What is of other fields, writes captions of a class, which a new image has not, or leaves out what is there.
            other = getattr(transform, "field", "image") != "image"
            if other or hasattr(transform, "texts") or isinstance(transform, ModalityDropout):
                continue
            record = transform(record, np.random.default_rng(0), ())
        made: np.ndarray = record["image"]
        if self.shape is not None and made.shape != self.shape:
            (height, width), (own_height, own_width) = made.shape[:2], self.shape[:2]
            raise UserError(
                f"{self.path}: an image of {height} x {width} pixels after the run's transforms, which was trained on "
                f"{own_height} x {own_width}: give its data a Resize"
            )
        return made

    def texts(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> tuple[dict[str, np.ndarray], list[bool]]:
        """`ids`, `mask` and `segments` [N, T] as the run's data makes them, and which texts were cut.

        Args:
          pairs: the second of two texts each; None for one text alone.

        Raises:
          UserError: no tokenizer.
        """
        if self.tokenizer is None:
            raise UserError(f"{self.path}: there is no tokenizer in it, so it reads no text")
        found = self.tokenizer.encode(list(texts), self.length(), None if pairs is None else list(pairs))
        return {name: found[name] for name in ("ids", "mask", "segments")}, found["truncated"].tolist()

    def writer(self, modality: str) -> Tokenizer:
        """The tokenizer of what a decoder writes. Raises `UserError` where there is none."""
        found = self.others.get(modality, self.tokenizer)
        if found is None:
            raise UserError(f"{self.path}: there is no tokenizer in it, so it writes no text")
        return found

    def prompt(self, text: str | None, decoder: Any = None) -> list[int]:
        """Token ids of a text that is to be gone on with, without its end; None for the first token alone.

        Args:
          decoder: which goes on with it, of which some have a `start_token` before a text; None for one that has none.

        Raises:
          UserError: no tokenizer.
        """
        tokenizer = self.writer(getattr(decoder, "writes", "text"))
        if (start := getattr(decoder, "start_token", None)) is not None:
            return [start, *([] if text is None else _without_end(tokenizer.whole(text), tokenizer.eos_id))]
        first = self._first()
        if text is None:
            return list(tokenizer.opening) if first is None else [first]
        if self.trained:  # what `encode` adds at the end is not part of a text that goes on
            ids = tokenizer.whole(text)
            ids = _without_end(ids, tokenizer.eos_id) if len(ids) > 1 else ids
        else:
            ids = tokenizer.huggingface(text, verbose=False)["input_ids"]
            ids = ids if first is None else [first, *ids[1:-1]]
        return list(ids) or list(tokenizer.opening)

    def _first(self) -> int | None:
        """The token with which HuggingFace's class begins each text, whatever its tokenizer writes; None where that stays."""
        family = FAMILIES.get(self.model.huggingface.get("model_type", ""))
        first = None if self.trained or family is None else family.first_token
        return None if first is None else int(get(self.model.huggingface, *first))

    def length(self) -> int:
        """Tokens of a text: of the run's data, else as many as the part that reads `text` can."""
        rooms = {"encoders_": self.model.encoders, "decoders_": self.model.decoders}
        parts = {f"{room}{name}": part for room, named in rooms.items() for name, part in named.items()}
        parts = {"encoders_text": parts["encoders_text"]} if "encoders_text" in parts else parts
        most = [
            part.max_length - slots_before(self.params.get(room, {}))
            for room, part in parts.items()
            if hasattr(part, "vocab_size")
        ]
        return min([self.max_length or 512, *most])

    def windows(self) -> tuple[Layout, bool]:
        """How questions about passages become windows, and whether answers are whole words: as the run's data has it, else as
        the pipeline of `transformers` (up to 4), with as much shared as a third of a short window."""
        length = self.length()
        if self.reading is not None:
            return self.reading.layout(length), self.reading.whole_words
        length = min(length, 384)
        return Layout(length, min(128, length // 3), min(64, length // 4)), True


def open_work(path: str | Path) -> Work:
    """Open a run, or a HuggingFace folder.

    Raises:
      UserError: as `mmjax.load`.
    """
    model, params = load(Path(path))
    run = run_at(path)
    if run is None:
        folder = Path(path)
        tokenizer = Tokenizer.load(folder) if has_tokenizer(folder) else None
        alone = Experiment(model=model, data={}, tasks={}, steps=0)
        own, rest = generation_config.read(folder)
        given = (_came_with(path, model), from_huggingface(alone), 0)
        says: dict[str, Any] = {
            **_asked(rest, tokenizer),
            "several": _several(model),
            "measured": brought(model),
            "hears": sound_column(folder, model),
            "letters": letters_of(alone, {} if tokenizer is None else {"": tokenizer}),
            "watches": _video_column(model),
            "speech": Speech.of(generation_config.said(folder)),
            "clock": _clock(generation_config.said(folder), tokenizer, model),
        }
        return Work(str(path), model, params, tokenizer, *given, **says, writes=_of(model, own, False))
    e, tokenizers = run.experiment(), run.tokenizers()
    data = e.asked_data()
    names = run.classes() or from_huggingface(e)
    transforms = _came_with(path, model) if data is None else tuple(data.transforms)
    tokenizer = text_tokenizer(e, tokenizers) or tokenizers.get("")
    shapes = [about.get("shapes", {}).get("image") for about in run.about_data().values()]
    shape = next((tuple(found) for found in shapes if found), None)
    own, rest = generation_config.read(generation_folder(run, model))
    column = None if data is None else text_spec(data.columns, "text")
    length = 0 if data is None else getattr(column, "max_length", 0) or data.max_length
    how: dict[str, Any] = {"writes": _of(model, own, bool(e.data)), **_asked(rest, tokenizer)}
    how["others"] = _others(e, tokenizers)
    how["paints"] = next((task.objective for task in e.tasks.values() if isinstance(task.objective, MaskedImage)), None)
    how["templates"] = next((tuple(one.templates) for one in e.evaluate.values() if isinstance(one, ZeroShot)), ())
    how["evaluated"], how["questions"] = _evaluators(e)
    how["speech"] = None if e.data else Speech.of(generation_config.said(run.path / COMPANION_FOLDER))
    how["optional"] = () if data is None else tuple(name for name in data.optional if name in model.encoders)
    how["clock"] = _clock(generation_config.said(generation_folder(run, model)), tokenizer, model)
    sound = None if data is None else data.columns.get("audio")
    how["hears"] = sound if isinstance(sound, Audio) else sound_column(run.path / COMPANION_FOLDER, model)
    how["letters"] = letters_of(e, tokenizers)
    video = None if data is None else data.columns.get("video")
    how["watches"] = video if isinstance(video, Video) else _video_column(model)
    how["reading"] = column if isinstance(column, Span) else None
    read = run.about_data().get(next((task.data for task in e.tasks.values()), ""), {}).get("shapes", {})
    how["pairs"] = "text_segments" in read and how["reading"] is None if read else None
    how["spans"] = tuple(one.head for task in e.tasks.values() if isinstance(one := task.objective, ExtractSpan))
    how["impossible"] = any(isinstance(one, SpanAnswers) and one.impossible for one in e.evaluate.values())
    how["outcomes"] = {use.head: use.outcome for use in uses(e, {})}
    numbers = {**brought(model), **measured(e)}
    how["measured"] = {head: own for head, own in numbers.items() if head not in how["outcomes"]}
    if data is not None:
        source = data.source
        while hasattr(source, "source"):  # what another chooses from
            source = source.source
        how["fields"] = (getattr(source, "text_field", "") or "text", getattr(source, "pair_field", "") or "text_pair")
    trained = bool(e.data)
    return Work(str(path), model, params, tokenizer, transforms, names, length, shape, trained, _several(model), **how)


def _others(e: Experiment, tokenizers: Mapping[str, Tokenizer]) -> dict[str, Tokenizer]:
    """See `Work.others`."""
    columns = {key: column for data in e.data.values() for key, column in data.columns.items() if key != "text"}
    named = {key: column.tokenizer for key, column in columns.items() if isinstance(column, Text)}
    return {key: tokenizers[name] for key, name in named.items() if name in tokenizers}


def _evaluators(e: Experiment) -> tuple[dict[str, Settings], frozenset[str]]:
    """Decoder -> settings of the evaluator that writes with it; and the decoders that tasks or evaluators give prompts."""
    found: dict[str, Settings] = {}
    for one in e.evaluate.values():
        if isinstance(one, Written):
            found.setdefault(one.decoder, one.settings)
    users = [*e.evaluate.values(), *(task.objective for task in e.tasks.values())]
    return found, frozenset(one.decoder for one in users if getattr(one, "prompt", "") and hasattr(one, "decoder"))


def _clock(said: Mapping[str, Any], tokenizer: Tokenizer | None, model: Multimodal) -> Clock | None:
    words = [part.vocab_size for part in model.decoders.values() if "audio" in getattr(part, "context", ())]
    return Clock.of(said, tokenizer, max(words, default=0))


def _several(model: Multimodal) -> bool:
    """A class alone, of which nothing else is said, is one that an input may have or not, as the pipelines take it."""
    said, head = model.huggingface.get("problem_type"), model.heads.get("classes")
    return said == "multi_label_classification" or (said is None and getattr(head, "classes", 0) == 1)


def _without_end(ids: list[int], eos: int) -> list[int]:
    return ids[:-1] if ids[-1:] == [eos] else ids


def _of(model: Multimodal, settings: Mapping[str, Any], trained: bool) -> dict[str, Any]:
    """Settings that came with a model. The ends of a run's texts are those of the tokenizer that it was trained with; of a
    class that ends with its separator that is it, whatever else it is told; where only config.json says an end, as older
    checkpoints do, that is it."""
    said, family = model.huggingface, FAMILIES.get(model.huggingface.get("model_type", ""))
    named = {name: value for name, value in settings.items() if name != "eos_token_id"}
    if trained or (family is not None and family.ends_with_sep):
        return named
    places = (settings, said, said.get("text_config", {}))
    end = next((own["eos_token_id"] for own in places if own.get("eos_token_id") is not None), None)
    return named if end is None else {**named, "eos_token_id": end}


def _asked(rest: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What generation_config.json asks for beside settings: how long a text may be, with its prompt, and what is not done.

    The tokens by which old files begin a text (Whisper's) may be those that the tokenizer begins it with.
    """
    left, most = dict(rest), rest.get("max_length", 0)
    left.pop("max_length", None)
    begun = [token for _, token in left.get("forced_decoder_ids", ())]
    if tokenizer is not None and begun == list(tokenizer.opening[1:]):
        left.pop("forced_decoder_ids", None)
    return {"most": most if isinstance(most, int) else 0, "unwritten": left}


def _video_column(model: Multimodal) -> Video | None:
    """As many frames as the encoder of an imported model reads, spread over the video; None where it says no number."""
    frames = getattr(model.encoders.get("video"), "frames", 0)
    return Video(frames=frames) if frames else None


def _came_with(path: str | Path, model: Multimodal) -> tuple[Any, ...] | None:
    """The transforms of the image processor in the folder; None where there is none."""
    if not {"image", "video"} & model.encoders.keys():
        return None
    try:
        return image_transforms(path)
    except NoProcessorError:
        return None

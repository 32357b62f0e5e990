"""What a run says of each of many inputs: read ahead by threads, answered some at a time, given in order."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmjax.convert.api import load_model
from mmjax.core.errors import UserError
from mmjax.data.clip import VIDEOS
from mmjax.data.files import walk
from mmjax.data.files.remote import is_address
from mmjax.data.images import printable, to_pil
from mmjax.data.sound import SOUNDS
from mmjax.data.sources.folder import EXTENSIONS
from mmjax.data.tables.table import SEPARATORS, read_lines
from mmjax.data.types import BadRecordError
from mmjax.predict.made import Listened
from mmjax.predict.numbers import measuring
from mmjax.predict.pictures import Made
from mmjax.predict.predictor import Predictor
from mmjax.predict.sounds import heard_through, said_in
from mmjax.predict.watched import Watched, watched
from mmjax.predict.writing import NAMES

MANIFESTS = (*SEPARATORS, ".jsonl")
FILES = {"image": EXTENSIONS, "audio": SOUNDS, "video": VIDEOS}  # what may be given as files, and how their names end
LONGEST_NAME = 256  # bytes of a file's name; a longer text is none
BESIDE = ("question", "text_pair")  # fields of a manifest that go with an input
Ready = Made | Listened | Watched | BadRecordError
TEXTS_AT_ONCE = 8  # batches of texts among which those of a length are put together


@dataclasses.dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
      given: a path, or a text.
      question: asked of it alone; "" for what is asked of all.
      pair: the second of two texts; "" for what all have.
      number: its place among all.
      line: what else its line of a manifest says, for a head that reads more than one thing of each input.
      wrong: why its line of a manifest names no input; "" for one that does.
    """

    given: str
    question: str = ""
    pair: str = ""
    number: int = dataclasses.field(default=0, compare=False)
    line: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    wrong: str = dataclasses.field(default="", compare=False)


def check_run(path: str, text: bool) -> str:
    """Before any input is looked at: whether a run, or a HuggingFace folder, is at a path, and what it reads of what is given:
    `text`, `image`, `audio` or `video`.

    Raises:
      UserError: nothing is there, or what `mmjax.load_model` raises; files for a model that reads no files.
    """
    if not is_address(path) and not Path(path).exists():
        raise UserError(f"{path}: there is no run, and no HuggingFace folder")
    if text:
        return "text"
    encoders = load_model(path).encoders
    found = next((kind for kind in FILES if kind in encoders), None)
    if found is None:
        raise UserError(f"{path} reads texts, and neither images, sounds nor videos: add --text")
    return found


def listed(inputs: Sequence[str], kind: str) -> list[Input]:
    """The inputs that words name: files of images, sounds or videos, those of folders in the order of their paths, and those of
    manifests line by line: `image`, `audio` or `video`, a path from the manifest's own folder, and its `question`. Of the kind
    `text`: texts, and a manifest's `text`, with its `question` about it, or the `text_pair` that is the second of two.

    Raises:
      UserError: a folder without any, a manifest that is not there, cannot be read or whose lines have no such field; with
        `text` a file of another kind, whose name would be taken for the text.
    """
    found: list[Input] = []
    text = kind == "text"
    for one in inputs:
        path = Path(one)
        manifest = path.suffix.lower() in MANIFESTS
        if manifest and (not text or not set(one) & set(" \n\t")):  # a text may end so, a word like that is a file's name
            found += _lines(one, kind)
        elif text and len(one) < LONGEST_NAME and path.is_file():
            raise UserError(
                f"{one}: with --text a file is a manifest ({', '.join(MANIFESTS)}) whose lines have a 'text', not this"
            )
        elif not text and path.is_dir():
            own = [Input(os.path.join(one, name.removeprefix("./"))) for name in walk.images(path, path, FILES[kind])]
            if not own:
                raise UserError(f"{one}: no {NAMES.get(kind, kind)} in this folder ({', '.join(FILES[kind])})")
            found += own
        else:
            found.append(Input(one))
    return [dataclasses.replace(one, number=number) for number, one in enumerate(found)]


def _lines(path: str, field: str) -> list[Input]:
    """The inputs of a manifest; a line that names none is one that is `wrong`, unless all are."""
    wrong: dict[int, str] = {}
    found: dict[int, Input] = {}
    for number, values in read_lines(path, "", (field, *BESIDE), wrong.__setitem__):
        beside = {name: values.get(name) or "" for name in BESIDE}
        for name, given in {**beside, field: values.get(field)}.items():
            if not isinstance(given, str) or (name == field and not given):
                there = f"; the line has {', '.join(values)}" if name == field else ""
                wrong[number] = f"its {name!r} is {given!r}, no string{there}"
        if number not in wrong:
            given = values[field]
            given = os.path.join(os.path.dirname(path), given) if field in FILES else given
            found[number] = Input(given, beside["question"], beside["text_pair"], line=values)
    if not found:
        first = min(wrong, default=0)
        raise UserError(f"{path}:{first}: {wrong[first]}" if wrong else f"{path}: it has no lines")
    bad = {number: Input(f"{path}:{number}", wrong=reason) for number, reason in wrong.items()}
    return [one for _, one in sorted({**found, **bad}.items())]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of each input.

    Attributes:
      classes: of zero-shot classification; () for those of the run's head.
      template: makes the text of such a class; "" for those of the run's own `ZeroShot`, or the name alone.
      question: asked of each image, or of each passage; "" for none.
      pair: the second of two texts; "" for none.
      spoken: `language`, `task`, `timestamps` and the like of speech, see `Predictor.generate`.
      top_k: so many classes; 0 for all.
      threshold: of a head of several labels at once: those at least so likely; None for the likeliest.
      new_tokens: at most so many tokens of a text; 0 for as many as the weights came with, or 20.
      decoder: which writes; "" for the only one.
      pictures: the folder for what a masked autoencoder paints; "" for none.
      seed: of what is hidden from it.
    """

    classes: tuple[str, ...] = ()
    template: str = ""
    question: str = ""
    pair: str = ""
    spoken: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    top_k: int = 5
    threshold: float | None = None
    new_tokens: int = 0
    decoder: str = ""
    pictures: str = ""
    seed: int = 0


def answers(ask: Predictor, inputs: Sequence[Input], kind: str, asked: Asked) -> Iterator[dict[str, Any]]:
    """What the run says of each input: classes where a head or a list names them, numbers and scores where heads say these;
    what else they read, a text beside an image, is in the line of a manifest. Else entities where a head tags the tokens of
    texts, else a text where a decoder writes one, or the file of a picture that it painted. A text that came to no end within
    `max_new_tokens` has `cut`.

    Args:
      kind: what the inputs are, `image`, `audio`, `video` or `text`; a file that cannot be read is an answer with an `error`.

    Raises:
      UserError: a model that does nothing of that.
    """
    return each(ask, inputs, kind, lambda some, given: _said(ask, kind, some, given, asked))


def each(
    ask: Predictor, inputs: Sequence[Input], kind: str, said: Callable[[list[Input], list[Any]], list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """What `said` gives of each input, with the input's name, in order; a file that cannot be read has an `error`.

    Args:
      said: (inputs, their pixels, sounds, videos or texts) -> an answer for each.
    """
    size = ask.batch_size * (TEXTS_AT_ONCE if kind == "text" else 1)
    texts = ((one, BadRecordError(one.given, one.wrong) if one.wrong else one.given) for one in inputs)
    ready: Iterator[tuple[Input, Any]] = texts if kind == "text" else _made(ask, inputs, kind)
    while some := list(itertools.islice(ready, size)):
        good = [(one, given) for one, given in some if not isinstance(given, BadRecordError)]
        known = iter(said([one for one, _ in good], [given for _, given in good]) if good else ())
        for one, given in some:
            name = {kind: one.given if kind == "text" else printable(one.given)}
            yield {**name, "error": given.reason} if isinstance(given, BadRecordError) else {**name, **next(known)}


def _made(ask: Predictor, inputs: Sequence[Input], kind: str) -> Iterator[tuple[Input, Ready]]:
    """Each image, sound or video made ready as the run's own are, or why it could not be read; so many batches ahead, whatever
    their number."""

    def make(one: Input) -> Ready:
        if one.wrong:
            return BadRecordError(one.given, one.wrong)
        try:
            if kind == "audio":
                return heard_through(ask.work, one.given)
            return watched(ask.work, one.given) if kind == "video" else Made(ask.work.pixels(one.given))
        except BadRecordError as error:
            return error

    waiting: deque[tuple[Input, Future[Ready]]] = deque()
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1), "mmjax-predict")
    try:
        for one in inputs:
            waiting.append((one, pool.submit(make, one)))
            if len(waiting) > 2 * ask.batch_size:
                first, made = waiting.popleft()
                yield first, made.result()
        for first, made in waiting:
            yield first, made.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _said(ask: Predictor, kind: str, some: list[Input], given: list[Any], asked: Asked) -> list[dict[str, Any]]:
    put = [one.question or asked.question for one in some]
    questions = put if any(put) else None
    if questions and not all(put):
        raise UserError(f"{some[put.index('')].given}: it has no question, and others have; give --question for those without")
    if asked.spoken and kind != "audio":
        raise UserError(f"{ask.work.path} reads {kind}s here: --{' and --'.join(asked.spoken)} are of sounds")
    if kind == "audio":
        return said_in(ask, some, given, asked)
    if kind == "video":
        return _watched(ask, some, given, asked)
    images, texts = (given, questions) if kind == "image" else (None, given)
    shown: list[dict[str, Any]] = [{"question": one} if any(each.question for each in some) else {} for one in put]
    if kind == "text" and ask.extracts() and not (asked.classes or asked.decoder):
        if questions is None:
            raise UserError(f"{ask.work.path}: it finds answers in passages: give --question, or a manifest with one a line")
        return [{**own, "answers": row} for own, row in zip(shown, ask.extract(put, given, asked.top_k), strict=True)]
    if kind == "text" and "image" in ask.work.optional and any(one.line.get("image") for one in some):
        raise UserError(f"{ask.work.path} reads an image beside a text, and lines have some: leave --text out")
    if kind == "text" and questions:
        raise UserError(f"{ask.work.path} finds no answers in passages: --question is asked of images here")
    if not asked.decoder:
        if kind == "image" and questions is None and not asked.classes and ask.reads({"image", "text"}):
            texts = _of_lines(some, ask.work.fields[0], "text" in ask.work.optional)
            shown = [{} if text is None else {"text": text} for text in texts]
        pairs, shown = _pairs(ask, some, asked, shown) if texts is not None else (None, shown)
        if found := _by_heads(ask, images, texts, pairs, asked):
            return [{**own, **row} for own, row in zip(shown, found, strict=True)]
    if kind == "text" and ask.tags() and not asked.decoder:
        return [{"entities": row} for row in ask.entities(given)]
    if ask.paints() and kind == "image" and (asked.pictures or not ask.writes()):
        return _painted(ask, some, given, asked)
    if not ask.writes() and ask.shares(kind):
        raise UserError(f"{ask.work.path} compares {kind}s with texts: say by --classes what to choose from")
    writes, field = ask.written(asked.decoder), ask.work.fields[0]
    beside = kind == "image" and questions is None and ask.reads_texts(asked.decoder)
    if beside and any(isinstance(one.line.get(field), str) for one in some):
        texts = _of_lines(some, field)
        shown = [{"text": text} for text in texts]
    name = writes if writes != "text" else "answer" if questions or kind == "text" else "caption"
    if questions and kind == "image":
        ask.check_answers(asked.decoder)
    settings: dict[str, Any] = {"max_new_tokens": asked.new_tokens} if asked.new_tokens else {}
    numbers = [one.number for one in some]
    written = ask.generate(
        texts, images, decoder=asked.decoder, numbers=numbers, num_return_sequences=1, details=True, **settings
    )
    cut = [{} if one.ended else {"cut": True} for one in written]
    return [{**own, name: one.text, **short} for own, one, short in zip(shown, written, cut, strict=True)]


def _watched(ask: Predictor, some: list[Input], given: list[Watched], asked: Asked) -> list[dict[str, Any]]:
    """Classes of videos, of several heads those of each by its name; or a caption."""
    if any(one.question for one in some) or asked.question or asked.classes or asked.pair:
        raise UserError(f"{ask.work.path} reads videos: --question, --classes and --pair are of images and texts")
    if not asked.decoder and (heads := ask.heads_of("video")):
        rows = [ask.classify(videos=given, head=head, top_k=asked.top_k, threshold=asked.threshold) for head in heads]
        names = ["classes"] if len(heads) == 1 else heads
        return [dict(zip(names, own, strict=True)) for own in zip(*rows, strict=True)]
    settings: dict[str, Any] = {"max_new_tokens": asked.new_tokens} if asked.new_tokens else {}
    numbers = [one.number for one in some]
    own = ask.generate(videos=given, decoder=asked.decoder, numbers=numbers, num_return_sequences=1, details=True, **settings)
    return [{"caption": one.text, **({} if one.ended else {"cut": True})} for one in own]


def _pairs(
    ask: Predictor, some: list[Input], asked: Asked, shown: list[dict[str, Any]]
) -> tuple[list[str] | None, list[dict[str, Any]]]:
    """The second texts of some inputs, None where none has one; and what is shown of each, with its own."""
    field = ask.work.fields[1]
    own = [one.pair or one.line.get(field) for one in some]
    if not asked.pair and not any(isinstance(pair, str) for pair in own):
        return None, shown
    if not asked.pair and None in own:
        raise UserError(f"{some[own.index(None)].given}: it has no {field!r}, and others have; give --pair for those without")
    pairs = [str(pair) if pair else asked.pair for pair in own]
    return pairs, [{**row, **({"text_pair": pair} if pair else {})} for row, pair in zip(shown, own, strict=True)]


def _by_heads(ask: Predictor, images: Any, texts: Any, pairs: Any, asked: Asked) -> list[dict[str, Any]]:
    """Classes, by a head or by names, and the numbers of all heads that read what is given; [] where there are neither."""
    found: list[dict[str, Any]] = []
    if asked.classes or ask.classifies():
        rows = ask.classify(images, texts, asked.top_k, "", asked.classes, asked.template or (), asked.threshold, pairs=pairs)
        found = [{"classes": row} for row in rows]
    given = {name for name, inputs in (("image", images), ("text", texts)) if inputs is not None}
    if not asked.classes and measuring(ask.work, given):
        own = ask.numbers(images, texts, pairs)
        found = [{**one, **more} for one, more in zip(found or [{}] * len(own), own, strict=True)]
    return found


def _of_lines(some: list[Input], field: str, optional: bool = False) -> list[Any]:
    """A text of each input's line; None where it may be lacking. Raises `UserError` for an input that has none."""
    for one in some:
        if not optional and not isinstance(one.line.get(field), str):
            has = f"its line has {', '.join(one.line)}" if one.line else "it stands in no manifest (or give --question)"
            raise UserError(f"{one.given}: the run reads a text beside each image, {field!r}, and {has}")
    return [None if optional and not one.line.get(field) else str(one.line[field]) for one in some]


def _painted(ask: Predictor, some: list[Input], given: list[Any], asked: Asked) -> list[dict[str, Any]]:
    """Pictures side by side, as new files of the folder: what was seen, what was painted, and the whole."""
    if not asked.pictures:
        raise UserError(f"{ask.work.path} paints pictures: say by --pictures DIR where they go")
    found, folder = [], Path(asked.pictures)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--pictures {asked.pictures}: it cannot be made a folder ({error.strerror})") from None
    painted = ask.paint(given, seed=asked.seed, numbers=[one.number for one in some])
    for one, own in zip(some, painted, strict=True):
        file = folder / f"{one.number:06d}_{Path(one.given).stem}.png"
        try:
            with file.open("xb") as new:
                to_pil(own.side_by_side()).save(new, "png")
        except FileExistsError:
            raise UserError(f"--pictures {asked.pictures}: {file.name} is there already; give another folder") from None
        found.append({"picture": printable(file), "hidden_error": own.error})
    return found

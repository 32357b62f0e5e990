"""The command `mmjax predict`: its options, and where its answers go."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError, nearest
from mmjax.core.flags import take
from mmjax.core.strict_json import readable


@dataclasses.dataclass(frozen=True)
class Options:
    """Of `mmjax predict`.

    Attributes:
      out: a new file for the answers, one JSON object a line; without it they are printed.
      text: the inputs are texts, to be classified, searched for entities or answers, or gone on with.
      question: asked of each image, or of each passage where the inputs are texts.
      pair: the second of two texts, of which each input is the first.
      language: of the speech, "en" for instance, where the weights know several; without it, as each sound is heard.
      task: `transcribe`, or `translate` (into English).
      timestamps: say of speech from when to when each part is said, too.
      srt, vtt: a folder for subtitles of speech, a file an input.
      temperature: of speech, `0,0.2,0.4` for instance: above 0 tokens are drawn; the next where a threshold is missed.
      compression_ratio_threshold: what repeats itself more than this is written anew (2.4 is usual).
      logprob_threshold: what is less likely, as a mean over its tokens, is written anew (-1.0 is usual).
      no_speech_threshold: what is so unlikely, and silence likelier than this, is left out (0.6 is usual).
      condition_on_prev_tokens: each 30 s of speech are written knowing what was said before.
      classes: of zero-shot classification, parted by commas; or a file with one a line.
      template: makes the text of such a class, `a photo of a {}.` for instance; without it those of the run's own `ZeroShot`.
      decoder: which writes; where one alone does it need not be said.
      adapter: a run that was adapted from this one, or a folder of peft's, whose answers they are.
      pictures: a folder for the pictures of a masked autoencoder.
      index: a file of `mmjax embed` of the same run: the answers are what in it is nearest.
      top_k: so many classes, or nearest, of each input; 0 for all.
      threshold: of a head of several labels at once: those at least so likely.
      max_new_tokens: at most so many tokens of a text; 0 for as many as the run's evaluator writes, or the weights came with,
        or 20, if there is room.
      seed: of what is hidden from a masked autoencoder.
      batch_size: inputs that are computed at once.
    """

    out: str | None = setting(everyday=True, metavar="FILE", default=None)
    text: bool = setting(everyday=True, default=False)
    question: str = setting(everyday=True, default="")
    pair: str = setting(everyday=True, default="")
    language: str = ""
    task: str = ""
    timestamps: bool = setting(everyday=True, default=False)
    srt: str = setting(everyday=True, metavar="DIR", default="")
    vtt: str = setting(everyday=True, metavar="DIR", default="")
    temperature: tuple[float, ...] = ()
    compression_ratio_threshold: float | None = setting(above=0, default=None)
    logprob_threshold: float | None = setting(most=0, default=None)
    no_speech_threshold: float | None = setting(least=0, most=1, default=None)
    condition_on_prev_tokens: bool = False
    classes: str = setting(everyday=True, default="")
    template: str = ""
    decoder: str = setting(metavar="NAME", default="")
    adapter: str = setting(everyday=True, metavar="DIR", default="")
    pictures: str = setting(everyday=True, metavar="DIR", default="")
    index: str = setting(everyday=True, metavar="FILE", default="")
    top_k: int = setting(everyday=True, least=0, default=5)
    threshold: float | None = setting(least=0, most=1, default=None)
    max_new_tokens: int = setting(everyday=True, least=0, default=0)
    seed: int = setting(least=0, default=0)
    batch_size: int = setting(least=1, default=32)


def run(words: list[str], usage: str, say: Callable[[str], None]) -> int:
    """Answer what the words of a command name; returns the exit status, 1 where an input could not be read.

    Raises:
      UserError: mistaken words; what `answers` raises.
    """
    own = take(words, Options)
    check_ranges(own, "--")
    if wrong := [word for word in words if word.startswith("--")]:
        known = [f"--{field.name}" for field in dataclasses.fields(Options)]
        raise UserError(f"predict has no {wrong[0]}{nearest(wrong[0], known)}: {usage}")
    if len(words) < 2:
        raise UserError(f"predict takes a run and what to answer: {usage}")
    if own.pair and (own.question or not own.text):
        raise UserError("--pair is the second of two texts: give --text, and no --question")
    if (own.srt or own.vtt) and (own.text or own.index):
        raise UserError("--srt and --vtt are of what is said in sounds; leave --text and --index out")
    if own.index and (own.question or own.classes):
        raise UserError("--index answers with what is nearest; leave --question and --classes out")
    from mmjax.predict.adapters import ADAPTER, Adapters
    from mmjax.predict.answers import Asked, answers, check_run, listed
    from mmjax.predict.embed import neighbours
    from mmjax.predict.index import Index
    from mmjax.predict.predictor import Predictor
    from mmjax.predict.subtitles import Shelf

    index = Index(own.index) if own.index else None
    kind = check_run(words[0], own.text)
    inputs, failed = listed(words[1:], kind), 0
    asked = Asked(
        classes=_classes(own.classes),
        template=own.template,
        question=own.question,
        pair=own.pair,
        spoken=_spoken(own),
        top_k=own.top_k,
        threshold=own.threshold,
        new_tokens=own.max_new_tokens,
        decoder=own.decoder,
        pictures=own.pictures,
        seed=own.seed,
    )
    shelf = Shelf({"srt": own.srt, "vtt": own.vtt}, [one.given for one in inputs])
    with written(own.out, say) as write, progress(len(inputs), own.out) as tick:
        if own.adapter:
            ask = Adapters(words[0], {ADAPTER: own.adapter}, own.batch_size)[ADAPTER]
        else:
            ask = Predictor(words[0], own.batch_size)
        found = answers(ask, inputs, kind, asked) if index is None else neighbours(ask, index, inputs, kind, own.top_k)
        for number, answer in enumerate(found):
            if "error" not in answer and shelf.folders:
                shelf.put(number, answer["segments"])
            write(readable(answer))
            tick()
            failed += "error" in answer
    if failed and own.out is not None:  # what is printed shows it
        print(f"mmjax: {failed} of {len(inputs)} inputs could not be read: they have an error in {own.out}", file=sys.stderr)
    return 1 if failed else 0


def _spoken(own: Options) -> dict[str, Any]:
    """What is asked of speech, by the names of `Predictor.generate`."""
    timed = own.timestamps or bool(own.srt or own.vtt)
    asked = {"language": own.language, "task": own.task, "timestamps": timed, "temperature": own.temperature}
    names = ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold", "condition_on_prev_tokens")
    asked |= {name: getattr(own, name) for name in names}
    return {name: value for name, value in asked.items() if value not in ("", (), None) and value is not False}


def _classes(said: str) -> tuple[str, ...]:
    """Names that are parted by commas, or the lines of a file."""
    if not said:
        return ()
    try:
        lines = Path(said).read_text(encoding="utf-8-sig").splitlines() if os.path.isfile(said) else said.split(",")
    except UnicodeDecodeError as error:
        raise UserError(f"--classes {said}: not UTF-8 text ({error})") from None
    names = tuple(name.strip() for name in lines if name.strip())
    if len(set(names)) < len(names) or not names:
        raise UserError(f"--classes {said}: {'name each once' if names else 'it names none'}")
    return names


@contextlib.contextmanager
def progress(total: int, out: str | None) -> Iterator[Callable[[], object]]:
    """What is called once an input, and shows how many are done where answers go to a file and somebody looks."""
    from tqdm import tqdm

    with tqdm(total=total, unit="input", disable=out is None or not sys.stderr.isatty()) as bar:
        yield bar.update


@contextlib.contextmanager
def written(out: str | None, say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Where lines go: to a new file, or said.

    Raises:
      UserError: the file is there already.
    """
    if out is None:
        yield say
        return
    try:
        file = open(out, "x", encoding="utf-8")  # noqa: SIM115
    except FileExistsError:
        raise UserError(f"--out {out}: the file is there already; give another name") from None
    except OSError as error:
        raise UserError(f"--out {out}: it cannot be written ({error.strerror})") from None

    def write(text: str) -> None:
        file.write(text + "\n")
        file.flush()

    try:
        with file:
            yield write
    finally:
        if not Path(out).stat().st_size:  # nothing was answered: the same command can be given again
            Path(out).unlink()

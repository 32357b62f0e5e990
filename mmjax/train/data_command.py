"""The commands of `mmjax data`: their words in, what the rooms below do out."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError, nearest
from mmjax.core.files import write_whole
from mmjax.core.flags import take
from mmjax.core.strict_json import readable
from mmjax.data import Dataset
from mmjax.data.inspect import Looked
from mmjax.data.inspect_page import page
from mmjax.data.prepare import prepare as write
from mmjax.data.prepare import said
from mmjax.train.config_file import from_words
from mmjax.train.evaluate import inspect_data
from mmjax.train.teachers import Foreign, no_foreign

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Of `mmjax data prepare`.

    Attributes:
      out: the folder of the shards; one that is begun is gone on with.
      data: which data of the config; `train` where it has that and none is named.
      shards: how many files; 16, or one a record where there are fewer.
      shard: write the file I of N alone, I from 0.
    """

    out: str = setting(everyday=True, metavar="DIR", default="")
    data: str = setting(everyday=True, metavar="NAME", default="train")
    shards: int = setting(everyday=True, least=0, metavar="N", default=0)
    shard: str = setting(everyday=True, metavar="I/N", default="")


def prepare(words: list[str], usage: str, say: Say) -> int:
    """Records of any source -> ArrayRecord shards; returns the exit status.

    Raises:
      UserError: mistaken words; and what `data.prepare` raises.
    """
    own = take(words, PrepareOptions)
    check_ranges(own, "--")
    if not own.out:
        raise UserError(f"data prepare takes --out, the folder of the shards: {usage}")
    shards, only = own.shards, None
    if own.shard:
        found = re.fullmatch(r"(\d+)/(\d+)", own.shard)
        if found is None or int(found[2]) < 1:
            raise UserError(f"--shard {own.shard}: give I/N, for instance 0/16 for the first of 16")
        only, shards = int(found[1]), int(found[2])
        if own.shards not in (0, shards):
            raise UserError(f"--shards {own.shards} and --shard {own.shard}: how many there are is said twice")
    _, experiment = from_words(words)
    if own.data not in experiment.data:
        names = ", ".join(experiment.data)
        raise UserError(f"--data {own.data}: the config has {names}{nearest(own.data, experiment.data)}")
    began = time.perf_counter()
    done = write(experiment.data[own.data], own.data, Path(own.out), shards, only)
    say(said(done))
    say(readable({**done, "seconds": round(time.perf_counter() - began, 3)}))
    return 0


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """Of `mmjax data inspect`.

    Attributes:
      out: write a page there, one HTML file that needs no network.
      records: records of each set of data that the page compares, evenly spaced.
      seconds: how long the page measures each set of data; 0 for not at all.
    """

    out: str = setting(everyday=True, metavar="FILE.html", default="")
    records: int = setting(everyday=True, least=1, default=2000)
    seconds: float = setting(everyday=True, least=0, default=2.0)


def inspect(words: list[str], say: Say, foreign: Foreign = no_foreign) -> int:
    """What all data of a config really holds, in words and with `--out` as a page; returns the exit status.

    Args:
      foreign: that of `train.setup.set_up`.

    Raises:
      UserError: mistaken words; a page that cannot be written; and, after all has been said and shown, what
        `evaluate.inspect_data` raises.
    """
    own = take(words, InspectOptions)
    check_ranges(own, "--")
    name, experiment = from_words(words)
    if not own.out:
        say(inspect_data(experiment, say, foreign))
        return 0
    check_place(Path(own.out))
    found: list[tuple[str, Dataset, Looked]] = []
    fault: UserError | None = None
    try:
        say(inspect_data(experiment, say, foreign, lambda *one: found.append(one)))
    except UserError as error:
        if not found:
            raise
        fault = error
    made = page(f"Data of {name}", found, own.records, own.seconds, [str(fault)] if fault else [])
    write_whole(Path(own.out), made.text)
    say(f"{own.out}: {made.line}")
    if fault:
        raise fault
    return 0


def check_place(file: Path) -> None:
    """Raise `UserError` where a page could not be written: before minutes of looking, not after."""
    if file.is_dir():
        raise UserError(f"--out {file}: it is a folder; give a file, for instance {file / 'page.html'}")
    if not file.parent.is_dir():
        raise UserError(f"--out {file}: there is no folder {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"--out {file}: nothing can be written in {file.parent}")

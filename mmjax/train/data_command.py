"""The commands of `mmjax data`: their words in, what the rooms below do out."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError, nearest
from mmjax.core.flags import take
from mmjax.core.strict_json import line
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
    say(line({**done, "seconds": round(time.perf_counter() - began, 3)}))
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
    """What all data of a config really holds, in words; returns the exit status. `foreign` is that of `train.setup.set_up`.

    Raises:
      UserError: mistaken words; and what `evaluate.inspect_data` raises.
    """
    take(words, InspectOptions)
    _, experiment = from_words(words)
    say(inspect_data(experiment, say, foreign))
    return 0

"""The conversions of the command line: two or three folders in, a line about what was made out."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.flags import take
from mmjax.core.trees import count
from mmjax.models import param_shapes

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """Of `mmjax convert to-peft` and `to-adapters`.

    Attributes:
      base: what the adapter says of its base: a folder, or a name on a hub, that its user loads first.
    """

    base: str = setting(everyday=True, metavar="NAME", default="")


def from_hf(words: list[str], usage: str, say: Say) -> int:
    """HuggingFace folder -> run."""
    source, target = _folders(words, usage, 2)
    from mmjax.convert.api import from_hf as convert

    model, unused = convert(source, target)
    if unused:
        print(
            f"mmjax: {len(unused)} tensors have no place in this class: {', '.join(unused[:5])}{' ...' * (len(unused) > 5)}",
            file=sys.stderr,
        )
    say(f"{target}: {model.huggingface['architectures'][0]}, {count(param_shapes(model)):,} parameters")
    return 0


def to_hf(words: list[str], usage: str, say: Say) -> int:
    """Run -> HuggingFace folder."""
    source, target = _folders(words, usage, 2)
    from mmjax.convert.api import to_hf as convert

    written = convert(source, target)
    left = written.pop("left", "")
    for folder, name in written.items():
        say(f"{target if folder == '.' else f'{target}/{folder}'}: {name}")
    if left:
        print(f"mmjax: no HuggingFace class is the whole model; left behind: {left}", file=sys.stderr)
    return 0


def to_peft(words: list[str], usage: str, say: Say) -> int:
    """Adapted run -> peft folder."""
    from mmjax.convert.peft.to_peft import to_peft as convert

    return _handed(convert, words, usage, say)


def to_adapters(words: list[str], usage: str, say: Say) -> int:
    """Run with bottlenecks -> folder of the adapters library."""
    from mmjax.convert.bottleneck.to_adapters import to_adapters as convert

    return _handed(convert, words, usage, say)


def _handed(convert: Callable[..., tuple[str, int, str]], words: list[str], usage: str, say: Say) -> int:
    own = take(words, Options)
    source, target = _folders(words, usage, 2)
    architecture, numbers, below = convert(source, target, own.base)
    say(f"{target}: an adapter of {architecture}, {numbers:,} numbers, over the model of {below}")
    return 0


def from_peft(words: list[str], usage: str, say: Say) -> int:
    """Base and peft folder -> adapted run."""
    from mmjax.convert.peft.from_peft import from_peft as convert

    return _taken(convert, words, usage, say)


def from_adapters(words: list[str], usage: str, say: Say) -> int:
    """Base and folder of the adapters library -> adapted run."""
    from mmjax.convert.bottleneck.from_adapters import from_adapters as convert

    return _taken(convert, words, usage, say)


def _taken(convert: Callable[..., tuple[dict[str, Any], tuple[str, ...], int]], words: list[str], usage: str, say: Say) -> int:
    base, source, target = _folders(words, usage, 3)
    adapt, beside, unnamed = convert(base, source, target)
    if unnamed:
        print(
            f"mmjax: {source} does not name the classes of its head: they are LABEL_0 to LABEL_{unnamed - 1}", file=sys.stderr
        )
    kinds = ", ".join(dict.fromkeys(type(method).__name__ for method in adapt.values())) or "nothing"
    say(f"{target}: {kinds} on {len(adapt)} kernels" + (f"; trained beside: {', '.join(beside)}" if beside else ""))
    return 0


def average(words: list[str], usage: str, say: Say) -> int:
    """Runs of one model -> the run of their mean."""
    at = words.index("--weights") if "--weights" in words else len(words)
    folders, given = words[:at], words[at + 1 :]
    if len(folders) < 3 or not all(folders) or any(word.startswith("-") for word in folders):
        raise UserError(
            f"convert average takes two runs or more and a new folder, found {' '.join(words) or 'none'}: use {usage}"
        )
    *sources, target = folders
    try:
        weights = [float(word) for word in given] if at < len(words) else [1 / len(sources)] * len(sources)
    except ValueError:
        raise UserError(f"--weights {' '.join(given)}: give numbers and nothing after them: use {usage}") from None
    from mmjax.convert.average import average as convert

    numbers, adapters = convert(sources, target, weights)
    if adapters:
        print(f"mmjax: what adapts {', '.join(adapters)} was merged before averaging", file=sys.stderr)
    shares = ", ".join(f"{weight:g} of {source}" for weight, source in zip(weights, sources, strict=True))
    say(f"{target}: {numbers:,} parameters, {shares}")
    return 0


def _folders(words: list[str], usage: str, count: int) -> list[str]:
    """The folders of a conversion."""
    if len(words) != count or not all(words) or any(word.startswith("-") for word in words):
        many = {2: "two", 3: "three"}[count]
        raise UserError(f"convert takes {many} folders, found {' '.join(words) or 'none'}: use {usage}")
    return words

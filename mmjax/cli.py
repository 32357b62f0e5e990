"""The command line: one function a command. Exit status 0 done, 1 failed, 2 the user's mistake."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import absl.logging

from mmjax.core.config import setting
from mmjax.core.describe import fields, first_sentence, options, page
from mmjax.core.errors import REFUSED, UserError, nearest, said_of
from mmjax.core.flags import take
from mmjax.core.strict_json import fitting, readable

if TYPE_CHECKING:
    from mmjax.core.describe import Line
    from mmjax.parallel.multihost import Join
    from mmjax.train import Experiment

USAGE = """usage: mmjax COMMAND ...
{commands}
mmjax COMMAND --help says more, mmjax COMMAND --help all everything; mmjax --version says which this is.
CONFIG is a Python file, or one of: {configs}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("mmjax").setLevel(logging.INFO)
    absl.logging.set_verbosity(absl.logging.FATAL)  # orbax logs there what it also raises
    _find_modules_here()
    try:
        return _command(words)
    except UserError as error:
        print(f"mmjax: {' '.join('; '.join([str(error), *said_of(error)]).split())}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        print(f"mmjax: {error.filename or error}: {REFUSED[error.errno]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmjax: interrupted; what was saved is kept, the same command goes on from there", file=sys.stderr)
        return 1


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of the table.

    Attributes:
      run: does it, given the words after its name; its docstring is its usage and what the help says of it.
      options: dataclasses of the options that it takes out of its words.
      fields: words -> lines of help for the fields that its flags set; no run is read for them, and no data.
    """

    run: Callable[[list[str]], int]
    options: Callable[[], tuple[type, ...]] = tuple
    fields: Callable[[list[str]], dict[str, list[Line]]] = lambda words: {}


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Of `mmjax train`.

    Attributes:
      workdir: the run folder; runs/CONFIG where none is named.
      profile: write a trace of a few steps to DIR/profile.
    """

    workdir: str | None = setting(everyday=True, metavar="DIR", default=None)
    profile: bool = setting(everyday=True, default=False)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Of `mmjax evaluate`.

    Attributes:
      data: which data; where none is named, the run's test data.
      predictions: write what the evaluators say of each example there, one JSON object a line.
    """

    data: str | None = setting(everyday=True, metavar="NAME", default=None)
    predictions: str | None = setting(everyday=True, metavar="FILE.jsonl", default=None)


@dataclasses.dataclass(frozen=True)
class CacheOptions:
    """Of commands that compile.

    Attributes:
      compilation_cache: keep compiled programs there, a folder or gs://BUCKET/FOLDER, and find them at the next start.
    """

    compilation_cache: str | None = setting(metavar="DIR", default=None)


def train(words: list[str]) -> int:
    """mmjax train [CONFIG] [--workdir DIR] [--profile] [--any.field value ...]

    Train; goes on by itself when DIR holds a checkpoint. CONFIG is digits where none is named.
    """
    own, join = take(words, TrainOptions), _join(words)
    from mmjax.parallel.multihost import is_main, joined

    with joined(join):
        from mmjax.convert.export import obstacle
        from mmjax.convert.teaching import teacher
        from mmjax.train import train as run_training

        name, experiment = _experiment(words)
        metrics = run_training(experiment, own.workdir or Path("runs") / Path(name).stem, own.profile, obstacle, teacher)
        if metrics and is_main():
            _say(readable(metrics))
    return 0


def evaluate(words: list[str]) -> int:
    """mmjax evaluate RUN [--data NAME] [--predictions FILE.jsonl] [--any.field value ...]

    Evaluate a run's best checkpoint, and print one JSON object of metrics on the last line. Any field that evaluation reads can
    be set; the run stays as it is. On machines that the run's mesh does not fit, another is chosen.
    """
    own, join = take(words, EvaluateOptions), _join(words)
    folders = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    if len(folders) != 1 or not folders[0]:
        said = len(folders) if all(folders) else "''"
        raise UserError(f"evaluate takes one run folder, before its flags; found {said}: {_usage(evaluate)}")
    from mmjax.parallel.multihost import is_main, joined

    with joined(join, stop_on_signal=False):
        from mmjax.train.evaluate import evaluate_run

        metrics = evaluate_run(words[0], own.data, words[1:], own.predictions)
        if is_main():
            _say(readable(metrics))
    return 0


def predict(words: list[str]) -> int:
    """mmjax predict RUN INPUT ... [--text] [--index FILE.npz] [--out FILE.jsonl]

    Answer new inputs: classes, captions, answers, nearest matches, one JSON object an input. RUN is a run or a HuggingFace
    folder, INPUT an image, a folder of them, or with --text a text. Exit status 1 where an input could not be read.
    """
    from mmjax.predict.command import run

    return run(words, _usage(predict), _say)


def embed(words: list[str]) -> int:
    """mmjax embed RUN INPUT ... --out FILE.npz [--text]

    Write the vectors of inputs, of unit length in the space that images share with texts, for predict --index.
    """
    from mmjax.predict.embed import run

    return run(words, _usage(embed), _say)


def _conversion(usage: str, about: str) -> Callable[[list[str]], int]:
    """A command of `mmjax.convert.command`, whose function there has the name of the command."""

    def run(words: list[str]) -> int:
        convert: Callable[..., int] = getattr(importlib.import_module("mmjax.convert.command"), name)
        return convert(words, usage, _say)

    name, run.__doc__ = usage.split()[2].replace("-", "_"), f"{usage}\n\n{about}"
    return run


CONVERSIONS = (
    ("mmjax convert from-hf HF_DIR RUN", "Make a run out of a HuggingFace folder, for --init_from and to-hf."),
    (
        "mmjax convert to-hf RUN HF_DIR",
        "Write a run's best checkpoint as a folder that transformers opens; what adapts it is merged.",
    ),
    ("mmjax convert to-peft RUN DIR [--base NAME]", "Write what adapts a run as a folder that peft opens over the base."),
    (
        "mmjax convert from-peft BASE_RUN DIR RUN",
        "Make a run of a base, a run or a HuggingFace folder, and of a folder of peft's.",
    ),
    (
        "mmjax convert to-adapters RUN DIR [--base NAME]",
        "Write a run's bottleneck adapters as a folder that the adapters library opens over the base.",
    ),
    (
        "mmjax convert from-adapters BASE_RUN DIR RUN",
        "Make a run of a base, a run or a HuggingFace folder, and of a folder of the adapters library.",
    ),
    (
        "mmjax convert average RUN RUN ... OUT [--weights W W ...]",
        "Make a run of the mean of the parameters of several, WiSE-FT for instance; all else is the first one's.",
    ),
)


def inspect_data(words: list[str]) -> int:
    """mmjax data inspect [CONFIG] [--out page.html] [--records N] [--any.field value ...]

    Opens all data of the config: classes, lengths of texts, what is cut or unknown, files that cannot be read; with --out also
    a page, of pictures, duplicates and speed. The exit status is 2 for what would end a run.
    """
    from mmjax.convert.teaching import teacher
    from mmjax.train.data_command import inspect

    return inspect(words, _say, teacher)


def prepare_data(words: list[str]) -> int:
    """mmjax data prepare [CONFIG] --out DIR [--data NAME] [--shards N | --shard I/N] [--any.field value ...]

    Writes the records of one set of data as ArrayRecord shards, which ArrayRecord(DIR) gives back equal. Those that are there
    are left; --shard writes one alone, on any machine the same. Prints a line, and one JSON object on the last.
    """
    from mmjax.train.data_command import prepare

    return prepare(words, _usage(prepare_data), _say)


def plan(words: list[str]) -> int:
    """mmjax plan [CONFIG] --topology KIND:SHAPE [--slices N] [--search | --decode BATCH,PROMPT,NEW] [--any.field value ...]

    What a step will cost on a TPU that is not at hand; with --search, the best mesh, batch and rematerialisation there; with
    --decode, what writing texts will. Prints a table, and one JSON object on the last line.
    """
    import jax

    from mmjax.plan.command import Options
    from mmjax.plan.command import plan as report

    jax.config.update("jax_platforms", "cpu")  # libtpu, where it is, belongs to the process that compiles
    every = tuple(words)
    own = dataclasses.replace(take(words, Options), words=every)
    name, experiment = _experiment(words)
    _say(report(name, experiment, own))
    return 0


def _options_in(module: str, name: str = "Options") -> tuple[type, ...]:
    return (getattr(importlib.import_module(module), name),)


def _many_processes() -> tuple[type, ...]:
    from mmjax.parallel.multihost import Join

    return (CacheOptions, Join)


def _fields_of_config(words: list[str]) -> dict[str, list[Line]]:
    return fields(_experiment(words)[1])


def _fields_of_data(words: list[str]) -> dict[str, list[Line]]:
    return fields(_experiment(words)[1], ("data", "tokenizer"))


def _fields_of_evaluation(words: list[str]) -> dict[str, list[Line]]:
    from mmjax.train.evaluate import READ, example

    return fields(example(), READ)


DATA = "mmjax.train.data_command"
COMMANDS = {
    "train": Command(train, lambda: (TrainOptions, *_many_processes()), _fields_of_config),
    "evaluate": Command(evaluate, lambda: (EvaluateOptions, *_many_processes()), _fields_of_evaluation),
    "predict": Command(predict, lambda: _options_in("mmjax.predict.command")),
    "embed": Command(embed, lambda: _options_in("mmjax.predict.embed")),
    **{
        f"convert {usage.split()[2]}": Command(
            _conversion(usage, about),
            functools.partial(_options_in, "mmjax.convert.command") if "[--base" in usage else tuple,
        )
        for usage, about in CONVERSIONS
    },
    "data inspect": Command(inspect_data, lambda: _options_in(DATA, "InspectOptions"), _fields_of_data),
    "data prepare": Command(prepare_data, lambda: _options_in(DATA, "PrepareOptions"), _fields_of_data),
    "plan": Command(plan, lambda: _options_in("mmjax.plan.command"), _fields_of_config),
}


def _command(words: list[str]) -> int:
    """Run the command that `words` begin with, or show the help that they ask for."""
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if words[:1] in (["--version"], ["-V"]):
        _say(f"mmjax {importlib.metadata.version('mmjax')}")
        return 0
    name = next((name for name in COMMANDS if name.split() == words[: len(name.split())]), "")
    rest = words[len(name.split()) :]
    asked = [word for word in rest if word in ("--help", "-h")]
    if not name:
        group = [known for known in COMMANDS if known.split()[0] in words[:1]]
        if not words or (asked and (words[0] in ("--help", "-h") or (group and len(list(_without_help(words))) == 1))):
            _say(_overview(group or list(COMMANDS)))
            return 0
        raise UserError(_no_such(words, group))
    if not asked:
        return COMMANDS[name].run(rest)
    everything = any(pair in (["--help", "all"], ["-h", "all"]) for pair in (rest[i : i + 2] for i in range(len(rest))))
    _say(_help(COMMANDS[name], list(_without_help(rest)), everything))
    return 0


def _no_such(words: list[str], group: list[str]) -> str:
    if not group:
        known = dict.fromkeys(name.split()[0] for name in COMMANDS)
        return f"unknown command {words[0]!r}{nearest(words[0], known)}; mmjax --help lists them"
    near = nearest(words[1], [name.split()[1] for name in group]) if len(words) > 1 else ""
    return f"{' '.join(words[:2])}: use {', or '.join(_usage(COMMANDS[name].run) for name in group)}{near}"


def _overview(names: list[str]) -> str:
    from mmjax.train.config_file import shipped_configs

    lines = []
    for name in names:
        usage, _, about = inspect.cleandoc(COMMANDS[name].run.__doc__ or name).partition("\n\n")
        lines += [f"  {usage}", f"      {first_sentence(about)}"]
    return USAGE.format(commands="\n".join(lines), configs=", ".join(shipped_configs()))


def _help(command: Command, words: list[str], everything: bool) -> str:
    own = [line for cls in command.options() for line in options(cls)]
    return page(f"usage: {inspect.cleandoc(command.run.__doc__ or '')}", own, command.fields(words), everything)


def _without_help(words: list[str]) -> Iterator[str]:
    before = ""
    for word in words:
        if word not in ("--help", "-h") and not (word == "all" and before in ("--help", "-h")):
            yield word
        before = word


def _usage(run: Callable[..., Any]) -> str:
    return (run.__doc__ or run.__name__).splitlines()[0]


def _experiment(words: list[str]) -> tuple[str, Experiment]:
    from mmjax.train.config_file import from_words

    return from_words(words)


def _join(words: list[str]) -> Join:
    """The flags that say how processes find each other, and that of the compilation cache, taken out of `words`."""
    import jax

    from mmjax.parallel.multihost import Join

    cache = take(words, CacheOptions).compilation_cache
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", cache)
    return take(words, Join)


def _find_modules_here() -> None:
    """Let `package.module:Class` name a module of the current folder, as `python -m` does; what is installed comes first."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # the folder is gone
        return
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def _say(text: str) -> None:
    """Print to whoever still reads, in letters that it can show; `mmjax ... | head` ends without a word."""
    try:
        print(fitting(text, sys.stdout.encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it ends


if __name__ == "__main__":
    sys.exit(main())

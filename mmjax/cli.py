"""The command line: one function a subcommand. Exit status 0 done, 1 failed, 2 the user's mistake."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import absl.logging

from mmjax.core.errors import UserError, nearest
from mmjax.core.strict_json import line

if TYPE_CHECKING:
    from mmjax.parallel.multihost import Join
    from mmjax.train import Experiment

HELP = """usage: mmjax COMMAND ...

  mmjax train [CONFIG] [--workdir DIR] [--profile] [--any.field value ...]
                         train; goes on by itself when DIR holds a checkpoint (CONFIG: digits; DIR: runs/CONFIG)
  mmjax train CONFIG --help
                         every field of a config, with its value
  mmjax evaluate RUN [--data NAME]
                         evaluate a run; prints one JSON object of metrics on its last line
  train and evaluate also take
    --coordinator HOST:PORT --processes N --process I
                         run as N processes, of which process 0 is on HOST; on Cloud TPU and under SLURM they find each other
                         (--processes 1: do not), and all are given the same command
    --join_timeout S --peer_timeout S
                         how long to wait for the others to start (300), and for a sign of life of each (100)
    --compilation_cache DIR
                         keep compiled programs there (a folder, or gs://BUCKET/FOLDER) and find them at the next start
  mmjax convert from-hf HF_DIR RUN
                         make a run out of a HuggingFace folder, for --init_from and to-hf
  mmjax convert to-hf RUN HF_DIR
                         write a run's best checkpoint as a folder that transformers opens
  mmjax data inspect [CONFIG] [--any.field value ...]
                         what a batch really holds
  mmjax plan [CONFIG] --topology KIND:SHAPE [--slices N] [--batch_per_chip N] [--write_budget FILE] [--any.field value ...]
                         what a step will cost on that TPU (v5e:4x4, v5p:2x2x4, ...; gpu:8 without memory and time)
  mmjax plan [CONFIG] --topology KIND:SHAPE --search [--minutes 15]
                         the same, for the best mesh, batch and rematerialisation there (--batch_per_chip keeps the batch)

CONFIG is a Python file, or one of: {configs}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("mmjax").setLevel(logging.INFO)
    absl.logging.set_verbosity(absl.logging.FATAL)  # orbax logs there what it also raises
    try:
        return _command(words)
    except UserError as error:
        print(f"mmjax: {' '.join('; '.join([str(error), *getattr(error, '__notes__', ())]).split())}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"mmjax: the disk is full: {error.filename or error}; what was saved before is untouched", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmjax: interrupted; what was saved is kept, the same command goes on from there", file=sys.stderr)
        return 1


def _command(words: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": train,
        "evaluate": evaluate,
        "convert": convert,
        "data": data,
        "plan": plan,
    }
    if not words or words[0] in ("-h", "--help", "help"):
        from mmjax.train.config_file import shipped_configs

        print(HELP.format(configs=", ".join(shipped_configs())))
        return 0
    if words[0] not in commands:
        raise UserError(f"unknown command {words[0]!r}{nearest(words[0], commands)}; mmjax --help lists them")
    return commands[words[0]](words[1:])


def train(words: list[str]) -> int:
    """`mmjax train [CONFIG] [--workdir DIR] [--profile] [--any.field value ...]`, and the flags of several processes"""
    help_wanted = _flag(words, "--help") or _flag(words, "-h")
    profile = _flag(words, "--profile")
    workdir = _option(words, "--workdir")
    join = _join(words)
    if help_wanted:
        from mmjax.core.config import leaves

        _, experiment = _experiment(words)
        print("\n".join(f"--{path} {_as_words(value)}" for path, value in leaves(experiment).items()))
        return 0
    from mmjax.parallel.multihost import is_main, joined

    with joined(join):
        from mmjax.train import train as run_training

        name, experiment = _experiment(words)
        metrics = run_training(experiment, workdir or Path("runs") / Path(name).stem, profile)
        if metrics and is_main():
            print(line(metrics))
    return 0


def evaluate(words: list[str]) -> int:
    """`mmjax evaluate RUN [--data NAME]`, and the flags of several processes"""
    data_name = _option(words, "--data")
    join = _join(words)
    if len(words) != 1:
        raise UserError(f"evaluate takes one run folder, found {len(words)}: mmjax evaluate RUN [--data NAME]")
    from mmjax.parallel.multihost import is_main, joined

    with joined(join, stop_on_signal=False):
        from mmjax.train.evaluate import evaluate_run

        metrics = evaluate_run(words[0], data_name)
        if is_main():
            print(line(metrics))
    return 0


def convert(words: list[str]) -> int:
    """`mmjax convert from-hf HF_DIR RUN` and `mmjax convert to-hf RUN HF_DIR`"""
    ways = ("from-hf", "to-hf")
    if len(words) != 3 or words[0] not in ways:
        hint = nearest(words[0], ways) if words and words[0] not in ways else ""
        raise UserError(f"convert {' '.join(words)}: use convert from-hf HF_DIR RUN, or convert to-hf RUN HF_DIR{hint}")
    from mmjax.convert.api import from_hf, to_hf
    from mmjax.core.trees import count
    from mmjax.models import param_shapes

    way, source, target = words
    if way == "to-hf":
        written = to_hf(source, target)
        left = written.pop("left", "")
        for folder, name in written.items():
            print(f"{target if folder == '.' else f'{target}/{folder}'}: {name}")
        if left:
            print(f"mmjax: no HuggingFace class is the whole model; left behind: {left}", file=sys.stderr)
        return 0
    model, unused = from_hf(source, target)
    if unused:
        print(
            f"mmjax: {len(unused)} tensors have no place in this class: {', '.join(unused[:5])}{' ...' * (len(unused) > 5)}",
            file=sys.stderr,
        )
    print(f"{target}: {model.huggingface['architectures'][0]}, {count(param_shapes(model)):,} parameters")
    return 0


def data(words: list[str]) -> int:
    """`mmjax data inspect [CONFIG] [--any.field value ...]`"""
    if not words or words[0] != "inspect":
        raise UserError(f"data {' '.join(words[:1])}: the one thing to do is mmjax data inspect CONFIG")
    _, experiment = _experiment(words[1:])
    from mmjax.train.evaluate import inspect_data

    print(inspect_data(experiment))
    return 0


def plan(words: list[str]) -> int:
    """`mmjax plan [CONFIG] --topology KIND:SHAPE [--search]` and the other flags of `plan.command.Options`"""
    import jax

    from mmjax.plan.command import Options, plan

    jax.config.update("jax_platforms", "cpu")  # libtpu, where it is, belongs to the process that compiles
    budget = _option(words, "--write_budget")
    every, search = tuple(words), _flag(words, "--search")
    named = {name: _option(words, f"--{name}") for name in ("topology", "slices", "batch_per_chip", "minutes")}
    options = Options(search=search, write_budget=budget, words=every, **named)
    name, experiment = _experiment(words)
    print(plan(name, experiment, options))
    return 0


def _experiment(words: list[str]) -> tuple[str, Experiment]:
    from mmjax.train.config_file import apply_flags, load_config

    name = words.pop(0) if words and not words[0].startswith("-") else "digits"
    return name, apply_flags(load_config(name), words)


def _join(words: list[str]) -> Join:
    """The flags that say how processes find each other, and that of the compilation cache, taken out of `words`."""
    import jax

    from mmjax.parallel.multihost import Join

    cache = _option(words, "--compilation_cache")
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", cache)
    coordinator = _option(words, "--coordinator")
    numbers: dict[str, Any] = {}
    for name, kind in (("processes", int), ("process", int), ("join_timeout", float), ("peer_timeout", float)):
        value = _option(words, f"--{name}")
        try:
            numbers |= {} if value is None else {name: kind(value)}
        except ValueError:
            raise UserError(f"--{name} {value}: give a number") from None
    return Join(coordinator, **numbers)


def _flag(words: list[str], name: str) -> bool:
    if name not in words:
        return False
    words.remove(name)
    return True


def _option(words: list[str], name: str) -> str | None:
    for index, word in enumerate(words):
        if word.startswith(f"{name}="):
            return words.pop(index).partition("=")[2]
        if word == name:
            if index + 1 == len(words):
                raise UserError(f"{name}: a value is missing")
            words.pop(index)
            return words.pop(index)
    return None


def _as_words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    sys.exit(main())

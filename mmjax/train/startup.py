"""Before the first step: the processes agree on what they run, and compile it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from mmjax.core.config import to_json
from mmjax.parallel.multihost import agree, barrier, is_main
from mmjax.train.begun import with_examples
from mmjax.train.experiment import Experiment
from mmjax.train.kept_code import collect, digest, read
from mmjax.train.run import CLASSES, Run, environment
from mmjax.train.setup import Kind, Setup, set_up
from mmjax.train.teachers import Foreign, no_foreign, write_down
from mmjax.train.validate import validated

CACHE_HIT = "/jax/compilation_cache/cache_hits"

Step = tuple[Callable[..., Any], int]


def open_run(
    experiment: Experiment,
    run: Run,
    mesh: jax.sharding.Mesh,
    held: contextlib.ExitStack,
    say: Callable[[str], None],
    foreign: Foreign = no_foreign,
) -> Setup:
    """The setup of an experiment in its folder, alike on all processes. Process 0 goes first: the others read its tokenizer.

    Args:
      held: until it is closed, no other process can write the run.
      say: called with a line that the user should see.
      foreign: knows teachers that are no runs.

    Raises:
      UserError: a mistake in the experiment or its data, or something in which a process differs from process 0.
    """
    about = environment()
    agree("the code", {"git": about["git"], "own": digest(read(collect(experiment)[0]))})
    agree("the experiment", to_json(experiment))
    if not is_main():
        barrier("the run folder")
        run.fetch()
    setup = _settled(validated(set_up(experiment, run, mesh, foreign=foreign), run))
    if is_main():
        run.check(experiment)
        held.enter_context(run.writing())
        run.check(experiment)  # another may have written till now
        run.open(setup.experiment, say)
        if not run.has_checkpoint():
            run.keep_tokenizers(setup.tokenizers)
            write_down(run, setup.teachers, experiment)
        for line in changed(run.about_data() if run.has_checkpoint() else {}, about_data(setup)):
            say(line)
        run.write_json("environment.json", about | {"data": about_data(setup)})
        run.write_json(CLASSES, setup.classes)
        barrier("the run folder")
    agree_on_data(setup)
    for line in setup.notes:
        say(line)
    return setup


def _settled(setup: Setup) -> Setup:
    """The setup whose experiment says how many texts a window of packed rows has: drawn again when the run goes on, from data
    that may have changed, the number and with it every batch would be another."""
    drawn = {name: dataset.window_examples for name, dataset in setup.datasets.items() if dataset.packed}
    return dataclasses.replace(setup, experiment=with_examples(setup.experiment, drawn))


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """A line for each set of data that a run began with and that holds other examples now."""
    for name, own in now.items():
        there = before.get(name, {})
        if there.get("fingerprint", own["fingerprint"]) != own["fingerprint"]:
            yield (
                f"data.{name} has changed since this run was last open: {there.get('size', 0):,} records then, "
                f"{own['size']:,} now, and not the same ones; from here on its batches are others than they would have been"
            )


def about_data(setup: Setup) -> dict[str, Any]:
    """What identifies each dataset, and the shape of a row of each key."""
    return {
        name: {
            "size": d.size,
            "classes": list(d.classes),
            "fingerprint": d.fingerprint,
            "shapes": {key: list(shape[1:]) for key, (shape, _) in d.spec().items()},
        }
        for name, d in setup.datasets.items()
    }


def agree_on_data(setup: Setup) -> None:
    """Raises `UserError` where a process has other data or another tokenizer than process 0."""
    agree("the data", about_data(setup))
    for name, tokenizer in sorted(setup.tokenizers.items()):
        words = sorted(tokenizer.huggingface.get_vocab().items())
        agree(f"the tokenizer {name}".strip(), {"words": len(words), "crc": zlib.crc32(repr(words).encode())})


def compile_steps(setup: Setup, groups: tuple[tuple[str, ...], ...]) -> tuple[dict[Kind, Step], str]:
    """The compiled step of each kind, and how long it took: "compiled in 41.2 s", or from the cache."""
    began = time.perf_counter()
    kinds = [kind for group in dict.fromkeys(groups) for kind in setup.kinds(group)]
    with _cache_hits() as hits:
        steps = {kind: setup.compile_step(*kind) for kind in kinds}
    found = ", from the compilation cache" if len(hits) >= len(kinds) else ""
    many = f"{len(kinds)} programs " if len(kinds) > 1 else ""
    return steps, f"{many}compiled in {time.perf_counter() - began:.1f} s{found}"


@contextlib.contextmanager
def _cache_hits() -> Iterator[list[str]]:
    """Programs that JAX takes from its persistent cache while the block runs."""
    hits: list[str] = []

    def heard(event: str, **_: Any) -> None:
        if event == CACHE_HIT:
            hits.append(event)

    jax.monitoring.register_event_listener(heard)
    try:
        yield hits
    finally:
        jax.monitoring.unregister_event_listener(heard)

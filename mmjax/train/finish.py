"""The end of a run: what it says of itself, and how a later start knows that nothing is left to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmjax.core.config import to_json
from mmjax.core.errors import UserError, nearest, within
from mmjax.core.strict_json import lines
from mmjax.data import Dataset, Fill
from mmjax.parallel.multihost import is_main, told
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.experiment import Experiment
from mmjax.train.run import FINISHED, Run
from mmjax.train.setup import Setup

PREDICTIONS = "predictions.jsonl"  # what evaluators said of each example at the end
VALIDATION = "validation"  # the data that `test_data` stands in for at the end


def finished(run: Run, experiment: Experiment) -> tuple[int, dict[str, float]] | None:
    """(last step, final metrics) of a run in which nothing is left to do; None where something is.

    Raises:
      UserError: the folder holds another experiment.
    """
    found = None
    if is_main():
        kept = run.read_json(FINISHED)
        if isinstance(kept, dict) and kept.get("asked") == _asked(experiment) and kept.get("step") in run.saved_steps():
            run.check(experiment)
            if Checkpoints(run.checkpoints, experiment.checkpoint, read_only=True).is_whole(kept["step"]):
                found = [kept["step"], kept["metrics"]]
    said = told("a finished run", found)
    return None if said is None else (said[0], said[1])


def finish(
    run: Run,
    experiment: Experiment,
    step: int,
    best: int | None,
    metrics: Mapping[str, float],
    examples: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write down that a run has come to its end at `step`, evaluated with checkpoint `best`, and what was said of examples."""
    if best is not None:
        if examples:
            run.write(PREDICTIONS, lines(examples))
        run.write_json("final.json", {"step": best, "data": test_data(experiment), **metrics})
    run.write_json(FINISHED, {"step": step, "metrics": dict(metrics), "asked": _asked(experiment)})


def _asked(experiment: Experiment) -> dict[str, Any]:
    """All of an experiment that could make its end another one."""
    e, c = experiment, experiment.checkpoint
    told = {"steps": e.steps, "test_data": e.test_data, "best": c.best, "mode": c.mode, "patience": c.patience}
    hooks = {"hooks": to_json(e.hooks)} if e.hooks else {}  # one of them may have stopped it
    return told | hooks | {"evaluate": to_json(e.evaluate), "evaluate_every": e.evaluate_every}


def test_data(experiment: Experiment) -> str | None:
    """The data that a finished run takes instead of `validation`; None where it has none."""
    return experiment.test_data if experiment.test_data in experiment.data else None


def run_evaluators(
    experiment: Experiment, evaluation: Any, params: Any, examples: list[dict[str, Any]] | None = None
) -> dict[str, float]:
    """Every evaluator's metrics, named `evaluator/metric`, each on the data that it names.

    Args:
      examples: takes what they say of single examples, where somebody wants to know.
    """
    metrics: dict[str, float] = {}
    for name, evaluator in experiment.evaluate.items():
        evaluation.kept = None if examples is None else []
        with within(f"evaluate.{name}"):
            metrics |= {f"{name}/{metric}": value for metric, value in evaluator(evaluation, params).items()}
        if examples is not None:
            examples += [{"evaluator": name, "data": evaluator.data, **one} for one in evaluation.kept]
    evaluation.kept = None
    return metrics


def at_the_end(experiment: Experiment) -> Experiment:
    """The same with its evaluators as the finished run asks them: those of `validation` on the test data, where there is any.
    An evaluator that names data of its own stays there; one that is asked on a share of it while training is on all."""
    chosen = test_data(experiment)
    moved = {
        name: asked_on(evaluator, chosen if chosen and evaluator.data == VALIDATION else evaluator.data)
        for name, evaluator in experiment.evaluate.items()
    }
    return dataclasses.replace(experiment, evaluate=moved)


def asked_on(evaluator: Any, data: str) -> Any:
    """The evaluator on the whole of this data."""
    changes = {"data": data, "share_in_training": 1.0} if hasattr(evaluator, "share_in_training") else {"data": data}
    changed = any(getattr(evaluator, name) != value for name, value in changes.items())
    return dataclasses.replace(evaluator, **changes) if changed else evaluator


def check_best(experiment: Experiment, metrics: Mapping[str, float], step: int) -> None:
    """Raises UserError where `checkpoint.best` is no metric of its evaluator's; that shows at the first evaluation."""
    name = experiment.checkpoint.best
    if name and name not in metrics:
        given = [metric for metric in metrics if metric.startswith(f"{name.split('/')[0]}/")]
        raise UserError(
            f"checkpoint.best={name!r}: its evaluator gives {', '.join(given) or 'nothing'}{nearest(name, given)}; step {step} "
            "is saved, and the same command with another checkpoint.best goes on from there"
        )


def shown(metrics: Mapping[str, float]) -> str:
    """Metrics in a line, without those of parts (`evaluator/metric/part`)."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name.count("/") == 1)


def data_troubles(setup: Setup) -> Iterator[str]:
    """What the data lost on its way to the model: texts cut to length, unknown tokens, files that could not be read."""
    for name, dataset in setup.datasets.items():
        lost = dataset.lost
        if lost.truncated and dataset.windows is not None:
            most = dataset.windows.layout.max_question
            yield f"data.{name}: {lost.truncated:,} questions were longer than max_question={most} tokens and were cut"
        elif lost.truncated:
            lengths = {key: most for key, (_, most) in dataset.texts().items()}
            alike = set(lengths.values())
            each = ", ".join(f"{key} {most}" for key, most in lengths.items())
            what = f"max_length={alike.pop()} tokens" if len(alike) == 1 else f"the tokens of their columns ({each})"
            yield f"data.{name}: {lost.truncated:,} texts were longer than {what} and were cut"
        if lost.words:
            yield f"data.{name}: {lost.words:,} words with a tag have no token: they were cut, or are nothing to the tokenizer"
        if lost.answers:
            yield f"data.{name}: {lost.answers:,} answers stand whole in no window of their passage: nothing is learned of them"
        if lost.letters:
            yield f"data.{name}: {lost.letters:,} answers begin or end between a letter and its marks: all of it is learned"
        if lost.unknown:
            share = lost.unknown / lost.tokens
            yield (
                f"data.{name}: {lost.unknown:,} of its tokens ({share:.1%}) are unknown to the tokenizer, so the model cannot "
                "read what stood there; train the tokenizer on such texts, or use BPE, which knows every character"
            )
        yield from _of_sounds(name, dataset)
        yield from _of_videos(name, dataset)
        if dataset.fill.slots:
            yield _filled(name, dataset.fill) if dataset.packed else _bucketed(name, dataset)
        if dataset.bad:
            first, reason = next(iter(dataset.bad.items()))
            yield f"data.{name}: {len(dataset.bad):,} records could not be read and were replaced, first {first} ({reason})"


def _of_sounds(name: str, dataset: Dataset) -> Iterator[str]:
    lost = dataset.lost
    if lost.cut_sounds:
        left = f"{lost.cut_seconds:,.0f} s of them are left out"
        yield f"data.{name}: {lost.cut_sounds:,} sounds were longer than the seconds of their column and were cut: {left}"
    if lost.silent:
        yield f"data.{name}: {lost.silent:,} sounds are silent where they were read: all samples are the same"
    if lost.clipped:
        yield f"data.{name}: {lost.clipped:,} sounds are clipped: their loud parts are cut off in the file, and are used so"


def _of_videos(name: str, dataset: Dataset) -> Iterator[str]:
    lost = dataset.lost
    if lost.short_videos:
        yield f"data.{name}: {lost.short_videos:,} videos had fewer frames than asked for: the last is repeated, masked"
    if lost.cut_videos:
        yield f"data.{name}: {lost.cut_videos:,} videos were longer than frames * every of their column: a part was read"


def _filled(name: str, fill: Fill) -> str:
    """How well rows of several texts were filled."""
    padding, waited = 1 - fill.tokens / fill.slots, fill.waited / max(fill.texts, 1)
    line = f"data.{name}: {fill.texts:,} texts packed into rows: {padding:.1%} is padding, {waited:.1%} waited for a later row"
    if not fill.left_out:
        return line
    return f"{line}; {fill.left_out:,} found no room and were left out: lower packing.fill, or raise packing.carry"


def _bucketed(name: str, dataset: Dataset) -> str:
    """How much of the rows of texts in buckets was padding, and how much it would have been without."""
    fill, lengths = dataset.fill, dataset.lengths
    padding, whole = 1 - fill.tokens / fill.slots, 1 - fill.tokens / (fill.texts * lengths[-1])
    sizes = " or ".join(filter(None, (", ".join(map(str, lengths[:-1])), str(lengths[-1]))))
    line = f"data.{name}: {fill.texts:,} texts in batches of {sizes} tokens: {padding:.1%} is padding"
    return f"{line}, and would be {whole:.1%} of rows of {lengths[-1]}"

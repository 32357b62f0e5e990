"""Evaluators before the first step: what they run is traced on the shapes of their data."""

from __future__ import annotations

import contextlib
import dis
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmjax.core.errors import UserError, nearest, within
from mmjax.evaluate.evaluation import Evaluation, HostBatch
from mmjax.models.forward import BoundForward
from mmjax.train.experiment import Experiment
from mmjax.train.setup import Setup
from mmjax.train.state import with_variables

logger = logging.getLogger("mmjax.dry")


class DryEvaluation(Evaluation):
    """An evaluation on shapes: functions are traced, and give zeros. What evaluators make of those is thrown away."""

    dry = True

    def __init__(self, setup: Setup, heads: dict[str, tuple[int, ...]]) -> None:
        model = setup.experiment.model

        def bind(params: Any, batch: Any) -> BoundForward:
            self._forwards.append(BoundForward(model, params, batch))
            return self._forwards[-1]

        super().__init__(bind, setup.datasets, setup.texts(), place=jax.device_put)  # which is never called
        self._forwards: list[BoundForward] = []
        self._heads = heads
        self.answered = False  # whether zeros were given out: what an evaluator says of those is no mistake of the user's
        self.mistake: Exception | None = None  # what was wrong in what was traced

    def _epoch(self, data: str, needs: Sequence[str]) -> Iterator[HostBatch]:
        dataset: Any = self.dataset(data)
        batch = {key: np.zeros(shape, dtype) for key, (shape, dtype) in dataset.spec().items()}
        self.check_needs(data, batch, needs)
        yield batch | {"valid": np.ones(dataset.batch_size, bool)}

    def _outputs(
        self, key: tuple[str, str], batches: Iterable[HostBatch], params: Any, fn: Callable[..., Any]
    ) -> Iterator[Any]:
        given: Any = None
        for batch in batches:
            if given is None:
                shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
                found = jax.eval_shape(self.program(fn), params, shapes, jax.ShapeDtypeStruct((), np.int32))
                for forward in self._forwards:
                    self._heads.update(forward.gave)
                # True, so that no row is taken for padding.
                given = jax.tree.map(lambda x: np.ones(x.shape, bool) if x.dtype == bool else np.zeros(x.shape, x.dtype), found)
            self.answered = True
            yield given

    def rows(self, *args: Any, **kwargs: Any) -> Any:
        return self._asked(super().rows, *args, **kwargs)

    def sums(self, *args: Any, **kwargs: Any) -> Any:
        return self._asked(super().sums, *args, **kwargs)

    def texts(self, *args: Any, **kwargs: Any) -> Any:
        return self._asked(super().texts, *args, **kwargs)

    def _asked(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            self.mistake = self.mistake or error
            raise


def asks(evaluator: Any) -> bool:
    """Whether an evaluator ever reads the evaluation that it is called with.

    One that does not has nothing that could be traced, and may count its calls (a script, a figure from elsewhere).
    """
    code = getattr(evaluator, "__code__", None) or getattr(type(evaluator).__call__, "__code__", None)
    if code is None:
        return True
    place = 0 if hasattr(evaluator, "__code__") else 1
    if code.co_argcount <= place:
        return True
    name = code.co_varnames[place]
    named = (step.argval for step in dis.get_instructions(code))
    return name in code.co_cellvars or any(name in value if isinstance(value, tuple) else value == name for value in named)


def check_evaluators(setup: Setup, evaluators: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Trace what every evaluator runs. Returns head -> shape of its logits."""
    heads: dict[str, tuple[int, ...]] = {}
    params = with_variables(setup.abstract.params, setup.abstract.variables.get("model", {}))
    for name, evaluator in evaluators.items():
        if not asks(evaluator):
            continue
        dry = DryEvaluation(setup, heads)
        with within(f"evaluate.{name}"):
            try:
                with _unheard():
                    metrics = evaluator(dry, params)
            except Exception as error:
                mistake = dry.mistake or (error if isinstance(error, UserError) and not dry.answered else None)
                if mistake is not None:
                    if not isinstance(mistake, UserError):
                        mistake.add_note(f"in evaluate.{name}, which was traced before the first step")
                    raise mistake from None
                logger.debug("evaluate.%s on zeros: %r", name, error)  # which no real data is
            else:
                _check_best(setup.experiment, name, metrics)
    return heads


def _check_best(experiment: Experiment, name: str, metrics: Any) -> None:
    """Raises UserError where `checkpoint.best` is no metric of its evaluator's; those of classes show on real data only."""
    best = experiment.checkpoint.best
    given = [f"{name}/{metric}" for metric in metrics] if isinstance(metrics, Mapping) else []
    if given and best.count("/") == 1 and best.startswith(f"{name}/") and best not in given:
        shown = ", ".join(metric for metric in given if metric.count("/") == 1)
        raise UserError(f"checkpoint.best={best!r}: its evaluator gives {shown}{nearest(best, given)}")


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Without what evaluators log or warn of figures that are not real; what is lost of prompts is told all the same."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))  # of every logger: a user's evaluator has one of its own
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

"""An experiment at a prompt or in a notebook: a batch, a step, a forward at a time, and no run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError, nearest
from mmjax.core.random import fold_name
from mmjax.core.types import Batch
from mmjax.models.forward import BoundForward
from mmjax.parallel.mesh import use_mesh
from mmjax.train.config_file import apply_flags, load_config
from mmjax.train.experiment import Experiment
from mmjax.train.feed import Feed
from mmjax.train.init_from import first_state
from mmjax.train.setup import Kind, Setup
from mmjax.train.setup import set_up as set_up_experiment
from mmjax.train.state import State, with_variables
from mmjax.train.teachers import Foreign, no_foreign
from mmjax.train.validate import validated


def set_up(config: str | Path | Experiment, flags: str | Sequence[str] = (), foreign: Foreign = no_foreign) -> Session:
    """Set an experiment up, to look into it.

    Args:
      config: the name of a shipped config, the path of a config file, or an experiment.
      flags: `--any.field value ...`, in one text as on a command line or as its words.
      foreign: knows teachers that are no runs; `mmjax.convert.teacher` opens HuggingFace folders.

    Raises:
      UserError: there is no such config, or anything in it does not fit together, with its data or on this machine.

    Usage:

        session = mmjax.set_up("digits", "--model.encoders.image.depth 4")
        batch = session.batch()  # {"train": {"image": [N, H, W, C], ...}}
        figures = session.step()  # {"loss": 15.4, ...}
        forward = session.forward()
        forward.encode("image").embeddings.shape
    """
    experiment = config if isinstance(config, Experiment) else load_config(str(config))
    experiment = apply_flags(experiment, shlex.split(flags) if isinstance(flags, str) else flags)
    mesh = experiment.mesh.build()
    with use_mesh(mesh):
        return Session(validated(set_up_experiment(experiment, None, mesh, foreign=foreign)))


class Session:
    """An experiment that is set up. N steps give the parameters, bit for bit, that `mmjax train` has after N steps of it.

    Nothing is compiled before the first step, and nothing is written. Under `jax.disable_jit()` a step is run operation by
    operation, so that one can print and break in it; its last bits are then others. `with session:` makes its mesh the current
    one, which what is computed with a forward on several devices needs, and closes it at the end.

    Attributes:
      setup: mesh, tokenizers, datasets, and shapes of the state; its `notes` say what a run says before its first step.
      state: parameters and all else that a step changes. The next step takes its arrays over: copy what is to be kept.
      step_number: steps done.
    """

    def __init__(self, setup: Setup):
        self.setup, self.experiment = setup, setup.experiment
        self.state: State = self._placed(first_state(setup, None, print))
        self.step_number = 0
        self._feed: Feed | None = None
        self._next: dict[str, Batch] = {}
        self._compiled: dict[Kind, Callable[..., Any]] = {}
        self._held = contextlib.ExitStack()

    def batch(self) -> dict[str, Batch]:
        """The batches that the next step will train on, on the mesh: stream -> key -> [N, ...]. The same until it has."""
        if not self._next:
            with use_mesh(self.setup.mesh):
                if self._feed is None:
                    self._feed = Feed(self.setup, self.step_number)
                self._next = self._feed.take()
        return self._next

    def step(self) -> dict[str, float]:
        """Train one step on the next batches.

        Returns:
          Its figures: `loss`, `loss/TASK`, `gradient_norm` and so on. Where `bad_step` is 1, the loss or the gradient was not
          finite (or a spike), and the parameters are what they were.

        Raises:
          UserError: all of the experiment's `steps` are done.
        """
        total = self.experiment.steps
        if self.step_number >= total:
            raise UserError(
                f"steps={total}: as many are done; for more set it up with a larger one, which its schedule depends on"
            )
        batches = self.batch()
        kind = self.setup.kind_of(batches)
        with use_mesh(self.setup.mesh):
            state, figures = self._step_of(kind)(self._whole_key() if _without_jit() else self.state, batches)
            self.state = self._placed(state)
            self.step_number, self._next = self.step_number + 1, {}
            return {name: float(value) for name, value in jax.device_get(figures).items()}

    def forward(self, batch: Batch | None = None, data: str = "", train: bool = False) -> BoundForward:
        """The model with the present parameters, bound to a batch, as objectives and evaluators are handed it.

        Args:
          batch: key -> [N, ...]; None for that of the next step.
          data: which stream's batch of the next step; "" for the first.
          train: with the parameters that are trained, and with dropout and augmentation as the next step draws them (where
            `optimizer.accumulate` is 1). Else without, and with their moving average where the optimizer keeps one.

        Raises:
          UserError: the next step takes no such stream.
        """
        if batch is None:
            batches = self.batch()
            data = data or next(iter(batches))
            if data not in batches:
                raise UserError(f"data={data!r}: the next step takes {', '.join(batches)}{nearest(data, batches)}")
            batch = batches[data]
        with use_mesh(self.setup.mesh):
            if not train:
                return BoundForward(self.experiment.model, self.setup.evaluated(self.state), batch)
            key = jax.random.fold_in(jax.random.wrap_key_data(self._whole_key().key), self.step_number)
            params = with_variables(self.state.params, self.state.variables.get("model", {}))
            return BoundForward(self.experiment.model, params, batch, fold_name(key, f"data/{data}"))

    def close(self) -> None:
        """End the threads and processes that read data."""
        self._held.close()
        if self._feed is not None:
            self._feed.close()
            self._feed, self._next = None, {}

    def __enter__(self) -> Session:
        self._held.enter_context(use_mesh(self.setup.mesh))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _step_of(self, kind: Kind) -> Callable[..., Any]:
        if _without_jit():
            return self.setup.jit_step(kind[0])
        if kind not in self._compiled:
            self._compiled[kind] = self.setup.lower_step(*kind).compile()
        return self._compiled[kind]

    def _whole_key(self) -> State:
        """The state, with its random key on the host: a key that is split over devices cannot be wrapped but by `jit`."""
        return dataclasses.replace(self.state, key=jnp.asarray(jax.device_get(self.state.key)))

    def _placed(self, state: State) -> State:
        """Where a compiled step takes it from: what is computed without `jit` lies where its operands did."""
        return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, self.setup.abstract))


def _without_jit() -> bool:
    return bool(jax.config.jax_disable_jit)  # type: ignore[attr-defined]

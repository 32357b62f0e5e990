"""An experiment: everything a run needs, one frozen dataclass. A config file's `experiment()` builds one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from mmjax.adapt import METHODS, trained_patterns
from mmjax.core.config import setting
from mmjax.core.errors import UserError, nearest, within
from mmjax.data import TOKENIZERS, Data
from mmjax.evaluate import EVALUATORS
from mmjax.evaluate.evaluation import data_of
from mmjax.models import Multimodal
from mmjax.objectives import OBJECTIVES
from mmjax.objectives.given import check_given
from mmjax.parallel.mesh import Mesh
from mmjax.train.hooks import HOOKS
from mmjax.train.optimizer import AdamW, Optimizer
from mmjax.train.optimizers import OPTIMIZERS
from mmjax.train.teacher import Teacher
from mmjax.train.weighting import WEIGHTINGS, Fixed, GradNorm

TEST = "test"  # the data that `test_data` names where nobody has said anything
FIGURES = ("loss", "train", "weight")  # first parts of the names of training figures: an evaluator is called otherwise


@dataclasses.dataclass(frozen=True)
class Task:
    """One objective on one stream of data, with a weight.

    Attributes:
      objective: what is trained.
      weight: factor of its loss.
      data: the name of its stream.
    """

    objective: Any = setting(OBJECTIVES)
    weight: float = setting(everyday=True, above=-math.inf, below=math.inf, default=1.0)
    data: str = "train"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When to save and what to keep.

    Attributes:
      every: steps between checkpoints. The last step is always saved.
      keep: how many of the latest to keep.
      best: a metric, for instance `prompted/accuracy`, whose best checkpoint is kept too. It is what a finished run is
        evaluated and exported from. "" for the latest.
      mode: `max` or `min` of that metric.
      patience: stop after this many evaluations without a better value; 0 for never.
      local: folder on a fast disk of each host's own, for checkpoints between those in the run folder; "" for none. They are of
        use to a restart on the same processes and mesh; any other goes on from the run folder.
      local_every: steps between those, where there is a `local`.
    """

    every: int = setting(everyday=True, default=500)
    keep: int = 2
    best: str = setting(everyday=True, default="")
    mode: str = "max"
    patience: int = setting(least=0, default=0)
    local: str = setting(path=True, default="")
    local_every: int = 50

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise UserError(f"checkpoint.every={self.every}, checkpoint.keep={self.keep}: use 1 or more of each")
        if self.mode not in ("max", "min"):
            raise UserError(f"checkpoint.mode={self.mode!r}: use max or min")
        if self.patience and not self.best:
            raise UserError("checkpoint.patience needs checkpoint.best, the metric to wait for")
        if self.local_every < 1:
            raise UserError(f"checkpoint.local_every={self.local_every}: use 1 or more steps")


@dataclasses.dataclass(frozen=True)
class Log:
    """What is written while training.

    Attributes:
      every: steps between lines of metrics.jsonl. Each line is one step's exact figures, not an average.
      tensorboard: write event files beside it.
      wandb: project name on Weights & Biases (extra `wandb`); "" for none.
      progress: a progress bar on the terminal.
      watchdog: seconds after which a step that hangs, or waits for its data, is named and ends the run; 0 for never.
    """

    every: int = setting(everyday=True, default=10)
    tensorboard: bool = True
    wandb: str = setting(everyday=True, default="")
    progress: bool = True
    watchdog: float = setting(least=0, default=1800.0)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"log.every={self.every}: use 1 or more steps")
        if self.watchdog < 0:
            raise UserError(f"log.watchdog={self.watchdog}: use seconds, or 0 for never")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run needs.

    Attributes:
      model: its encoders, fusions, decoders and heads, by name.
      data: the streams that tasks train on and evaluators read, by name.
      tasks: what is trained, by name.
      tokenizer: trained on the corpus of the tasks' data, or opened from a folder. None for no text, or for the tokenizer of
        the run in `init_from`.
      tokenizers: further ones, by the names that columns of the data give (`Text(tokenizer=NAME)`), each trained on the texts
        of those columns.
      weighting: how task losses become one update.
      optimizer: what makes updates of gradients.
      mesh: how many devices lie along each axis; -1 takes all that are left.
      steps: how many updates in all; a larger number extends a finished run.
      seed: of parameters, batches and everything random in training; data splits do not depend on it.
      alternate: names of data, one a step in turn and over again; () takes a batch of each in every step.
      evaluate: evaluators by name, each on the data it names.
      test_data: data that the finished run and `mmjax evaluate` take instead; "test" need not exist, "" is none.
      evaluate_every: steps between evaluations; 0 for the end alone.
      checkpoint: when to save and what to keep.
      log: what is written while training.
      hooks: what else happens beside the steps, by name; see `train.hooks`.
      init_from: folder of a run whose parameters to start from.
      init_fresh: patterns of parameters that are initialised anew all the same.
      init_layers: patterns of that run's stacked parameters with the layers to take of each, for a model that has fewer:
        "encoders_text/*[::2]" is every second, "encoders_text/*[:6]" the first six.
      init_parts: part of the model -> folder of a run whose part of that name it begins with, whatever `init_from` is:
        {"encoders.text": "runs/minilm", "encoders.audio": "runs/whisper"}. Where `tokenizer` is None, it is that of the run
        whose text tower is taken.
      teachers: trained models that objectives ask, by name: a run or a HuggingFace folder each. Their parameters stay as they
        are, and evaluation needs them no more.
      adapt: pattern of kernels -> how they are adapted (`mmjax.adapt`): what that adds is trained, and the rest stays as it is
        but for what `optimizer.train` names. Several at once, one a tower, are several patterns.
      frozen_dtype: what the kernels and tables that are frozen are kept in: `float32`, `bfloat16`, or `int8` with a scale for
        each output of a kernel (tables then in bfloat16). A quarter of the memory, and rounded once: see `train.narrow`.
    """

    model: Any = setting({"multimodal": Multimodal})
    data: Mapping[str, Any] = setting({"data": Data})
    tasks: Mapping[str, Task] = setting({"task": Task})
    tokenizer: Any = setting(TOKENIZERS, default=None)
    tokenizers: Mapping[str, Any] = setting(TOKENIZERS, default_factory=dict)
    weighting: Any = setting(WEIGHTINGS, everyday=True, default_factory=Fixed)
    optimizer: Any = setting(OPTIMIZERS, everyday=True, default_factory=AdamW)
    mesh: Mesh = Mesh()
    steps: int = setting(everyday=True, default=1000)
    seed: int = setting(everyday=True, least=0, below=2**32, default=0)
    alternate: tuple[str, ...] = ()
    evaluate: Mapping[str, Any] = setting(EVALUATORS, everyday=True, default_factory=dict)
    evaluate_every: int = setting(everyday=True, least=0, default=0)
    test_data: str = TEST
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    hooks: Mapping[str, Any] = setting(HOOKS, default_factory=dict)
    init_from: str = setting(everyday=True, path=True, default="")
    init_fresh: tuple[str, ...] = ()
    init_layers: tuple[str, ...] = ()
    init_parts: Mapping[str, str] = setting(path=True, default_factory=dict)
    teachers: Mapping[str, Any] = setting({"teacher": Teacher}, default_factory=dict)
    adapt: Mapping[str, Any] = setting(METHODS, default_factory=dict)
    frozen_dtype: str = "float32"

    @functools.cached_property
    def updating(self) -> Optimizer:
        """The optimizer, which knows what `adapt` trains.

        Raises:
          UserError: a pattern of `adapt` that matches nothing, or a method that a kernel cannot take.
        """
        own: Optimizer = self.optimizer
        if not self.adapt:
            return own
        return dataclasses.replace(own, train=(*trained_patterns(self.model, self.adapt, own.train), *own.train))

    def asked_data(self) -> Data | None:
        """The data whose transforms new inputs go through: what a finished run is evaluated on; None where there is none."""
        return self.data.get(self.test_data) or self.data.get("validation") or next(iter(self.data.values()), None)

    def task_data(self) -> tuple[str, ...]:
        """Names of the data that tasks train on, each once."""
        return tuple(dict.fromkeys(task.data for task in self.tasks.values()))

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The cycle of steps: each entry names the data that step takes."""
        return tuple((name,) for name in self.alternate) or (self.task_data(),)

    def check(self) -> None:
        """What can be seen without touching data or devices.

        Raises:
          UserError: names that do not exist, objectives that cannot be accumulated, batches that do not divide.
        """
        if not self.tasks:
            raise UserError("tasks is empty: a run needs at least one")
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: use 1 or more")
        self._check_teachers()
        for name, task in self.tasks.items():
            with within(f"tasks.{name}"):
                check_given(task.objective)
            self._known_data(f"tasks.{name}.data", task.data)
            self._check_accumulation(name, task)
        for name, evaluator in self.evaluate.items():
            if name in FIGURES:
                raise UserError(
                    f"evaluate.{name}: figures of training are called {name}/..., so call the evaluator something else; "
                    f"not one of {', '.join(FIGURES)}"
                )
            for data in data_of(evaluator):
                self._known_data(f"evaluate.{name}.data", data)
        for name, hook in self.hooks.items():
            if name in (*FIGURES, *self.evaluate):
                raise UserError(
                    f"hooks.{name}: its figures would be called {name}/... like others; call it neither like an evaluator nor "
                    f"{', '.join(FIGURES)}"
                )
            if not callable(getattr(hook, "start", None)):
                known = ", ".join(HOOKS)
                raise UserError(
                    f"hooks.{name}: {type(hook).__name__} has no start(name, training); use one of {known}, or your own"
                )
        if self.test_data not in ("", TEST):  # a run need not have any
            self._known_data("test_data", self.test_data)
        for name in self.tokenizers:
            if not name.isidentifier():
                raise UserError(f"tokenizers.{name}: call it by letters, digits and _ alone; it becomes the name of a folder")
        self._check_tokenizers()
        self._check_parts()
        if self.init_layers and not self.init_from:
            raise UserError(f"init_layers={self.init_layers} are of the run in init_from, which is ''")
        for name in self.alternate:
            self._known_data("alternate", name)
        missing = [name for name in self.task_data() if self.alternate and name not in self.alternate]
        if missing:
            raise UserError(f"alternate leaves out {', '.join(missing)}, which a task trains on")
        if self.alternate and isinstance(self.weighting, GradNorm) and len(self.tasks) > 1:
            raise UserError(
                "weighting=gradnorm balances all tasks in each step, and alternate gives it only some: drop one of the two"
            )
        if self.checkpoint.best and self.checkpoint.best.split("/")[0] not in self.evaluate:
            evaluators = ", ".join(self.evaluate) or "none"
            raise UserError(f"checkpoint.best={self.checkpoint.best!r}: its evaluator must be one of {evaluators}")
        if self.checkpoint.best and not self.evaluate_every:
            raise UserError("checkpoint.best needs evaluate_every, the steps between evaluations")

    def _check_parts(self) -> None:
        parts = [
            f"{room}.{name}" for room in ("encoders", "fusions", "decoders", "heads") for name in getattr(self.model, room)
        ]
        for part in self.init_parts:
            if part not in parts:
                known = ", ".join(parts)
                raise UserError(f"init_parts.{part}: the model has no such part{nearest(part, parts)}; it has {known}")
        if self.init_parts and (self.adapt or self.frozen_dtype != "float32"):
            field = "adapt" if self.adapt else f"frozen_dtype={self.frozen_dtype!r}"
            raise UserError(f"init_parts and {field}: begin a run of steps=0 with the parts, and go on from that by init_from")

    def check_batches(self, ways: int) -> None:
        """Batches against the mesh: `ways` is how many parts examples are split into."""
        for name, data in self.data.items():
            size, micro = data.batch_size, self.optimizer.accumulate if name in self.task_data() else 1
            if size % (ways * micro):
                parts = f"{ways} devices" + (f" x accumulate={micro}" * (micro > 1))
                raise UserError(f"data.{name}.batch_size={size} does not divide over {parts} (the mesh's data x fsdp)")

    def _check_tokenizers(self) -> None:
        asked = {
            f"data.{name}.columns.{key}": spec.tokenizer
            for name, data in self.data.items()
            for key, spec in data.columns.items()
            if getattr(spec, "tokenizer", "")
        }
        for path, name in asked.items():
            if name not in self.tokenizers and not self.init_from:
                known = ", ".join(self.tokenizers) or "none"
                raise UserError(f"{path}.tokenizer={name!r}: tokenizers has {known}{nearest(name, self.tokenizers)}")
        for name in self.tokenizers:
            if name not in asked.values():
                raise UserError(f"tokenizers.{name}: no column of the data names it; say Text({name!r}) where it is to be used")
        tokenizers: dict[str, tuple[str, str]] = {}
        for name, data in self.data.items():
            for key, spec in data.columns.items():
                if hasattr(spec, "tokenizer"):
                    first = tokenizers.setdefault(key, (name, spec.tokenizer))
                    if first[1] != spec.tokenizer:
                        raise UserError(
                            f"data.{name}.columns.{key}.tokenizer={spec.tokenizer!r}, and data.{first[0]} has {first[1]!r}: "
                            "one encoder reads both, so say the same"
                        )

    def _check_teachers(self) -> None:
        asked = {name: getattr(task.objective, "teacher", "") for name, task in self.tasks.items()}
        for task, teacher in asked.items():
            if teacher and teacher not in self.teachers:
                known = ", ".join(self.teachers) or "none"
                raise UserError(f"tasks.{task}.objective.teacher={teacher!r}: teachers has {known}")
        for name in self.teachers:
            if not name.isidentifier():
                raise UserError(f"teachers.{name}: call it by letters, digits and _ alone; it becomes the name of a folder")

    def _known_data(self, field: str, name: str) -> None:
        if name not in self.data:
            raise UserError(f"{field}={name!r}: data has {', '.join(self.data)}{nearest(name, self.data)}")

    def _check_accumulation(self, name: str, task: Task) -> None:
        objective, parts = task.objective, self.optimizer.accumulate
        if parts > 1 and getattr(objective, "in_batch", False) and not getattr(objective, "embeds_only", False):
            raise UserError(
                f"optimizer.accumulate={parts} and tasks.{name}: {type(objective).__name__} takes its negatives from the batch "
                "and reads more than embeddings, so micro-batches would change the loss; use accumulate=1"
            )

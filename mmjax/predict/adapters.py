"""`mmjax.Adapters`: several adapters at work over one base, which is held once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.adapt.several import mean_of, stacked_of
from mmjax.convert.api import run_at
from mmjax.convert.bottleneck import from_adapters
from mmjax.convert.bottleneck.layout import is_bottleneck
from mmjax.convert.peft import from_peft
from mmjax.convert.peft.layout import CONFIG
from mmjax.core.errors import UserError, nearest, within
from mmjax.core.trees import leaves_by_path, nested
from mmjax.core.types import Array
from mmjax.models import Multimodal
from mmjax.models.forward import VARIABLES, BoundForward
from mmjax.predict.inputs import as_texts
from mmjax.predict.predictor import Predictor
from mmjax.predict.work import Work, open_work
from mmjax.predict.writing import PLACE
from mmjax.train.classes import names_of
from mmjax.train.narrow import WIDE

ADAPTER = "adapter"  # of a batch, [B] int32: whose row it is


class Adapters:
    """Adapters by name, each a run that was adapted from the base, or a folder of peft's or of the adapters library.

    Usage:
      ask = mmjax.Adapters("runs/vit", {"pets": "runs/pets_lora", "birds": "folder/of/peft"})
      ask.names                                       # ("pets", "birds")
      ask["pets"].classify("one.jpg")                 # a `Predictor`
      ask.mean({"pets": 0.5, "birds": 0.5}).embed_image("one.jpg")
      ask.rows(["pets", "birds"]).classify(["one.jpg", "two.jpg"])  # in one batch, each picture by its own

    Args:
      base: a run or a HuggingFace folder.
      adapters: name -> a run, or a folder of peft's or of the adapters library.
      batch_size: inputs that are computed at once.

    Raises:
      UserError: as `Predictor`; an adapter that was made over another base, by name.
    """

    def __init__(self, base: str | Path, adapters: Mapping[str, str | Path], batch_size: int = 32) -> None:
        if not adapters:
            raise UserError("adapters={}: name at least one")
        self._work = open_work(base)
        self._base = leaves_by_path(self._work.params)
        self._batch_size = batch_size
        self._works: dict[str, Work] = {}
        self._own: dict[str, dict[str, Array]] = {}
        for name, path in adapters.items():
            with within(f"adapters.{name}"):
                self._works[name], self._own[name] = self._opened(path)
        self._asked: dict[str, Predictor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters."""
        return tuple(self._works)

    def __getitem__(self, name: str) -> Predictor:
        """What answers by one of them.

        Raises:
          UserError: there is none of that name.
        """
        self._check([name])
        if name not in self._asked:
            self._asked[name] = Predictor(self._works[name], self._batch_size)
        return self._asked[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self._works)

    def mean(self, weights: Mapping[str, float]) -> Predictor:
        """What answers by the mean of some of them.

        Raises:
          UserError: weights that do not sum to 1; adapters of different models or classes, or that have no mean.
        """
        self._check(weights)
        if not math.isclose(total := sum(weights.values()), 1.0, abs_tol=1e-6):
            raise UserError(f"weights={dict(weights)} sum to {total:g}: use weights that sum to 1")
        work, owns = self._alike(weights)
        own = mean_of(self._base, owns, tuple(weights.values()))
        return Predictor(self._with(work, own), self._batch_size)

    def rows(self, names: Sequence[str]) -> Predictor:
        """What answers as many inputs as there are names, each by the adapter of its name, in one batch.

        Raises:
          UserError: adapters of different models or classes, or of leaves that cannot lie in one array.
        """
        self._check(names)
        used = tuple(dict.fromkeys(names))
        work, owns = self._alike(used)
        own = stacked_of(self._base, owns)
        return _ByRow(work, self._batch_size, self._base, own, np.array([used.index(name) for name in names], np.int32))

    def _check(self, names: Any) -> None:
        if isinstance(names, str) or not names:
            raise UserError(f"{names!r}: give names of adapters")
        for name in names:
            if name not in self._works:
                raise UserError(f"there is no adapter {name!r}{nearest(name, self._works)}; there are {', '.join(self._works)}")

    def _alike(self, names: Any) -> tuple[Work, list[dict[str, Array]]]:
        """The work that some adapters share, and what each has of its own. Heads that differ, or whose classes do, are in
        neither: what an encoder answers needs none."""
        first, *others = [self._works[name] for name in names]
        for name, other in zip(list(names)[1:], others, strict=True):
            if _body(other.model) != _body(first.model):
                raise UserError(f"adapters {next(iter(names))!r} and {name!r} are of different models: their parts differ")
        heads = {name: head for work in (first, *others) for name, head in work.model.heads.items()}
        same = {
            name: head
            for name, head in heads.items()
            if all(
                one.model.heads.get(name) == head and one.classes.get(name) == first.classes.get(name)
                for one in (first, *others)
            )
        }
        left = {f"heads_{name}" for name in heads.keys() - same.keys()}
        path = f"adapters {', '.join(names)}" + f", whose heads {', '.join(sorted(heads.keys() - same.keys()))} differ" * bool(
            left
        )
        work = dataclasses.replace(
            first,
            path=path,
            model=first.model.copy(heads=same),
            params={room: tree for room, tree in first.params.items() if room not in left},
            classes={name: own for name, own in first.classes.items() if name in same},
        )
        return work, [{p: x for p, x in self._own[name].items() if p.split("/")[0] not in left} for name in names]

    def _opened(self, path: str | Path) -> tuple[Work, dict[str, Array]]:
        """What an adapter needs to answer, with the base's own arrays; and the leaves that are its own."""
        if (Path(path) / CONFIG).is_file():
            work, kept = self._of_folder(Path(path)), WIDE
            may = set(leaves_by_path(work.params))  # what differs there the folder itself has brought
        elif (run := run_at(path)) is not None:
            work, e = open_work(path), run.experiment()
            trained = e.updating.trained({name: tree for name, tree in work.params.items() if name != VARIABLES})
            may, kept = {*(trained.whole or ()), *trained.layers}, e.frozen_dtype
        else:
            raise UserError(f"{path!s} is neither a run nor a folder of an adapter, which has an {CONFIG}")
        own = {}
        for leaf, x in leaves_by_path(work.params).items():
            there = self._base.get(leaf)
            if there is not None and there.dtype == x.dtype and there.shape == x.shape and bool((there == x).all()):
                continue
            if there is not None and leaf not in may and not leaf.startswith(f"{VARIABLES}/"):
                narrow = f", kept in {kept}" if kept != WIDE else ""
                raise UserError(f"{path!s} was made over another base: {leaf} is not the same there{narrow}")
            own[leaf] = x
        return self._with(work, own), own

    def _of_folder(self, path: Path) -> Work:
        """The base at work with the adapter of a folder."""
        run = run_at(self._work.path)
        if run is not None and (dtype := run.experiment().frozen_dtype) != WIDE:
            raise UserError(f"{path!s}: the base {run.name} is kept in {dtype}, and an adapter's folder lies over a whole one")
        variables = {name: tree for name, tree in self._work.params.items() if name == VARIABLES}
        whole = {name: tree for name, tree in self._work.params.items() if name != VARIABLES}
        over = from_adapters if is_bottleneck(path) else from_peft
        model, params, _, _ = over.over_base(path, self._work.model, whole)
        classes = self._work.classes if model == self._work.model else names_of(model)
        return dataclasses.replace(self._work, path=str(path), model=model, params={**params, **variables}, classes=classes)

    def _with(self, work: Work, own: Mapping[str, Array]) -> Work:
        """The work with the base's arrays, and an adapter's own."""
        kept = {leaf: self._base[leaf] for leaf in leaves_by_path(work.params) if leaf in self._base}
        return dataclasses.replace(work, params=nested({**kept, **own}))


def _body(model: Multimodal) -> Multimodal:
    """The model without its heads, and without what is said of the HuggingFace folder that it came from."""
    return model.copy(heads={}, huggingface={})


class _ByRow(Predictor):
    """See `Adapters.rows`."""

    def __init__(self, work: Work, batch_size: int, base: Any, own: dict[str, Array], of: np.ndarray) -> None:
        super().__init__(work, batch_size)
        kept = {leaf: base[leaf] for leaf in leaves_by_path(work.params) if leaf in base and leaf not in own}
        self._given = {"base": kept, "own": own}
        self._of = of

    def classify(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("classes") or len(args) > 4:
            raise UserError("rows(...).classify: class names are read by one adapter at a time; use a head, or adapters[NAME]")
        return super().classify(*args, **kwargs)

    def extract(self, *args: Any, **kwargs: Any) -> Any:
        raise UserError("rows(...).extract: passages come in windows, and each row has one adapter; use adapters[NAME]")

    def _batch(self, given: Mapping[str, Any], pairs: Any = None) -> dict[str, np.ndarray]:
        batch = super()._batch(given, pairs)
        self._check_count(len(next(iter(batch.values()))))
        return batch

    def _go_on(self, name: str, prompts: Any, beside: Mapping[str, list[Any]], *rest: Any, **more: Any) -> Any:
        self._check_count(next((len(own) for own in (prompts, *beside.values()) if own is not None), 1))
        return super()._go_on(name, prompts, beside, *rest, **more)

    def score(self, prompts: Any, *rest: Any, **more: Any) -> list[dict[str, Any]]:
        self._check_count(len(as_texts(prompts) or []))
        return super().score(prompts, *rest, **more)

    def _check_count(self, count: int) -> None:
        if count != len(self._of):
            raise UserError(f"{count} inputs and {len(self._of)} names of adapters: give one each")

    def _rows(self, key: Any, ask: Callable[..., Any], batch: dict[str, np.ndarray], bound: bool = True) -> Any:
        if not bound and PLACE not in batch:
            raise UserError(
                "rows(...) classifies, embeds and writes; what paints, and long sounds, have one adapter: adapters[NAME]"
            )
        model = self.work.model

        def each(params: Any, rows: Any) -> Any:
            def one(own: Any, row: Any) -> Any:
                whole, alone = nested({**params["base"], **own}), {name: x[None] for name, x in row.items()}
                found = ask(BoundForward(model, whole, alone)) if bound else ask(whole, alone)
                return jax.tree.map(lambda x: x[0], found)

            own = {leaf: jnp.take(x, rows[ADAPTER], axis=0) for leaf, x in params["own"].items()}
            return jax.vmap(one)(own, {name: x for name, x in rows.items() if name != ADAPTER})

        of = self._of if bound else self._of[batch[PLACE]]
        return super()._rows(key, each, {**batch, ADAPTER: of}, bound=False)

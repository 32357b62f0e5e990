"""The state that a run begins with: from the seed, or with the parameters of another run."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.adapt import adapted, base_of, is_adapter, is_dropout, merged, wide
from mmjax.adapt.places import Place
from mmjax.core.errors import UserError, nearest
from mmjax.core.trees import leaves_by_path, map_with_path, match, match_any, nested, split_layers
from mmjax.core.types import Array, Params
from mmjax.models import Multimodal
from mmjax.models.forward import VARIABLES
from mmjax.models.resize import position_tables, resize_positions
from mmjax.nn.narrow import SCALE
from mmjax.parallel.rules import place
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.init_parts import with_parts
from mmjax.train.measured import begun
from mmjax.train.narrow import narrow_places, narrowed
from mmjax.train.remembered import remembered
from mmjax.train.run import Run
from mmjax.train.setup import Setup
from mmjax.train.state import State, adapter_key
from mmjax.train.taking import check_words, load_matching, taken_variables


def first_state(setup: Setup, run: Run | None, say: Callable[[str], None]) -> State:
    """The state before the first step.

    Args:
      run: where it is written down what was taken of `init_from`; None for nowhere.

    Raises:
      UserError: `init_from` is no run, or its parameters do not fit; data that a head cannot remember.
    """
    if not setup.experiment.init_from:
        state, loaded = with_parts(setup, run, setup.init(), say)
        return remembered(setup, state, loaded, say)
    return _taken(setup, run, say)


def _taken(setup: Setup, run: Run | None, say: Callable[[str], None]) -> State:
    """The state with the parameters of `init_from`. What does not fit is refused before any of the model's own is drawn."""
    e = setup.experiment
    source = Run(e.init_from)
    kept = Checkpoints(source.checkpoints, source.experiment().checkpoint, say, read_only=True)
    step = kept.best_step()
    if step is None:
        raise UserError(f"init_from={source.name}: the run has no checkpoint")
    # What is to be kept narrow may not fit on a device before it is.
    narrow = narrow_places(e.model, setup.trained(), e.frozen_dtype)
    params, _ = kept.params(step, None if narrow else setup.mesh)
    variables = params.get(VARIABLES, {})
    params = {name: tree for name, tree in params.items() if name != VARIABLES}
    there = source.experiment().model
    params, resized = resize_positions(wide(params), there, e.model)
    resized = [path for path in resized if not match_any(e.init_fresh, path)]
    shapes = setup.abstract.params
    target = leaves_by_path(shapes)
    spare = [path for path in leaves_by_path(params) if is_adapter(path) and path not in target and not is_dropout(path)]
    if spare:
        say(f"init_from {source.name}: what adapted it is merged into its parameters ({len(spare)} arrays)")
        params = merged(there, params)
    params, poolers = with_poolers(params, there, e.model)
    params, layers = some_layers(shapes, params, e.init_layers)
    loaded, new, left = load_matching(shapes, params, e.init_fresh)
    loaded = {path: x for path, x in loaded.items() if not is_dropout(path)}  # which is training's alone, as the config says it
    new = [path for path in new if not path.endswith(f"/{SCALE}")]
    if stuck := [path for path in new if path in narrow]:
        raise UserError(
            f"init_from: {stuck[0]} is new ({len(stuck)} such in all) and nothing trains it, so frozen_dtype="
            f"{e.frozen_dtype!r} has nothing to keep: name it in optimizer.train"
        )
    loaded, units = begun(source.experiment(), e, loaded)
    check_words(setup, source, list(loaded))
    _check_frozen(setup, new)
    state = setup.init()
    _check_scales(loaded, leaves_by_path(state.params))
    say(f"init_from {source.name} at step {step}: {_sorted_out('loaded', list(loaded))}")
    say(f"  {_sorted_out('new', new)}")
    say(f"  {_sorted_out('left over', left)}")
    for line in units:
        say(line)
    for name, other in poolers.items():
        say(f"  heads_{name} begins with heads_{other}, which differs from it in having no classes")
    for path in resized:
        sizes = [position_tables(model)[path].image_size for model in (there, e.model)]
        say(f"  {path} was resized from images of {_size(sizes[0])} to {_size(sizes[1])}")
    for pattern, (numbers, depth) in layers.items():
        say(f"  {pattern}: layers {', '.join(map(str, numbers))} of {depth}")
    if run is not None:
        about: dict[str, Any] = {
            "run": source.name,
            "step": step,
            "loaded": list(loaded),
            "new": new,
            "left_over": left,
            "resized": resized,
        }
        about |= {"merged": bool(spare), "layers": {pattern: numbers for pattern, (numbers, _) in layers.items()}}
        run.write_json("init_from.json", about)
    found = {path: x for own in _kept(loaded, narrow, e.frozen_dtype) for path, x in own.items()}
    taken = map_with_path(lambda path, x: _placed(setup.mesh, path, found[path], x) if path in found else x, state.params)
    taken = _begun(setup, taken, [path for path in new if is_adapter(path)])
    own = setup.trained().of(taken) if state.ema else {}
    state = dataclasses.replace(state, params=taken, ema=jax.tree.map(jax.numpy.copy, own))
    state = dataclasses.replace(state, variables=taken_variables(setup, state, variables))
    state, more = with_parts(setup, run, state, say)
    return remembered(setup, state, [*loaded, *more], say)


def _begun(setup: Setup, params: Params, new: Sequence[str]) -> Params:
    """The parameters, of which those of adapters that are new begin anew, with what was loaded beside them."""
    if not new:
        return params
    e, layout = setup.experiment, {path: x.sharding for path, x in leaves_by_path(params).items() if path in new}

    def begin(base: Params) -> dict[str, Any]:
        whole = leaves_by_path(adapted(e.model, base, e.adapt, adapter_key(jnp.uint32(e.seed))))
        return {path: whole[path] for path in layout}

    begun = jax.jit(begin, out_shardings=layout)(base_of(params))
    return map_with_path(lambda path, x: begun.get(path, x), params)


def _kept(loaded: Mapping[str, Any], narrow: Mapping[str, Place], dtype: str) -> Iterator[dict[str, Any]]:
    """What was loaded as it is kept, one array after another: with int8 kernels come their scales."""
    for path, x in loaded.items():
        own = {path: narrow[path]} if path in narrow else {}
        yield leaves_by_path(narrowed(nested({path: x}), own, dtype))


def _placed(mesh: jax.sharding.Mesh, path: str, x: Any, own: Array) -> Array:
    """An array that was loaded in the place of the model's own."""
    if not isinstance(x, np.ndarray):
        return jax.device_put(x, own.sharding)
    own.delete()  # there need not be room for both
    return place(mesh, path, x)


def _check_scales(loaded: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises UserError where an adapter would go on with another scale than it was trained with."""
    for path, there in loaded.items():
        if path.endswith("/lora_scale") and not np.allclose(there, own[path]):
            raise UserError(
                f"init_from: {path} is {np.asarray(there).tolist()} there and {np.asarray(own[path]).tolist()} by adapt: give "
                "LoRA the r, alpha and rslora that it was trained with, or merge it first (mmjax convert to-hf)"
            )
        # Where nothing was adapted W_down is zero, as W_up is: such a layer or width would never learn.
        if path.endswith("/bottleneck_down") and (np.any(there, axis=-2) != np.any(own[path], axis=-2)).any():
            raise UserError(
                f"init_from: {path} has other layers or widths there than adapt gives here: give Bottleneck those that it was "
                f"trained with, or begin it anew with --init_fresh '{path.rpartition('/')[0]}/bottleneck_*'"
            )


def _check_frozen(setup: Setup, new: Sequence[str]) -> None:
    """Raises UserError for parameters of an adapted model that were not in the other run and that nothing will train."""
    if not setup.experiment.adapt:
        return
    rest = leaves_by_path(setup.trained().rest(setup.abstract.params))
    stuck = [path for path in new if path in rest and not is_adapter(path)]
    if stuck:
        room = stuck[0].split("/")[0]
        raise UserError(
            f"init_from: {stuck[0]} is new ({len(stuck)} such in all), and only what adapts the model is trained: name it in "
            f"optimizer.train, for instance --optimizer.train '{room}/*'"
        )


def with_poolers(source: Params, there: Multimodal, model: Multimodal) -> tuple[Params, dict[str, str]]:
    """`source` with a pooler (a head without classes) under the name of the model's head that pools alike and has classes:
    BERT's own pooler for one that classifies over it, as `transformers` has it.

    Returns:
      (parameters, the model's head -> the pooler).
    """
    bare = {name: head for name, head in there.heads.items() if getattr(head, "classes", None) == 0 and name not in model.heads}
    found: dict[str, str] = {}
    for name, head in model.heads.items():
        if getattr(head, "classes", 0) and f"heads_{name}" not in source:
            alike = [other for other, spec in bare.items() if spec.copy(classes=head.classes) == head]
            found |= {name: alike[0]} if len(alike) == 1 else {}
    moved = {f"heads_{name}": source[f"heads_{other}"] for name, other in found.items()}
    return {
        name: tree for name, tree in {**source, **moved}.items() if name.removeprefix("heads_") not in found.values()
    }, found


def some_layers(target: Params, source: Params, patterns: Sequence[str]) -> tuple[Params, dict[str, tuple[list[int], int]]]:
    """`source` with some layers of what the patterns match, for a model that has fewer (Sanh 2019, section 3).

    Returns:
      (parameters, pattern -> (the numbers of the layers, how many there were)).

    Raises:
      UserError: a pattern without layers, or that matches nothing stacked, or what another has taken layers of already; another
        number of layers than the model has.
    """
    want, leaves = leaves_by_path(target), leaves_by_path(source)
    taken: dict[str, str] = {}
    told: dict[str, tuple[list[int], int]] = {}
    for pattern in patterns:
        plain, some = split_layers(pattern)
        if some is None:
            raise UserError(f"init_layers={pattern!r} says no layers: write them behind it, '{pattern}[::2]' for every second")
        found = [path for path in leaves if match(plain, path) and "/layers/" in path]
        if not found:
            stacks = [path for path in leaves if "/layers/" in path]
            raise UserError(f"init_layers={pattern!r} matches no parameter of a stack of layers there{nearest(plain, stacks)}")
        for path in found:
            numbers = list(range(leaves[path].shape[0]))[some]
            if path in taken:
                raise UserError(f"init_layers={pattern!r} and {taken[path]!r} both take layers of {path}")
            if path in want and want[path].shape[0] != len(numbers):
                raise UserError(
                    f"init_layers={pattern!r} takes {len(numbers)} of {leaves[path].shape[0]} layers of {path}, and the model "
                    f"here has {want[path].shape[0]}"
                )
            taken[path], told[pattern] = pattern, (numbers, int(leaves[path].shape[0]))
    picked = {path: leaf[split_layers(taken[path])[1]] if path in taken else leaf for path, leaf in leaves.items()}
    return nested(picked), told


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _sorted_out(word: str, paths: list[str]) -> str:
    """ "12 loaded (encoders_image 12)": how many arrays of each part."""
    parts = collections.Counter(path.split("/")[0] for path in paths)
    return f"{len(paths)} {word}" + (f" ({', '.join(f'{part} {n}' for part, n in parts.items())})" if paths else "")

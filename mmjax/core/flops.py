"""Floating-point operations of a function, counted in its jaxpr: a scan counts once for each of its steps, what runs on each
device of a `shard_map` once for each of them, a Pallas kernel as it states itself or else once for each place in its grid,
cuDNN's attention as the products it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

# Matrix products of [T, S, K] in cuDNN's attention; backward, the weights are made again.
CUDNN_PRODUCTS = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


def count_flops(fn: Callable[..., Any], *args: Any) -> int:
    """FLOPs of the matrix products and convolutions of `fn(*args)`; a multiply and an add are two. Arguments may be shapes."""
    return flops_of(jax.make_jaxpr(fn)(*args).jaxpr)


def flops_of(jaxpr: Any) -> int:
    """The same of a program that is traced already."""
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def step_flops_of(jaxpr: Any, trained: Sequence[bool]) -> int:
    """FLOPs of a program's matrix products and of those that differentiate it by some of its inputs.

    A product of two arrays that both depend on them costs three times itself: forwards, and for the derivative of each. Of one
    that does, twice; of none, once.

    Args:
      trained: for each input whether it is one of them.
    """
    return _walk(jaxpr, list(trained))[0]


def _walk(jaxpr: Any, trained: list[bool]) -> tuple[int, list[bool]]:
    """FLOPs, and for each result whether it depends on what is trained."""
    known = {var for var, own in zip(jaxpr.invars, trained, strict=True) if own}
    total = 0
    for equation in jaxpr.eqns:
        own = [isinstance(var, core.Var) and var in known for var in equation.invars]
        inner = [jaxpr for value in equation.params.values() for jaxpr in _inner(value)]
        given = [any(own)] * len(equation.outvars)
        if not inner or equation.primitive.name == "pallas_call":
            both = sum(own[:2]) if equation.primitive.name in ("dot_general", "conv_general_dilated") else 2 * any(own)
            total += _equation_flops(equation) * (1 + both)
        else:
            flops, given = _walk_inner(equation, inner, own, given)
            total += flops
        known.update(var for var, depends in zip(equation.outvars, given, strict=True) if depends)
    return total, [isinstance(var, core.Var) and var in known for var in jaxpr.outvars]


def _walk_inner(equation: Any, inner: list[Any], own: list[bool], given: list[bool]) -> tuple[int, list[bool]]:
    """The same of an equation that runs other programs; of one whose inputs are not its own, all inputs count alike."""
    times, carried = _times(equation.primitive.name, equation.params), equation.params.get("num_carry", 0)
    first = equation.params.get("num_consts", 0)
    while True:
        total, results = 0, list(given)
        for jaxpr in inner:
            flags = own[-len(jaxpr.invars) :] if len(jaxpr.invars) <= len(own) else [any(own)] * len(jaxpr.invars)
            flops, found = _walk(jaxpr, flags)
            total += times * flops
            results = found if len(found) == len(given) else results
        again = [own[first + i] or results[i] for i in range(carried)] if equation.primitive.name == "scan" else []
        if again == own[first : first + carried] or not again:
            return total, results
        own = [*own[:first], *again, *own[first + carried :]]


def _equation_flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[dim] for dim in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_features
    if name in CUDNN_PRODUCTS:
        (batch, tokens, heads, width), attended = equation.invars[0].aval.shape, equation.invars[1].aval.shape[1]
        return 2 * CUDNN_PRODUCTS[name] * batch * heads * tokens * attended * width
    if name == "pallas_call" and params["cost_estimate"] is not None:
        return params["cost_estimate"].flops
    return _times(name, params) * sum(flops_of(inner) for value in params.values() for inner in _inner(value))


def _times(name: str, params: Any) -> int:
    """How often an equation's inner jaxpr runs, on all devices together."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return math.prod(params["grid_mapping"].grid) if name == "pallas_call" else 1


def _inner(value: Any) -> list[Any]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, (tuple, list)):
        return [jaxpr for item in value for jaxpr in _inner(item)]
    return []

"""What is computed once of equal specs."""

import dataclasses

import numpy as np
import pytest

from mmjax.core.remember import once_each, sameness
from mmjax.models import Multimodal, param_shapes
from mmjax.models.encoders import ViT


@dataclasses.dataclass(frozen=True)
class One:
    size: object = 1
    parts: object = ()


@dataclasses.dataclass(frozen=True)
class Other(One):
    """Says the same as One, and is another thing."""


@pytest.fixture
def asked():
    """A function of a spec, and the specs that it was called with."""
    calls = []

    def compute(spec):
        calls.append(spec)
        return len(calls)

    return once_each(compute), calls


def test_equal_specs_are_computed_once(asked):
    compute, calls = asked
    assert [compute(One(2, {"a": [One()]})) for _ in range(3)] == [1, 1, 1] and len(calls) == 1


@pytest.mark.parametrize("other", [One(True), One(1.0), Other(), One(parts=[]), One(parts=("a",)), One(parts={"a": 1})])
def test_what_says_something_else_is_another(other, asked):
    compute, calls = asked
    assert compute(One()) != compute(other) and len(calls) == 2


def test_what_cannot_be_compared_is_computed_each_time_and_an_error_is_raised_each_time(asked):
    compute, _ = asked
    assert [compute(One(np.zeros(2))) for _ in range(2)] == [1, 2]
    refused = once_each(lambda spec: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            refused(One())


def test_the_order_of_a_mapping_is_part_of_what_it_says():
    assert sameness({"a": 1, "b": 2}) != sameness({"b": 2, "a": 1})


def test_a_model_is_traced_once_and_what_is_found_is_the_callers_own(monkeypatch):
    def made(depth):
        return Multimodal(encoders={"image": ViT(image_size=(8, 8), patch=(4, 4), width=8, heads=2, mlp_width=8, depth=depth)})

    first = param_shapes(made(1))
    kept = dict(first["encoders_image"])
    first["encoders_image"].clear()
    monkeypatch.setattr(Multimodal, "init", None)
    assert param_shapes(made(1))["encoders_image"] == kept
    with pytest.raises(TypeError):
        param_shapes(made(2))

import pytest

from mmjax.plan.compile import Measured, average
from mmjax.plan.roofline import predict
from mmjax.plan.topology import parse_topology

V5E = parse_topology("v5e:2x2")
SIZES = {"params": 1, "optimizer": 2, "ema": 0, "batch": 1, "parameters": 1}


def measured(**changes):
    base = {
        "mesh": {"data": 4},
        "examples": 40,
        "sizes": SIZES,
        "model_flops": 0.5 * 4 * 197e12,
        "hardware_flops": 4 * 197e12,
        "traffic": {"read": 0.5 * 819e9, "written": 0.25 * 819e9},
        "collectives": {"all-reduce data": 0.2 * 100e9, "all-gather data": 0.1 * 100e9},
    }
    return Measured(**{**base, **changes})


def test_a_step_that_computes_longest_is_bound_by_compute():
    p = predict(measured(), V5E, steps=7200)
    assert p.bound == "compute"
    assert p.seconds == pytest.approx({"compute": 1.0, "hbm": 0.75, "ici data": 0.3})
    assert p.step_seconds == pytest.approx(1.0)
    assert p.examples_per_second == pytest.approx(10.0)
    assert p.mfu == pytest.approx(0.5)
    assert (p.hours, p.chip_hours) == pytest.approx((2.0, 8.0))


def test_more_traffic_makes_it_bound_by_memory():
    p = predict(measured(traffic={"read": 819e9, "written": 819e9}), V5E, steps=1)
    assert (p.bound, p.step_seconds, p.mfu) == ("hbm", pytest.approx(2.0), pytest.approx(0.25))


def test_what_crosses_slices_takes_the_slow_network():
    slices = parse_topology("v5e:2x2", 2)
    p = predict(measured(collectives={"all-reduce slice": 3.125e9 * 4, "all-reduce slice+data": 3.125e9}), slices, steps=1)
    assert p.seconds["dcn slice"] == pytest.approx(4.0)
    assert p.seconds["dcn slice+data"] == pytest.approx(1.0)
    assert p.bound == "dcn slice"


def test_steps_that_take_turns_are_averaged_and_the_larger_memory_kept():
    one = measured(memory={"temporaries": 5}, collectives={"all-reduce data": 4.0})
    two = measured(memory={"temporaries": 9}, collectives={"all-gather fsdp": 2.0}, examples=20, model_flops=0.0)
    both = average([one, two])
    assert both.hbm == 9
    assert both.examples == 30
    assert both.model_flops == one.model_flops / 2
    assert both.collectives == {"all-reduce data": 2.0, "all-gather fsdp": 1.0}

import json

import pytest

from mmjax.plan.compile import Measured
from mmjax.plan.report import as_json, gib, giga, table
from mmjax.plan.roofline import predict
from mmjax.plan.topology import GIB, parse_topology
from mmjax.plan.worker import exceeded

V5E = parse_topology("v5e:2x2")
MEASURED = Measured(
    mesh={"slice": 1, "data": 2, "fsdp": 1, "sequence": 1, "tensor": 2},
    examples=64,
    sizes={"params": GIB, "optimizer": 2 * GIB, "ema": 0, "gradients": GIB, "batch": 1 << 20, "parameters": 300_000_000},
    model_flops=2e15,
    hardware_flops=3e15,
    memory={"arguments": 3 * GIB, "temporaries": 4 * GIB, "outputs": 0, "program": GIB // 2},
    traffic={"read": 50e9, "written": 31.9e9},
    collectives={"all-reduce data": 2e9, "all-gather tensor": 1e3},
)


def test_every_figure_says_that_it_is_predicted():
    text = table("run", V5E, MEASURED, predict(MEASURED, V5E, 3600), "the data")
    head, _, rows = text.partition("\n\n")
    assert head == "run on v5e:2x2: 4 chips, data 2 x tensor 2; 64 examples a step\nbatch shapes from the data"
    assert all(row.startswith("predicted ") for row in rows.splitlines())
    said = {row.split("  ")[0]: " ".join(row.split()[len(row.split("  ")[0].split()) :]) for row in rows.splitlines()}
    assert said["predicted HBM in use"].startswith(
        "7.50 GiB a chip, 48% of 15.75 GiB (16.00 GiB a chip, less 0.25 GiB reserved)"
    )
    assert said["predicted HBM traffic"].startswith("81.90 GB a chip and step, 50.00 GB read")
    assert said["predicted time of compute"] == "3807.11 ms at peak"
    assert said["predicted step"] == "3807.11 ms at least; bound by compute"
    assert "predicted ema" not in said
    assert "predicted all-gather tensor" not in said  # too small to matter in a table


def test_the_object_has_what_the_table_says_and_more():
    predicted = predict(MEASURED, V5E, 3600)
    found = json.loads(json.dumps(as_json("run", V5E, MEASURED, predicted, "the data")))
    assert found["chips"] == 4
    assert found["batch_per_chip"] == 16
    assert found["measured"]["hbm"] == 7.5 * GIB
    assert found["measured"]["collectives"]["all-gather tensor"] == 1e3
    assert found["predicted"]["step_seconds"] == predicted.step_seconds


def test_sizes_are_readable():
    assert (gib(3 * GIB), gib(1 << 20)) == ("3.00 GiB", "1.00 MiB")
    assert (giga(2.5e9), giga(2.5e6)) == ("2.50 GB", "2.50 MB")


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("RESOURCE_EXHAUSTED: ... for HLO temporaries (512.00G) exceeds available HBM (15.75G).", 512 * GIB),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded", 20.5 * GIB),
        ("RESOURCE_EXHAUSTED: something of vmem", None),
        ("INTERNAL: Used 1G of 2G", None),
    ],
)
def test_what_a_program_that_does_not_fit_would_take_is_read_from_libtpu_s_message(message, size):
    assert exceeded(message) == size

"""HBM traffic of real TPU programs (see programs.py) against what their shapes say."""

from pathlib import Path

import pytest

from mmjax.plan.hlo import parse
from mmjax.plan.traffic import hbm_bytes

TEXTS = Path(__file__).parent / "hlo"
F32, BF16, I32 = 4, 2, 4


def measure(name, **kwargs):
    return hbm_bytes(parse((TEXTS / f"{name}.txt").read_text()), **kwargs)


X = 4096 * 8192 * F32  # add_one's array
SQUARE = 8192 * 8192 * BF16  # matmul's
TALL, WEIGHT = 16384 * 4096 * BF16, 4096 * 4096 * BF16  # matmul_relu's
ROWS, INDICES = 4096 * 768 * F32, 4096 * I32  # the gathers' and scatter's
STATE = 8192 * 4096 * F32
PART = 8 * 4096 * F32
TABLE = 32000 * 768 * F32
SMALL = 256 * 4096 * BF16
BATCH, SHARD, WHOLE = 4096 * 8192 * BF16, 1024 * 8192 * BF16, 8192 * 8192 * BF16  # of fsdp and overlap, a chip


@pytest.mark.parametrize(
    "name, read, written",
    [
        ("add_one", X, X),
        ("padded", 196 * 200 * 512 * F32, 196 * 200 * 512 * F32),  # [512, 196, 196], 512 the fastest, in tiles of 8 x 128
        ("matmul", 2 * SQUARE, SQUARE),
        ("matmul_relu", TALL + WEIGHT, TALL),  # the weight comes on chip by an asynchronous copy
        ("sum", 8192 * 8192 * F32, 0),
        ("softmax", 3 * TALL, TALL),  # maximum, sum and quotient are three passes
        ("scan", SMALL + 12 * WEIGHT, SMALL),  # the carry stays on chip; each layer's weight is read once
        ("saved", 2 * WEIGHT, 12 * WEIGHT),  # each step writes its own part of the saved results
        ("gather", ROWS + INDICES, ROWS),  # the rows, not the table of 320,000
        ("gather_small", TABLE + INDICES, ROWS),  # this table is copied on chip whole
        ("scatter", 2 * ROWS + INDICES, ROWS),  # updates and the rows they are added to
        ("slice", PART, PART),
        ("update", PART, PART),
        ("adam", 4 * STATE, 3 * STATE),
        ("cond", X, X),  # the branch that adds, not the one that repeats eight rows
        ("kernel", 8192 * 1024 * F32, 8192 * 1024 * F32),
        ("ring", 1024 * 1024 * F32, 1024 * F32),  # eight hops, all on chip
        ("slices", 2 * 256 * 1024 * F32, 2 * 256 * 1024 * F32),  # handed over and taken back, then copied
    ],
)
def test_traffic_is_what_the_shapes_say(name, read, written):
    found = measure(name)
    assert (found.read, found.written, found.uncertain) == (read, written, False)
    assert found.total == read + written == sum(row.total for row in found.rows)
    assert sum(found.by_opcode.values()) == sum(found.by_op_name.values()) == found.total


def test_a_step_with_a_split_weight():
    found = measure("fsdp")
    weight = 2 * SHARD  # float32
    read = BATCH + weight + WHOLE + BATCH + WHOLE + weight  # x, w to cast, the gathered w, h, the gradient, w to update
    written = WHOLE + BATCH + WHOLE + weight  # the gathered w, h, the gradient, w
    assert (found.read, found.written) == (read, written)


def test_a_gather_that_runs_beside_a_matmul_counts_once():
    found = measure("overlap")
    read = 2 * SHARD + BATCH + WHOLE + BATCH + WHOLE  # two shards, x, v, tanh(x v), w
    written = 2 * WHOLE + 2 * BATCH  # v and w gathered, tanh(x v), the result
    assert (found.read, found.written) == (read, written)


@pytest.mark.parametrize("axis, ways", [("a", 2), ("b", 8)])
def test_collectives_read_and_write_hbm_once(axis, ways):
    arrays = [1024 * 128 * (i + 1) * F32 for i in range(5)]
    reduced, gathered, scattered, permuted, exchanged = arrays
    found = measure(f"over_{axis}")
    assert found.read == sum(arrays)
    assert found.written == reduced + gathered * ways + scattered // ways + permuted + exchanged


def test_a_kernel_that_states_its_bytes():
    found = measure("kernel", kernels={"double": (5, 7)})
    assert (found.read, found.written) == (5, 7)
    assert measure("kernel", kernels={"triple": (5, 7)}).total == 2 * 8192 * 1024 * F32


def test_a_copy_counts_where_its_data_are_used():
    found = measure("matmul_relu")
    assert found.by_op_name == {"jit(<lambda>)/dot_general": 2 * TALL + WEIGHT}
    assert found.by_opcode == {"fusion:convolution": 2 * TALL, "copy": WEIGHT}
    assert found.under(1) == {"jit(<lambda>)": found.total}


def test_rows_come_largest_first_with_their_executions():
    rows = measure("scan").rows
    assert [row.total for row in rows] == sorted((row.total for row in rows), reverse=True)
    assert (rows[0].opcode, rows[0].count, rows[0].read) == ("fusion:convolution", 12, 12 * WEIGHT)

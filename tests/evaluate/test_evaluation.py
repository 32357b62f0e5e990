import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_evaluation import FakeDataset, FakeForward, FakeTokenizer, make_evaluation, make_params
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.core.errors import UserError
from mmjax.core.random import example_uniform
from mmjax.evaluate import EVALUATORS
from mmjax.evaluate.evaluation import Evaluation

PARAMS = make_params()


def images(size):
    return {"image": np.random.default_rng(1).normal(size=(size, 6)).astype(np.float32)}


@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 13), batch_size=st.integers(1, 6))
def test_rows_are_every_record_once_in_order(size, batch_size):
    columns = images(size)
    evaluation = make_evaluation(columns, batch_size)
    rows = evaluation.rows(
        "x", "validation", PARAMS, lambda forward, batch: {"twice": 2 * batch["image"], "sum": batch["image"].sum(axis=1)}
    )
    np.testing.assert_array_equal(rows["twice"], 2 * columns["image"])
    np.testing.assert_allclose(rows["sum"], columns["image"].sum(axis=1), rtol=1e-5, atol=1e-6)


def test_unreadable_records_do_not_count():
    def evaluation(unreadable):
        datasets = {"validation": FakeDataset({"x": np.arange(6)}, unreadable=unreadable)}
        return Evaluation(FakeForward, datasets, {}, jax.device_put)

    rows = evaluation((0, 4)).rows("x", "validation", PARAMS, lambda forward, batch: batch["x"])
    np.testing.assert_array_equal(rows, [1, 2, 3, 5])
    with pytest.raises(UserError, match="data='validation' has no readable record"):
        evaluation(tuple(range(6))).rows("x", "validation", PARAMS, lambda forward, batch: batch["x"])


def test_a_pass_that_fails_stops_reading():
    closed = []

    class Tracked(FakeDataset):
        def epoch(self, rows=None):
            try:
                yield from super().epoch()
            finally:
                closed.append(None)

    evaluation = Evaluation(FakeForward, {"validation": Tracked(images(9))}, {}, jax.device_put)
    with pytest.raises(UserError, match="has no 'label'"):
        evaluation.rows("x", "validation", PARAMS, lambda forward, batch: batch["image"], needs=("label",))
    assert len(closed) == 1


def test_a_second_evaluation_with_new_parameters_compiles_nothing():
    traces = []

    def bind(params, batch):
        traces.append(None)
        return FakeForward(params, batch)

    evaluation = make_evaluation(images(10), bind=bind)
    results = []
    for scale in (1.0, 2.0):
        params = {name: scale * array for name, array in PARAMS.items()}
        results.append(evaluation.rows("x", "validation", params, lambda forward, batch: forward.encode("image").embeddings))
        evaluation.sums("y", "validation", params, lambda forward, batch, rng: forward.encode("image").embeddings.sum())
        evaluation.texts("z", params, ["one", "two"], lambda forward, batch: forward.embed("text"))
    assert len(traces) == 3
    np.testing.assert_allclose(results[1], 2 * results[0], rtol=1e-6)


def test_sums_are_added_in_float64():
    # In float32 the 1s would be lost beside 2**24.
    columns = {"x": np.array([2.0**24] + [1.0] * 9, np.float32)}
    evaluation = make_evaluation(columns, batch_size=1)
    total = evaluation.sums("x", "validation", PARAMS, lambda forward, batch, rng: {"sum": batch["x"].sum()})
    assert total == {"sum": 2.0**24 + 9}
    assert isinstance(total["sum"], float)


def test_what_is_drawn_for_a_record_is_its_own_at_any_batch_size():
    def draw(forward, batch, rng):
        slots = (batch["number"][:, None] == jnp.arange(7)[None]) & batch["valid"][:, None]
        return jnp.sum(jnp.where(slots, example_uniform(rng, batch["index"])[:, None], 0.0), axis=0)

    def drawn(**settings):
        return make_evaluation({"number": np.arange(7)}, **settings).sums("x", "validation", PARAMS, draw)

    alone = drawn(batch_size=1)
    assert len(set(alone.tolist())) == 7
    for batch_size in (2, 4, 16):
        np.testing.assert_array_equal(drawn(batch_size=batch_size), alone)
    assert (drawn(batch_size=4, seed=1) != alone).all()


@pytest.mark.parametrize("count", [1, 4, 6])
def test_texts_come_back_in_order_whatever_the_chunks(count):
    texts = [f"word{i} and more" for i in range(count)]
    evaluation = make_evaluation(images(5), batch_size=4)
    ids = evaluation.texts("x", PARAMS, texts, lambda forward, batch: batch["text"] * batch["text_mask"].astype(jnp.int32))
    np.testing.assert_array_equal(ids, FakeTokenizer().encode(texts, 8)["ids"])


def test_a_sharded_batch_gives_the_same_rows():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def rows(place):
        evaluation = make_evaluation(images(21), batch_size=8, place=place)
        return evaluation.rows("x", "validation", PARAMS, lambda forward, batch: forward.embed("image"))

    np.testing.assert_allclose(rows(lambda batch: jax.device_put(batch, sharding)), rows(None), rtol=1e-5, atol=1e-6)


def test_mistakes_are_named():
    def nothing(forward, batch):
        return batch["valid"]

    evaluation = make_evaluation(images(3))
    with pytest.raises(UserError, match=r"data='validatoin' names no dataset .* .did you mean 'validation'\?"):
        evaluation.rows("x", "validatoin", PARAMS, nothing)
    with pytest.raises(UserError, match=r"data='validation' has no 'label', .* it has image, index, valid"):
        evaluation.rows("x", "validation", PARAMS, nothing, needs=("image", "label"))
    with pytest.raises(UserError, match="data='validation' is empty"):
        make_evaluation(images(0)).rows("x", "validation", PARAMS, nothing)
    without_text = Evaluation(FakeForward, {"validation": FakeDataset(images(3))}, {}, lambda batch: batch)
    with pytest.raises(UserError, match="tokenizer=None"):
        without_text.texts("x", PARAMS, ["a"], nothing)


def test_the_table_of_evaluators_names_its_files():
    files = {name: {"errors": "regression"}.get(name, name) for name in EVALUATORS}
    assert {name: cls.__module__ for name, cls in EVALUATORS.items()} == {
        name: f"mmjax.evaluate.{file}" for name, file in files.items()
    }


def test_two_functions_are_never_taken_for_one():
    """As a class with a field makes them when it is used twice."""
    traces = []

    def mean_of(factor, extra):
        def scaled(forward, batch):
            traces.append(factor)
            return jnp.ones(batch["image"].shape[0]) * factor + extra.sum()

        return scaled

    evaluation = make_evaluation(images(5))
    for _ in range(2):
        for factor, extra in ((1.0, np.zeros(2)), (10.0, np.zeros(2)), (1.0, np.ones(2))):
            found = evaluation.rows("mine", "validation", PARAMS, mean_of(factor, extra))
            assert found.tolist() == [factor + extra.sum()] * 5
    assert traces == [1.0, 10.0, 1.0]


def test_arrays_are_summed_too():
    def histogram(forward, batch, rng):
        counts = jnp.zeros(3, jnp.int32).at[batch["label"]].add(batch["valid"].astype(jnp.int32))
        return {"histogram": counts, "seen": batch["valid"].sum()}

    total = make_evaluation({"label": np.array([0, 2, 2, 1, 2], np.int32)}).sums("x", "validation", PARAMS, histogram)
    assert total["histogram"].tolist() == [1, 1, 3] and total["seen"] == 5.0 and isinstance(total["seen"], float)


def test_what_prompts_lose_is_told_once(caplog):
    class Cutting(FakeTokenizer):
        def encode(self, texts, max_length):
            return super().encode(texts, 2) | {"truncated": np.array([len(text.split()) > 2 for text in texts])}

        def unknown(self, ids, mask):
            return ((ids == zlib.crc32(b"odd") % 63 + 1) & mask).sum(axis=1)

    evaluation = make_evaluation(images(5), tokenizer=Cutting())
    for _ in range(2):
        evaluation.texts("prompts", PARAMS, ["a e c", "a e d", "odd"], lambda forward, batch: batch["text"])
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "prompts: 2 of 3 prompts are longer than 8 tokens and were cut",
        "prompts: 1 of 3 prompts are the same tokens as another: the model cannot tell them apart",
        "prompts: 1 tokens of the prompts (20.0%) are unknown: train the tokenizer on such texts, or use BPE",
    ]

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_forward import FakeForward, calls, fake_batch, fake_params, fused, mean_tokens, run
from pytorch import torch

from mmjax.core.types import Tokens
from mmjax.objectives.matching import Matching, sample_negatives, take_rows

KEY = jax.random.key(0)
BATCH = fake_batch()


@jax.jit
def gradient(params):
    return jax.grad(lambda params: run(Matching(), BATCH, params).sum)(params)


def hand_fused(text, image):
    """The fake fusion and head on one pair, in numpy."""
    tokens = np.concatenate([text, image])
    fused = np.tanh(tokens + tokens.mean(0))
    return fused.mean(0) @ np.asarray(fake_params()["match"], np.float64)


def test_the_loss_is_cross_entropy_over_three_pairs_an_example():
    loss, pairs, forward = run(Matching(), BATCH), fused(Matching(), BATCH), FakeForward(BATCH, fake_params())
    rows = {name: np.asarray(pairs[name].embeddings, np.float64) for name in ("text", "image")}
    masks = np.asarray(pairs["text"].mask)
    logits = [hand_fused(t[m], i) for t, m, i in zip(rows["text"], masks, rows["image"], strict=True)]
    labels = torch.tensor([1] * 8 + [0] * 16)
    expected = torch.nn.functional.cross_entropy(torch.tensor(np.stack(logits)), labels, reduction="sum")
    np.testing.assert_allclose(loss.sum, expected, rtol=1e-5)
    assert loss.count == 24
    assert loss.metrics["accuracy"][0] == (torch.tensor(np.stack(logits)).argmax(1) == labels).sum().item()
    own = {name: np.asarray(forward.encode(name).embeddings) for name in ("text", "image")}
    for name, parts in {"text": (0, 8), "image": (0, 16)}.items():
        for start in parts:
            np.testing.assert_allclose(rows[name][start : start + 8], own[name], rtol=1e-6)


def test_encoders_run_once_and_the_fusion_once_on_three_times_the_batch():
    ran = calls(Matching(), BATCH)
    assert [name for name, _ in ran] == ["encode text", "encode image", "fuse cross", "head match"]
    assert ran[2][1] == (24, 9, 4)


@pytest.mark.parametrize("objective", [Matching(), Matching(negatives="random")])
def test_negatives_are_never_of_an_equal_group(objective):
    groups = np.array([0, 1, 0, 2, 1, 0, 0, 3])
    batch = BATCH | {"group": jnp.asarray(groups, jnp.int32)}
    for seed in range(20):
        for name, start in {"text": 16, "image": 8}.items():
            rows = np.asarray(fused(objective, batch, seed)[name].embeddings)
            for row, drawn in enumerate(rows[start : start + 8]):
                source = next(i for i in range(8) if np.array_equal(rows[i], drawn))
                assert groups[source] != groups[row]


def test_an_example_without_a_negative_counts_nowhere():
    batch = BATCH | {"group": jnp.full(8, 4, jnp.int32)}
    assert run(Matching(), batch).count == 0
    valid = jnp.arange(8) < 3
    batch |= {"group": jnp.array([4, 4, 5, 0, 1, 2, 3, 6], jnp.int32), "valid": valid}
    assert run(Matching(), batch).count == 9
    assert run(Matching(), batch | {"valid": jnp.arange(8) < 2}).count == 0


def test_hard_negatives_follow_the_softmax_of_the_scores():
    scores = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)), jnp.float32)
    allowed = ~jnp.eye(4, dtype=bool)
    keys = jax.random.split(jax.random.key(2), 4000)
    drawn = jax.vmap(lambda key: sample_negatives(key, jnp.arange(4), scores, allowed))(keys)
    weights = np.where(np.asarray(allowed), np.exp(np.asarray(scores, np.float64)), 0)
    expected = weights / weights.sum(1, keepdims=True)
    found = np.stack([np.bincount(column, minlength=4) for column in np.asarray(drawn).T]) / 4000
    assert np.all(np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / 4000))


def test_random_negatives_are_even_and_need_no_fusion_of_two_towers():
    assert calls(Matching(negatives="random", scores_from="no_such_fusion"), BATCH)
    keys = jax.random.split(KEY, 4000)
    drawn = jax.vmap(lambda k: sample_negatives(k, jnp.arange(4), jnp.zeros((4, 4)), ~jnp.eye(4, dtype=bool)))(keys)
    found = np.bincount(np.asarray(drawn[:, 0]), minlength=4) / 4000
    np.testing.assert_allclose(found, [0, 1 / 3, 1 / 3, 1 / 3], atol=4 * np.sqrt(2 / 9 / 4000))


def test_a_draw_belongs_to_its_example_not_to_its_place():
    scores, allowed = jnp.zeros((4, 4)), ~jnp.eye(4, dtype=bool)
    whole = sample_negatives(KEY, jnp.arange(4), scores, allowed)
    last = sample_negatives(KEY, jnp.array([3, 3, 3, 3]), scores, allowed.at[:].set(allowed[3]))
    np.testing.assert_array_equal(last, jnp.broadcast_to(whole[3], (4,)))


def test_no_gradient_flows_through_the_choice_of_negatives():
    found = gradient(fake_params())
    assert not any(np.any(found[name]) for name in ("dual_text", "dual_image", "scale"))
    assert all(np.any(found[name]) for name in ("encoders_text", "encoders_image", "match"))


def test_the_gradient_is_that_of_the_chosen_pairs():
    """With the negatives held, finite differences of the whole objective agree: nothing leaks through the scores."""
    params, direction = fake_params(), np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)

    def loss(step):
        return float(run(Matching(), BATCH, params | {"encoders_image": params["encoders_image"] + step * direction}).sum)

    slope = (loss(1e-3) - loss(-1e-3)) / 2e-3
    np.testing.assert_allclose(slope, np.sum(np.asarray(gradient(params)["encoders_image"]) * direction), rtol=2e-3)


def test_take_rows_keeps_what_is_absent_absent():
    tokens = Tokens(jnp.arange(6.0).reshape(3, 2, 1), jnp.ones((3, 2), bool), positions=jnp.arange(6).reshape(3, 2))
    taken = take_rows(tokens, jnp.array([2, 0]))
    np.testing.assert_array_equal(taken.positions, [[4, 5], [0, 1]])
    assert taken.segments is None and mean_tokens(taken).shape == (2, 1)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_forward import CLS, MASK, PAD, VOCABULARY, FakeForward, calls, fake_batch, fake_params, run
from pytorch import torch

from mmjax.objectives.masked_lm import MaskedLM, first_of_word

KEY = jax.random.key(0)


def objective(**changes) -> MaskedLM:
    return MaskedLM(**{"vocab_size": VOCABULARY, "mask_id": MASK, "special_ids": (PAD, CLS), "mask_probability": 0.5} | changes)


def corrupt(spec, batch):
    """What is shown, and what was chosen, as numpy."""
    return [np.asarray(x) for x in spec.corrupt(batch["text"], batch["text_mask"], batch["index"], KEY)]


def large_batch(rows=2048, length=16, vocabulary=1000):
    """Rows of real tokens only; always of one shape, for eager JAX compiles once a shape."""
    ids = jnp.asarray(np.random.default_rng(0).integers(5, vocabulary, (rows, length)), jnp.int32)
    return {"text": ids, "text_mask": jnp.ones(ids.shape, bool), "index": jnp.arange(rows)}


def test_the_rates_are_15_then_80_10_10():
    batch = large_batch()
    ids = np.asarray(batch["text"])
    shown, chosen = corrupt(objective(vocab_size=1000, mask_probability=0.15), batch)
    assert abs(chosen.mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / chosen.size)
    np.testing.assert_array_equal(shown[~chosen], ids[~chosen])
    before, after = ids[chosen], shown[chosen]
    masked, kept = after == MASK, after == before
    rates = {"masked": masked.mean(), "kept": kept.mean(), "random": (~masked & ~kept).mean()}
    for name, expected in {"masked": 0.8 + 0.1 / 1000, "kept": 0.1 + 0.1 / 1000, "random": 0.1 * (1 - 2 / 1000)}.items():
        assert abs(rates[name] - expected) < 4 * np.sqrt(expected * (1 - expected) / before.size), name
    drawn = after[~masked & ~kept]
    assert drawn.min() >= 0 and drawn.max() < 1000 and abs(drawn.mean() - 500) < 4 * 1000 / np.sqrt(12 * drawn.size)


def test_only_real_tokens_that_are_not_special_are_chosen():
    batch = fake_batch()
    real, special = np.asarray(batch["text_mask"]), np.asarray(batch["text"]) <= CLS
    np.testing.assert_array_equal(corrupt(objective(mask_probability=1.0), batch)[1], real & ~special)
    np.testing.assert_array_equal(corrupt(objective(mask_probability=1.0, special_ids=()), batch)[1], real)


def test_draws_belong_to_the_example():
    batch = fake_batch()
    turned = {key: value[::-1] for key, value in batch.items()}
    for a, b in zip(corrupt(objective(), batch), corrupt(objective(), turned), strict=True):
        np.testing.assert_array_equal(a[::-1], b)


@pytest.mark.parametrize("fusion", ["", "cross"])
def test_the_loss_is_cross_entropy_on_the_chosen_tokens(fusion):
    batch, spec, params = fake_batch(), objective(head="masked_lm_fused" if fusion else "masked_lm"), fake_params()
    loss = run(spec, batch, params)
    shown, chosen = corrupt(spec, batch)
    text = np.asarray(params["encoders_text"], np.float64)[shown]
    if fusion:
        image = np.asarray(batch["image"], np.float64).reshape(8, 4, 12) @ np.asarray(params["encoders_image"], np.float64)
        real = [np.concatenate([t[m], i]) for t, m, i in zip(text, np.asarray(batch["text_mask"]), image, strict=True)]
        text = np.tanh(text + np.stack([tokens.mean(0) for tokens in real])[:, None])
    logits = torch.tensor((text @ np.asarray(params[spec.head], np.float64))[chosen])
    labels = torch.tensor(np.asarray(batch["text"])[chosen]).long()
    assert float(loss.count) == chosen.sum() > 0
    np.testing.assert_allclose(loss.sum, torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), rtol=1e-5)
    assert loss.metrics["accuracy"][0] == (logits.argmax(1) == labels).sum().item()


def test_a_token_that_the_fusion_puts_first_is_passed_over():
    class ClsFirst(FakeForward):
        def fuse(self, fusion, tokens, key):
            pad = lambda x: jnp.pad(x, ((0, 0), (1, 0)) + ((0, 0),) * (x.ndim - 2), constant_values=1)  # noqa: E731
            return jax.tree.map(pad, super().fuse(fusion, tokens, key))

    batch, spec = fake_batch(), objective(head="masked_lm_fused", fusion="cross")
    plain, first = (
        jax.jit(lambda params, forward=forward: spec(forward(batch, params), batch, KEY))(fake_params())
        for forward in (FakeForward, ClsFirst)
    )
    jax.tree.map(np.testing.assert_array_equal, plain, first)


def test_a_limit_that_does_not_bind_changes_only_what_the_head_sees():
    batch, free, limited = fake_batch(), objective(), objective(max_predictions=4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), run(free, batch), run(limited, batch))
    assert calls(free, batch)[-1] == ("head masked_lm", (8, 5, 4))
    assert calls(limited, batch)[-1] == ("head masked_lm", (8, 4, 4))


def test_a_limit_beyond_the_length_is_the_length():
    batch = fake_batch()
    assert run(objective(max_predictions=99), batch).count > 0


def test_a_limit_that_binds_keeps_an_even_choice():
    _, chosen = corrupt(objective(mask_probability=1.0, max_predictions=2), large_batch())
    assert np.all(chosen.sum(1) == 2)
    np.testing.assert_allclose(chosen.mean(0), 2 / 16, atol=4 * np.sqrt(2 / 16 * 14 / 16 / 2048))


def test_a_limit_that_binds_counts_only_what_it_hid():
    batch, spec = fake_batch(), objective(mask_probability=1.0, max_predictions=1)
    shown, chosen = corrupt(spec, batch)
    assert int(run(spec, batch).count) == chosen.sum() == 8
    np.testing.assert_array_equal(shown[~chosen], np.asarray(batch["text"])[~chosen])


def test_nothing_chosen_counts_nothing():
    batch = fake_batch() | {"text_mask": jnp.zeros((8, 5), bool)}
    loss = run(objective(), batch)
    assert (loss.sum, loss.count) == (0, 0)


def words_of(lengths, tokens):
    """Numbers of words of some lengths, and padding's."""
    found = np.repeat(np.arange(len(lengths)), lengths)
    return np.concatenate([found, np.full(tokens - len(found), -1)]).astype(np.int32)


def test_words_are_chosen_whole_as_often_as_tokens():
    batch = large_batch()
    words = jnp.asarray(np.tile(words_of([1, 3, 2, 4, 1, 1, 4], 16), (len(batch["index"]), 1)))
    spec = objective(vocab_size=1000, mask_probability=0.15, whole_words=True)
    shown, chosen = (np.asarray(x) for x in spec.corrupt(batch["text"], batch["text_mask"], batch["index"], KEY, None, words))
    for number in range(7):
        own = chosen[:, np.asarray(words[0]) == number]
        assert (own == own[:, :1]).all()
        assert abs(own[:, 0].mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / len(own))
    several = chosen[:, 1:4]
    masked = (shown[:, 1:4] == MASK)[several[:, 0]]
    assert (masked.any(axis=1) & ~masked.all(axis=1)).any(), "what each token becomes is drawn by itself"


def test_a_limit_keeps_whole_words():
    batch = large_batch(256)
    words = jnp.asarray(np.tile(words_of([3] * 5, 16), (256, 1)))
    spec = objective(vocab_size=1000, mask_probability=0.9, whole_words=True, max_predictions=7)
    chosen = np.asarray(spec.corrupt(batch["text"], batch["text_mask"], batch["index"], KEY, None, words)[1])
    assert set(chosen.sum(axis=1).tolist()) <= {3, 4, 6, 7} and chosen.sum(axis=1).max() >= 6
    by_word = chosen[:, :15].reshape(256, 5, 3)
    assert (by_word == by_word[:, :, :1]).all()


def test_words_of_two_texts_in_a_row_are_two():
    words = jnp.asarray([[0, 0, 1, 0, 0, 1, -1, -1], [0, 0, 0, 0, -1, 0, -1, -1]])
    first = np.asarray(first_of_word(words, jnp.asarray([[3, 3], [2, 4]])))
    assert first.tolist() == [[0, 0, 2, 3, 3, 5, 6, 7], [0, 0, 2, 2, 4, 5, 6, 7]]


def test_whole_words_need_the_words():
    assert "text_words" in objective(whole_words=True).needs and "text_words" not in objective().needs

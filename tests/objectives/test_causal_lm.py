import jax.numpy as jnp
import numpy as np
import pytest
from fake_forward import fake_batch, fake_params, run
from pytorch import torch

from mmjax.objectives.causal_lm import CausalLM, next_tokens


def test_next_tokens_end_with_the_last_real_one():
    ids = jnp.array([[1, 5, 6, 0], [1, 5, 6, 7], [1, 0, 0, 0], [0, 0, 0, 0]], jnp.int32)
    labels, counts = next_tokens(ids, jnp.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool))
    np.testing.assert_array_equal(counts, [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(labels[:2, :2], [[5, 6], [5, 6]])
    assert labels[1, 2] == 7


@pytest.mark.parametrize("context", [(), ("image",)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_of_the_next_token(context, smoothing):
    batch, params = fake_batch(), fake_params()
    loss = run(CausalLM(context=context, label_smoothing=smoothing), batch)
    text, mask = np.asarray(batch["text"]), np.asarray(batch["text_mask"])
    image = np.asarray(batch["image"], np.float64).reshape(8, 4, 12) @ np.asarray(params["encoders_image"], np.float64)
    logits, labels = [], []
    for b in range(8):
        seen = np.asarray(params["encoders_text"], np.float64)[text[b]]
        for t in range(mask[b].sum() - 1):
            state = seen[: t + 1].mean(0) + (image[b].mean(0) if context else 0)
            logits.append(np.tanh(state) @ np.asarray(params["caption"], np.float64))
            labels.append(text[b, t + 1])
    logits, labels = torch.tensor(np.stack(logits)), torch.tensor(np.array(labels)).long()
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    np.testing.assert_allclose(loss.sum, expected, rtol=1e-5)
    assert loss.count == len(labels)
    assert loss.metrics["accuracy"][0] == (logits.argmax(1) == labels).sum().item()


def test_a_row_of_padding_only_counts_nothing():
    batch = fake_batch()
    padding = batch | {"text_mask": jnp.asarray(np.asarray(batch["text_mask"]) & (np.arange(8) != 1)[:, None])}
    invalid = batch | {"valid": jnp.arange(8) != 1}
    losses = [run(CausalLM(), batch) for batch in (padding, invalid)]
    np.testing.assert_allclose(losses[0].sum, losses[1].sum, rtol=1e-6)
    assert losses[0].count == losses[1].count

import jax.numpy as jnp
import numpy as np
from fake_forward import fake_batch, fake_params, run
from pytorch import torch

from mmjax.objectives.next_sentence import NextSentencePrediction


def test_the_loss_is_cross_entropy_on_what_is_known():
    batch, params = fake_batch() | {"next": jnp.array([1, 0, -1, 1, 0, 1, 0, -1], jnp.int32)}, fake_params()
    loss = run(NextSentencePrediction(), batch)
    embedded = np.asarray(params["encoders_text"], np.float64)[np.asarray(batch["text"])]
    pooled = np.stack([tokens[mask].mean(0) for tokens, mask in zip(embedded, np.asarray(batch["text_mask"]), strict=True)])
    logits = torch.tensor(pooled @ np.asarray(params["next_sentence"], np.float64))
    labels = torch.tensor([1, 0, -100, 1, 0, 1, 0, -100])
    np.testing.assert_allclose(loss.sum, torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), rtol=1e-5)
    assert loss.count == 6
    assert loss.metrics["accuracy"] == ((logits.argmax(1) == labels).sum().item(), 6)

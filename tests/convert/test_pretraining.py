"""The masked contrastive loss of wav2vec 2.0 beside HuggingFace's, with the same masks, negatives and noise."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from families import CASES
from families.wav2vec2 import CODES, PRETRAINING, STABLE
from parity import assert_close, bound, check_gradient, compiled, save

import mmjax
from mmjax.objectives import MaskedContrastive
from mmjax.objectives.masked_contrastive import others

CASE, BOOKS, ENTRIES = CASES["wav2vec2"], CODES["num_codevector_groups"], CODES["num_codevectors_per_group"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    theirs = CASE.make(PRETRAINING.of({**CODES, **STABLE, "contrastive_logits_temperature": 0.3, "diversity_loss_weight": 0.7}))
    model, params = mmjax.load(save(theirs, tmp_path_factory.mktemp("hf")))
    return theirs, model, params, CASE.batch(theirs)


def drawn(batch):
    """Masks, negatives and noise for the frames of a batch."""
    rng, real = np.random.default_rng(3), batch["frames"]
    hidden = (rng.random(real.shape) < 0.5) & real
    negatives = others(jnp.asarray(hidden), jnp.asarray(rng.random((*real.shape, 4)), jnp.float32))
    noise = -np.log(-np.log(rng.random((*real.shape, BOOKS, ENTRIES))))
    return hidden, np.asarray(negatives), noise.astype(np.float32)


@pytest.mark.parametrize(
    "training",
    [pytest.param(False, id="likeliest entries"), pytest.param(True, id="drawn entries", marks=pytest.mark.slow)],
)
def test_the_loss_and_its_gradient(both, training, monkeypatch):
    theirs, model, params, batch = both
    hidden, negatives, noise = drawn(batch)
    rows, length = hidden.shape

    def softmax(logits, tau=1, hard=False, dim=-1):  # of the noise that is drawn here
        soft = ((logits + torch.tensor(noise).reshape(logits.shape)) / tau).softmax(dim)
        chosen = torch.nn.functional.one_hot(soft.argmax(dim), soft.shape[-1])
        return chosen - soft.detach() + soft

    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", softmax)
    monkeypatch.setattr(theirs.config, "mask_feature_prob", 0.0)
    out = theirs.train(training)(
        torch.tensor(batch["audio"]),
        attention_mask=torch.tensor(batch["audio_mask"].astype(np.int64)),
        mask_time_indices=torch.tensor(hidden),
        sampled_negative_indices=torch.tensor(negatives + length * np.arange(rows)[:, None, None]),
    )
    objective = MaskedContrastive(temperature=0.3, diversity=0.7)
    given = {name: x for name, x in batch.items() if name != "frames"}

    def loss(params):
        return objective.compare(bound(model, params, given), jnp.asarray(hidden), negatives, noise if training else None)

    if training:
        check_gradient(theirs, out.loss, model, params, lambda own: loss(own).sum)
    found = compiled(loss)(params)
    assert_close(found.sum, out.loss, rtol=1e-5)
    assert float(found.count) == hidden.sum()
    perplexity = [float(x) for x in found.metrics["perplexity"]]
    assert_close(perplexity[0] / perplexity[1], out.codevector_perplexity, rtol=1e-5)

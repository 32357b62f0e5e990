import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from fake_evaluation import UnigramLoss, make_evaluation, make_params

from mmjax.core.errors import UserError
from mmjax.core.types import Loss
from mmjax.evaluate.perplexity import Perplexity

PARAMS = make_params()


def texts(size=11):
    rng = np.random.default_rng(0)
    mask = np.arange(6)[None] < rng.integers(0, 7, (size, 1))
    return {"text": rng.integers(0, 64, (size, 6)).astype(np.int32) * mask, "text_mask": mask}


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_the_mean_is_over_the_tokens_of_the_whole_dataset(batch_size):
    columns = texts()
    logits = PARAMS["unigram"].astype(np.float64)
    tokens = columns["text"][columns["text_mask"]]
    loss = np.mean(np.log(np.exp(logits).sum()) - logits[tokens])
    assert Perplexity(UnigramLoss())(make_evaluation(columns, batch_size), PARAMS) == pytest.approx(
        {"loss": loss, "perplexity": math.exp(loss), "accuracy": np.mean(tokens == logits.argmax())}, rel=1e-6
    )


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    params = PARAMS | {"unigram": np.zeros(64, np.float32)}
    assert Perplexity(UnigramLoss())(make_evaluation(texts()), params)["perplexity"] == pytest.approx(64, rel=1e-6)


@dataclasses.dataclass(frozen=True)
class FixedLoss:
    value: float
    label_smoothing: float = 0.0
    in_batch: bool = False

    def __call__(self, forward, batch, rng):
        count = batch["valid"].sum().astype(jnp.float32)
        return Loss(self.value * count, count, {"never": (jnp.float32(0), jnp.float32(0))})


@pytest.mark.parametrize(("loss", "perplexity"), [(710.0, math.inf), (math.nan, math.nan), (0.0, 1.0)])
def test_extreme_losses(loss, perplexity):
    metrics = Perplexity(FixedLoss(loss))(make_evaluation(texts()), PARAMS)
    assert metrics == pytest.approx({"loss": loss, "perplexity": perplexity, "never": 0.0}, nan_ok=True)


def test_mistakes_are_named():
    columns = texts() | {"text_mask": np.zeros((11, 6), bool)}
    with pytest.raises(UserError, match="has no token that UnigramLoss counts"):
        Perplexity(UnigramLoss())(make_evaluation(columns), PARAMS)
    with pytest.raises(UserError, match="has no 'text'"):
        Perplexity(UnigramLoss())(make_evaluation({"image": np.zeros((2, 6), np.float32)}), PARAMS)
    with pytest.raises(UserError, match="objective=FixedLoss: perplexity needs a loss over tokens"):
        Perplexity(FixedLoss(1.0, in_batch=True))
    with pytest.raises(UserError, match="objective is missing: give one, for instance Perplexity"):
        Perplexity(None)
    with pytest.raises(UserError, match=r"objective.label_smoothing=0.1"):
        Perplexity(FixedLoss(1.0, label_smoothing=0.1))

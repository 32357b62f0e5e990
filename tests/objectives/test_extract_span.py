"""The loss of a span against that of `transformers`' BertForQuestionAnswering."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering
from transformers.modeling_outputs import BaseModelOutput

from mmjax.core.errors import UserError
from mmjax.objectives import ExtractSpan


class Said:
    """A head's logits, as they are."""

    def __init__(self, logits):
        self.logits = logits

    def head(self, head):
        return self.logits


def call(logits, places, **more):
    batch = {"answers": jnp.asarray(places), **{key: jnp.asarray(value) for key, value in more.items()}}
    return ExtractSpan()(Said(jnp.asarray(logits)), batch, None)


def test_the_loss_is_that_of_transformers():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 7, 2)).astype(np.float32)
    places = np.array([[1, 4], [0, 0], [6, 6]], np.int32)
    config = BertConfig(hidden_size=2, num_hidden_layers=0, num_attention_heads=1, vocab_size=9, intermediate_size=2)
    theirs = BertForQuestionAnswering(config)
    theirs.bert.forward = lambda *_, **__: BaseModelOutput(last_hidden_state=torch.tensor(logits))
    with torch.no_grad():
        theirs.qa_outputs.weight.copy_(torch.eye(2))
        theirs.qa_outputs.bias.zero_()
    starts, ends = torch.tensor(places).long().T
    whole = theirs(torch.zeros(3, 7, dtype=torch.long), start_positions=starts, end_positions=ends, return_dict=False)[0]
    found = call(logits, places)
    assert float(found.count) == 3 and float(found.sum) / 3 == pytest.approx(whole.item(), rel=1e-5)
    right = logits.argmax(1) == places
    for name, rows in (("accuracy", right.all(1)), ("start_accuracy", right[:, 0]), ("end_accuracy", right[:, 1])):
        total, count = found.metrics[name]
        assert float(total) == rows.sum() and float(count) == 3
    some = call(logits, np.where(np.arange(3)[:, None] == 2, -1, places), valid=np.array([True, False, True]))
    assert float(some.count) == 1 and float(some.sum) == pytest.approx(float(call(logits[:1], places[:1]).sum), rel=1e-6)


@pytest.mark.parametrize(
    ("logits", "places", "words"),
    [
        ((2, 7, 3), (2, 2), r"model.heads.spans gives 7x3, and answers in a passage want two logits a token"),
        ((2, 2), (2, 2), r"model.heads.spans gives 2, and"),
        ((2, 7, 2), (2,), r"answers='answers' has one an example, no first and last token"),
    ],
)
def test_other_logits_and_places_are_named(logits, places, words):
    with pytest.raises(UserError, match=words):
        call(np.zeros(logits, np.float32), np.zeros(places, np.int32))


def test_it_says_what_it_needs():
    assert ExtractSpan(answers="where").needs == ("where",) and not hasattr(ExtractSpan(), "label")

"""Each rule and each filter alone against `transformers`' own, on random logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from mmjax.generate.filters import filtered
from mmjax.generate.processors import processors
from mmjax.generate.settings import Settings
from mmjax.generate.written import Written

B, START, COUNT, V, ENDS = 3, 5, 4, 31, (2, 7)
IDS = np.random.default_rng(0).integers(3, 9, (B, START + COUNT)).astype(np.int32)
NONE = jnp.zeros((B, 0), jnp.int32)
LOGITS = np.random.default_rng(1).normal(size=(B, V)).astype(np.float32) * 3


def written(real, room=4):
    """A batch whose rows have these slots, with room for more."""
    ids = np.pad(IDS, ((0, 0), (0, room)))
    real = np.pad(real, ((0, 0), (0, room)))
    return Written(jnp.asarray(ids), jnp.asarray(real), jnp.int32(START + COUNT), jnp.int32(COUNT), NONE)


ROWS = np.arange(START + COUNT)[None] >= np.array([[0], [2], [4]])
CASES = {
    "repetition_penalty": ({"repetition_penalty": 1.7}, lambda: theirs.RepetitionPenaltyLogitsProcessor(1.7)),
    "repetition_reward": ({"repetition_penalty": 0.6}, lambda: theirs.RepetitionPenaltyLogitsProcessor(0.6)),
    "no_repeat_2": ({"no_repeat_ngram_size": 2}, lambda: theirs.NoRepeatNGramLogitsProcessor(2)),
    "no_repeat_1": ({"no_repeat_ngram_size": 1}, lambda: theirs.NoRepeatNGramLogitsProcessor(1)),
    "no_repeat_3": ({"no_repeat_ngram_size": 3}, lambda: theirs.NoRepeatNGramLogitsProcessor(3)),
    "bad_words": (
        {"bad_words_ids": ((4,), (*IDS[0, -2:].tolist(), 9), (3, 4, 5, 6, 7, 8, 3, 4, 5, 6, 7), (2,))},
        lambda: theirs.NoBadWordsLogitsProcessor(
            [[4], [*IDS[0, -2:].tolist(), 9], [3, 4, 5, 6, 7, 8, 3, 4, 5, 6, 7], [2]], eos_token_id=list(ENDS)
        ),
    ),
    "min_length": ({"min_length": 8}, lambda: theirs.MinLengthLogitsProcessor(8, list(ENDS))),
    "suppress": ({"suppress_tokens": (3, 30)}, lambda: theirs.SuppressTokensLogitsProcessor([3, 30])),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_is_that_of_transformers_on_each_row(name):
    settings, rule = CASES[name]
    (own,) = processors(Settings(**settings), ENDS)
    found = np.asarray(jax.jit(own)(jnp.asarray(LOGITS), written(ROWS)))
    for row in range(B):
        ids = torch.tensor(IDS[row][ROWS[row]])[None].long()
        wanted = rule()(ids, torch.tensor(LOGITS[row])[None].clone())[0].numpy()
        np.testing.assert_allclose(found[row], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "rule", "count"),
    [
        ({"min_new_tokens": 5}, lambda start: theirs.MinNewTokensLengthLogitsProcessor(start, 5, list(ENDS)), 4),
        ({"min_new_tokens": 4}, lambda start: theirs.MinNewTokensLengthLogitsProcessor(start, 4, list(ENDS)), 4),
        ({"begin_suppress_tokens": (3, 4)}, lambda start: theirs.SuppressTokensAtBeginLogitsProcessor([3, 4], start), 4),
        ({"begin_suppress_tokens": (3, 4)}, lambda start: theirs.SuppressTokensAtBeginLogitsProcessor([3, 4], start), 0),
        ({"forced_eos_token_id": 2, "max_new_tokens": 5}, lambda start: theirs.ForcedEOSTokenLogitsProcessor(start + 5, 2), 4),
        ({"forced_eos_token_id": 2, "max_new_tokens": 6}, lambda start: theirs.ForcedEOSTokenLogitsProcessor(start + 6, 2), 4),
    ],
)
def test_a_rule_about_how_much_is_written(settings, rule, count):
    (own,) = processors(Settings(**settings), ENDS)
    length = START + count
    state = Written(jnp.asarray(IDS), jnp.ones(IDS.shape, bool), jnp.int32(length), jnp.int32(count), NONE)
    wanted = rule(START)(torch.tensor(IDS[:, :length]).long(), torch.tensor(LOGITS).clone())
    np.testing.assert_allclose(np.asarray(own(jnp.asarray(LOGITS), state)), wanted.numpy(), rtol=1e-6)


def test_the_first_token_is_forced_after_one_alone():
    (own,) = processors(Settings(forced_bos_token_id=6), ENDS)
    real = np.arange(9)[None] >= np.array([[8], [0], [7]])
    found = np.asarray(own(jnp.asarray(LOGITS), written(real)))
    wanted = theirs.ForcedBOSTokenLogitsProcessor(6)(torch.zeros(1, 1).long(), torch.tensor(LOGITS[:1]).clone())
    np.testing.assert_array_equal(found[0], wanted.numpy()[0])
    np.testing.assert_array_equal(found[1:], LOGITS[1:])


@pytest.mark.parametrize(
    ("settings", "rules"),
    [
        ({"temperature": 0.7, "top_k": 0}, [lambda: theirs.TemperatureLogitsWarper(0.7)]),
        ({"top_k": 5}, [lambda: theirs.TopKLogitsWarper(5)]),
        ({"top_k": 0, "top_p": 0.8}, [lambda: theirs.TopPLogitsWarper(0.8)]),
        ({"top_k": 0, "top_p": 0.05}, [lambda: theirs.TopPLogitsWarper(0.05)]),
        ({"top_k": 0, "min_p": 0.2}, [lambda: theirs.MinPLogitsWarper(0.2)]),
        (
            {"temperature": 1.4, "top_k": 9, "top_p": 0.9, "min_p": 0.1},
            [
                lambda: theirs.TemperatureLogitsWarper(1.4),
                lambda: theirs.TopKLogitsWarper(9),
                lambda: theirs.TopPLogitsWarper(0.9),
                lambda: theirs.MinPLogitsWarper(0.1),
            ],
        ),
    ],
)
def test_what_is_drawn_from_is_what_transformers_draws_from(settings, rules):
    found = jax.nn.softmax(filtered(jnp.asarray(LOGITS), Settings(do_sample=True, **settings)), axis=-1)
    wanted = torch.tensor(LOGITS)
    for rule in rules:
        wanted = rule()(torch.tensor(IDS).long(), wanted)
    np.testing.assert_allclose(np.asarray(found), torch.softmax(wanted, -1).numpy(), rtol=1e-6, atol=1e-8)

"""Beam search against `transformers.generate`: the same texts, in the same order, with the same scores."""

import jax
import numpy as np
import pytest
import torch
from test_decode import ENDS, IDS, MASK, NEW, PAD, made, ours  # noqa: F401

from mmjax.core.trees import map_with_path
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.rules import place


def theirs(hf, ends, **given):
    """Each row alone: ids [R, NEW], padded after an end, and scores [R]."""
    rows, scores = [], []
    for n in range(len(IDS)):
        row = torch.tensor(IDS[n][MASK[n]])[None].long()
        own = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": list(ends), "pad_token_id": PAD, **given}
        out = hf.generate(row, attention_mask=torch.ones_like(row), return_dict_in_generate=True, output_scores=True, **own)
        for text, score in zip(out.sequences[:, row.shape[1] :].tolist(), out.sequences_scores.tolist(), strict=True):
            length = next((n + 1 for n, token in enumerate(text) if token in ends), len(text))
            rows.append((text[:length] + [PAD] * NEW)[:NEW])  # `transformers` takes an end to fill with where padding is 0
            scores.append(score)
    return np.array(rows), np.array(scores)


def often(hf):
    """Tokens that beams write early and late, so that texts end at different lengths."""
    plain, _ = theirs(hf, ENDS, num_beams=4, num_return_sequences=4)
    return tuple(sorted({int(plain[1, 4]), int(plain[6, 7])}))


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [0.6, 1.0, 2.0])
def test_the_beams_of_transformers(penalty, early, made):  # noqa: F811
    hf, model, params = made("gpt2")
    ends = often(hf)
    given = {"num_beams": 4, "num_return_sequences": 3, "length_penalty": penalty, "early_stopping": early}
    found = ours(model, params, given, ends=ends)
    ids, scores = theirs(hf, ends, **given)
    np.testing.assert_array_equal(np.asarray(found.ids), ids)
    np.testing.assert_allclose(np.asarray(found.scores), scores, rtol=1e-5)
    lengths = np.asarray(found.lengths)
    assert all((row[n:] == PAD).all() and (n == NEW or row[n - 1] in ends) for row, n in zip(ids, lengths, strict=True))
    assert lengths.min() < NEW or penalty == 2.0


def test_beams_of_grouped_heads_with_every_processor(made):  # noqa: F811
    hf, model, params = made("llama")
    given = {"num_beams": 3, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 5}
    ends = often(hf)
    ids, _ = theirs(hf, ends, **given)
    np.testing.assert_array_equal(np.asarray(ours(model, params, given, ends=ends).ids), ids)


def test_a_row_alone_has_the_beams_of_the_row_in_a_batch(made):  # noqa: F811
    hf, model, params = made("gpt2")
    ends, given = often(hf), {"num_beams": 3, "num_return_sequences": 2}
    whole = ours(model, params, given, ends=ends)
    for n in range(len(IDS)):
        own = {"ids": IDS[n : n + 1, MASK[n].argmax() :], "mask": np.ones((1, MASK[n].sum()), bool)}
        alone = ours(model, params, given, ends=ends, **own)
        np.testing.assert_array_equal(np.asarray(alone.ids), np.asarray(whole.ids)[2 * n : 2 * n + 2])


def test_eight_devices_find_the_beams_of_one(made):  # noqa: F811
    _, model, params = made("llama")
    ids, mask = np.repeat(IDS, 8, 0)[:8], np.repeat(MASK, 8, 0)[:8]
    wanted = np.asarray(ours(model, params, {"num_beams": 3}, ids=ids, mask=mask).ids)
    built = Mesh(data=1, fsdp=4, tensor=2).build()
    with jax.set_mesh(built):
        placed = map_with_path(lambda path, x: place(built, path, np.asarray(x)), params)
        found = ours(model, placed, {"num_beams": 3}, ids=ids, mask=mask)
    np.testing.assert_array_equal(np.asarray(found.ids), wanted)


def test_drawn_beams_differ_from_one_another_and_depend_on_the_seed(made):  # noqa: F811
    _, model, params = made("gpt2")
    given = {"num_beams": 3, "num_return_sequences": 3, "do_sample": True, "top_k": 0, "temperature": 5.0}
    first, again, other = (np.asarray(ours(model, params, {**given, "seed": seed}).ids) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and len({tuple(row) for row in first.tolist()}) == len(first)

"""Strings at which texts end, followed by a table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode import IDS, MASK, NEW, PAD, V, made  # noqa: F401

from mmjax.core.errors import UserError
from mmjax.generate import Rules, decode, settings_of
from mmjax.generate.stops import table

PIECES = [b"", b"a", b"b", b"ab", b"ba", b"aab", b"abab", b"c"]


@settings(max_examples=60, deadline=None)
@given(st.text("abc", min_size=1, max_size=5), st.lists(st.integers(0, len(PIECES) - 1), max_size=12))
def test_the_table_finds_a_string_where_it_is_complete(string, tokens):
    step, state, text = table(string.encode(), PIECES), 0, b""
    for token in tokens:
        state, text = int(step[state, token]), text + PIECES[token]
        assert (state == len(string)) == (string.encode() in text)


def test_a_text_ends_with_the_token_that_completes_a_string(made):  # noqa: F811
    _, model, params = made("gpt2")
    pieces = [f"<{n}>".encode() for n in range(V)]

    def write(settings, tables=()):
        rules = Rules(settings_of({"max_new_tokens": NEW, **settings}), (), PAD, tables)
        run = jax.jit(functools.partial(decode, model, decoder="caption", rules=rules))
        return run(params, batch={}, ids_BT=jnp.asarray(IDS), mask_BT=jnp.asarray(MASK))

    plain = np.asarray(write({}).ids)
    strings = [f"{plain[0, 2]}><{plain[0, 3]}", f"<{plain[2, 6]}"]
    with pytest.raises(UserError, match="give a table of each"):
        write({"stop_strings": strings})
    with pytest.raises(UserError, match=f"stop strings of 5 tokens, and a model of {V}"):
        write({"stop_strings": strings}, [table(one.encode(), pieces[:5]) for one in strings])
    found = write({"stop_strings": strings}, [table(one.encode(), pieces) for one in strings])
    for row, length, whole in zip(np.asarray(found.ids), np.asarray(found.lengths), plain, strict=True):
        texts = [b"".join(pieces[token] for token in whole[: n + 1]).decode() for n in range(NEW)]
        wanted = next((n + 1 for n, text in enumerate(texts) if any(one in text for one in strings)), NEW)
        assert length == wanted and row.tolist() == [*whole[:wanted], *[PAD] * (NEW - wanted)]


def test_a_function_of_the_users_is_the_last_to_change_the_logits(made):  # noqa: F811
    _, model, params = made("gpt2")
    rows = {"batch": {}, "ids_BT": jnp.asarray(IDS), "mask_BT": jnp.asarray(MASK)}
    even = lambda logits, written: jnp.where(jnp.arange(V) % 2 == 0, logits, -jnp.inf)  # noqa: E731
    rules = Rules(settings_of({"max_new_tokens": NEW}), (), PAD, own=[even])
    found = jax.jit(functools.partial(decode, model, decoder="caption", rules=rules))(params, **rows)
    assert (np.asarray(found.ids) % 2 == 0).all()


def test_several_draws_of_a_prompt_differ_and_each_is_what_it_is_alone(made):  # noqa: F811
    _, model, params = made("llama")
    asked = settings_of({"max_new_tokens": NEW, "do_sample": True, "top_k": 0, "num_return_sequences": 3, "temperature": 4.0})
    write = jax.jit(functools.partial(decode, model, decoder="caption", rules=Rules(asked, (), PAD)))
    whole = np.asarray(write(params, batch={}, ids_BT=jnp.asarray(IDS), mask_BT=jnp.asarray(MASK)).ids)
    assert len({tuple(row) for row in whole.tolist()}) == 9
    last = write(params, batch={}, ids_BT=jnp.asarray(IDS[2:]), mask_BT=jnp.asarray(MASK[2:]), index_B=jnp.asarray([2]))
    np.testing.assert_array_equal(np.asarray(last.ids), whole[6:])

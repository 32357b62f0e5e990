"""The rule of Whisper's times against that of `transformers`, on random logits after random texts."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from mmjax.generate.times import Times
from mmjax.generate.written import Written

V, END, UNTIMED, PROMPT, ROOM = 24, 9, 11, 3, 8  # 0 to 8 words, 9 the end, 10 and 11 special, 12 to 23 times
own = {latest: jax.jit(Times(UNTIMED, END, latest)) for latest in (None, 2)}


@settings(max_examples=150, deadline=None)
@given(
    texts=st.integers(0, 5).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, V - 1), min_size=n, max_size=n), min_size=3, max_size=3)
    ),
    seed=st.integers(0, 2**16),
    latest=st.sampled_from([None, 2]),
    lift=st.sampled_from([-4.0, 0.0, 4.0]),
)
def test_the_rule_is_that_of_transformers(texts, seed, latest, lift):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, V)).astype(np.float32) * 2
    logits[:, UNTIMED + 1 :] += lift
    prompts = rng.integers(0, V, (3, PROMPT))  # times in what comes before a text are none of its own
    ids = np.concatenate([prompts, np.array(texts, np.int64).reshape(3, -1)], axis=1)
    config = GenerationConfig(no_timestamps_token_id=UNTIMED, eos_token_id=END)
    if latest is not None:
        config.max_initial_timestamp_index = latest
    wanted = WhisperTimeStampLogitsProcessor(config, begin_index=PROMPT)(torch.tensor(ids), torch.tensor(logits)).numpy()
    padded = np.pad(ids, ((0, 0), (0, PROMPT + ROOM - ids.shape[1]))).astype(np.int32)
    count = ids.shape[1] - PROMPT
    real = np.arange(PROMPT + ROOM)[None] < np.full((3, 1), ids.shape[1])
    state = Written(
        jnp.asarray(padded), jnp.asarray(real), jnp.int32(ids.shape[1]), jnp.int32(count), jnp.zeros((3, 0), jnp.int32)
    )
    np.testing.assert_array_equal(np.asarray(own[latest](jnp.asarray(logits), state)), wanted)

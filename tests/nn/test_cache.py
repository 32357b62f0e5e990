"""What attention has read, read again: one slot for all rows, each row's own, and rows that share what is kept."""

import jax.numpy as jnp
import numpy as np

from mmjax.core.stacked import Stacked
from mmjax.nn.attend import attend
from mmjax.nn.cache import attend_one, by_head, write

B, S, H, G, K = 3, 7, 4, 2, 5
RNG = np.random.default_rng(0)
K_BSGK, V_BSGK = (jnp.asarray(RNG.normal(size=(B, S, G, K)), jnp.float32) for _ in "kv")
Q_B1HK = jnp.asarray(RNG.normal(size=(B, 1, H, K)), jnp.float32)
SLOTS = jnp.asarray([2, 6, 4], jnp.int32)


def taken(x_BSGK, slots):
    """Without the slots, and what stood there."""
    own = (jnp.arange(S)[None] == slots[:, None])[..., None, None]
    return jnp.where(own, 0, x_BSGK), jnp.sum(jnp.where(own, x_BSGK, 0), axis=1, keepdims=True)


def test_each_row_reads_and_writes_its_own_slot():
    mask_BS = jnp.arange(S)[None] <= SLOTS[:, None]
    wanted = attend(Q_B1HK, K_BSGK, V_BSGK, mask_BS, kind="plain")
    (k_old, k_new), (v_old, v_new) = taken(K_BSGK, SLOTS), taken(V_BSGK, SLOTS)
    old, new = (by_head(k_old), by_head(v_old)), (by_head(k_new), by_head(v_new))
    np.testing.assert_allclose(attend_one(Q_B1HK, old, mask_BS, new, SLOTS), wanted, rtol=1e-5, atol=1e-6)
    cache = {"attention": tuple(Stacked((x[None], x[None])) for x in old), "cross_attention": "kept"}
    fresh = {"attention": tuple(Stacked((x[None], x[None])) for x in new)}
    after = write(cache, fresh, SLOTS)
    for found, whole in zip(after["attention"], (K_BSGK, V_BSGK), strict=True):
        for part in found.parts:
            np.testing.assert_array_equal(part[0], by_head(whole))
    assert after["cross_attention"] == "kept"


def test_one_slot_of_all_rows_is_that_slot_in_each():
    old, new = by_head(K_BSGK)[None], by_head(K_BSGK[:, :1])[None] + 1
    one, each = (
        write({"attention": (old, old)}, {"attention": (new, new)}, index)["attention"][0]
        for index in (jnp.int32(3), jnp.full(B, 3, jnp.int32))
    )
    np.testing.assert_array_equal(one, each)
    assert not np.array_equal(one, old)


def test_rows_that_share_what_is_kept_attend_as_if_each_had_its_own():
    beams = 2
    q = jnp.asarray(RNG.normal(size=(B * beams, 1, H, K)), jnp.float32)
    mask_BS = jnp.asarray(RNG.random((B, S)) < 0.7).at[:, 0].set(True)
    k, v, mask = (jnp.repeat(x, beams, axis=0) for x in (K_BSGK, V_BSGK, mask_BS))
    wanted = attend(q, k, v, mask, kind="plain")
    found = attend_one(q, (by_head(K_BSGK), by_head(V_BSGK)), mask_BS)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)

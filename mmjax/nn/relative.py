"""Relative positions in buckets: what attention adds to its logits for how far a key is from its query (Raffel 2019, 2.1)."""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array
from mmjax.nn.position import Table


def relative_bias(
    heads: int, buckets: int, farthest: int, causal: bool, queries: Array, keys: Array, name: str = "relative"
) -> Array:
    """[b, H, T, S] float: of each head, what the pair of a query and a key adds to its logit. To be called in a compact module,
    which then has the table `relative/table` [buckets, H].

    Args:
      buckets: of distances; where not `causal`, half of them for keys after the query.
      farthest: from this distance on all are in the last bucket.
      queries, keys: int32 [b, T] and [1, S], where they stand.

    Raises:
      UserError: fewer buckets than the distances need, or none left for the farther ones.
    """
    near_N = jnp.asarray(bucket_of(buckets, farthest, causal))
    distance_BTS = keys[:, None, :] - queries[:, :, None]
    bucket_BTS = near_N[jnp.clip(jnp.maximum(-distance_BTS, 0) if causal else jnp.abs(distance_BTS), 0, farthest)]
    if not causal:
        bucket_BTS = bucket_BTS + jnp.where(distance_BTS > 0, buckets // 2, 0)
    table_NH = Table(buckets, heads, name=name).all()
    return jnp.take(table_NH, bucket_BTS, axis=0).transpose(0, 3, 1, 2)


@functools.cache
def bucket_of(buckets: int, farthest: int, causal: bool) -> np.ndarray:
    """[farthest + 1] int32: the bucket of each distance on one side, those beyond being in the last one's.

    Half of the side's buckets are of one distance each, the others grow with its logarithm, rounded in float32 as PyTorch does.

    Raises:
      UserError: see `relative_bias`.
    """
    own = buckets if causal else buckets // 2
    exact = own // 2
    if exact < 1 or farthest <= exact:
        least = 2 if causal else 4
        raise UserError(
            f"relative_buckets={buckets} and relative_distance={farthest}: use at least {least} buckets, and a distance of "
            f"more than {max(exact, 1)}"
        )
    distance_N = np.arange(farthest + 1, dtype=np.float32)
    logarithm_N = np.log(np.maximum(distance_N, exact) / np.float32(exact)) / np.float32(math.log(farthest / exact))
    far_N = exact + (logarithm_N * np.float32(own - exact)).astype(np.int32)
    found = np.where(distance_N < exact, distance_N.astype(np.int32), np.minimum(far_N, own - 1)).astype(np.int32)
    found.setflags(write=False)
    return found

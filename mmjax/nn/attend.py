"""The one attention function: the plain arithmetic, and the kernels that stand in for it where a platform has them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from mmjax.core.errors import UserError, nearest
from mmjax.core.types import Array
from mmjax.nn.fused_attention import LANES, fits, fused_attention
from mmjax.nn.product import product
from mmjax.parallel.mesh import BATCH, axis_size, fit, platform

KINDS = ("auto", "plain", "fused", "splash", "cudnn")
FEW = 16  # queries below which the weights are too small for a kernel to pay (the one of attention pooling)
NOBODYS = -2  # an id that no query has
LONG = 1024  # keys from which tiles of splash attention pay for its padding

Segments = tuple[Array, Array]


def attend(
    q_BTHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    mask_BS: Array | None = None,
    segments: Segments | None = None,
    causal: bool = False,
    kind: str = "auto",
    drop: Callable[[Array], Array] | None = None,
    bias: Array | None = None,
) -> Array:
    """[B, T, H, K] in the dtype of v: softmax(q k' / sqrt(K)) v (Vaswani 2017, eq. 1), with a float32 softmax.

    Args:
      k_BSGK, v_BSGK: G heads; each serves H / G query heads (Ainslie 2023).
      mask_BS: bool, True = may be attended to.
      segments: ids [B, T] and [B, S] int32 from -1 up: a query sees only keys of its own id (several texts packed into one
        row; see `core.packed`).
      causal: query t sees keys up to t + S - T.
      kind: `plain`; `fused`, one kernel for short sequences (TPU); `splash`, tiles of long ones (TPU); `cudnn`, flash attention
        (NVIDIA GPUs from Ampere on, half precision); `auto` takes the platform's best that fits. On the CPU `fused` and
        `splash` are interpreted.
      drop: dropout of the weights, which only `plain` has.
      bias: [b, H, T, S], b of 1 or B, added to the logits before the softmax (relative positions); `plain` alone has it.

    A query that sees no key is the mean of all S values and moves no logit, whatever the kind.

    Raises:
      UserError: an unknown kind, or one that these shapes, `drop`, `bias` or this GPU rule out.
    """
    chosen = choose(kind, q_BTHK.shape, k_BSGK.shape, q_BTHK.dtype, drop is not None, bias is not None)
    if chosen == "plain":
        return _plain(q_BTHK, k_BSGK, v_BSGK, mask_BS, segments, causal, drop, bias)
    kernel = {"fused": _fused, "splash": _splash, "cudnn": _cudnn}[chosen]
    out_BTHK = kernel(q_BTHK, k_BSGK, v_BSGK, mask_BS, segments, causal)
    return checkpoint_name(out_BTHK, "attention")  # cheap to keep, and a whole kernel to recompute


def choose(
    kind: str, q_shape: tuple[int, ...], k_shape: tuple[int, ...], dtype: Any, drop: bool = False, biased: bool = False
) -> str:
    """What `kind` means for these shapes on the platform of the current mesh."""
    (_, tokens, heads, head_width), attended = q_shape, k_shape[1]
    if kind not in KINDS:
        raise UserError(f"attention={kind!r}{nearest(kind, KINDS)}: use one of {', '.join(KINDS)}")
    half, alone = jnp.dtype(dtype).itemsize == 2, drop or biased
    split = heads // axis_size("tensor")
    possible = {
        "plain": True,
        "fused": not alone and fits(split, head_width, tokens, attended),
        "splash": not alone and head_width % 64 == 0,
        # Backward, cuDNN has no 1 x 1; wider heads only on some GPUs.
        "cudnn": not alone and half and head_width % 8 == 0 and head_width <= 128 and max(tokens, attended) > 1,
    }
    if kind == "cudnn" and platform() == "gpu" and not _has_flash():
        raise UserError("attention='cudnn' needs an NVIDIA GPU of compute capability 8.0 (Ampere) or newer; use auto or plain")
    if kind != "auto":
        if not possible[kind]:
            raise UserError(
                f"attention={kind!r} cannot take {tokens} x {attended} tokens, {split} heads of width {head_width} in "
                f"{jnp.dtype(dtype).name}{', dropout of its weights' * drop}{', relative positions' * biased}; use auto or "
                "plain"
            )
        return kind
    if platform() == "tpu":
        if possible["fused"] and tokens >= FEW:
            return "fused"
        return "splash" if possible["splash"] and attended >= LONG else "plain"
    return "cudnn" if platform() == "gpu" and possible["cudnn"] and tokens >= FEW and _has_flash() else "plain"


@functools.cache
def _has_flash() -> bool:
    """Whether the GPU here has cuDNN's flash attention. A program for a GPU that is not here is made for one that has."""
    try:
        device = jax.local_devices(backend="gpu")[0]
    except RuntimeError:
        return True
    if "cuda" not in device.client.platform_version:  # ROCm calls its devices gpu too
        return False
    return tuple(int(part) for part in device.compute_capability.split(".")) >= (8, 0)


def attention_weights(
    q_BHTK: Array,
    k_BHSK: Array,
    mask_BS: Array | None,
    causal: bool,
    segments: Segments | None = None,
    bias: Array | None = None,
) -> Array:
    """[B, H, T, S] float32 softmax weights. A query that may attend to nothing attends evenly."""
    scaled_BHTK = q_BHTK * q_BHTK.shape[-1] ** -0.5
    logits = product(scaled_BHTK, k_BHSK, (((3,), (3,)), ((0, 1), (0, 1))), jnp.float32)
    logits = logits if bias is None else logits + bias.astype(jnp.float32)
    lowest = jnp.finfo(jnp.float32).min
    if mask_BS is not None:
        logits = jnp.where(mask_BS[:, None, None, :], logits, lowest)
    if segments is not None:
        logits = jnp.where((segments[0][:, :, None] == segments[1][:, None, :])[:, None], logits, lowest)
    if causal:
        t, s = logits.shape[-2:]
        allowed = jnp.arange(s)[None, :] <= jnp.arange(t)[:, None] + (s - t)
        logits = jnp.where(allowed[None, None], logits, lowest)
    return jax.nn.softmax(logits, axis=-1)


def _plain(
    q: Array, k: Array, v: Array, mask: Array | None, segments: Segments | None, causal: bool, drop: Any, bias: Array | None
) -> Array:
    k, v = _every_head(q, k, v)
    # Heads before tokens: on the CPU a step is 8% faster than with the same products over [B, T, H, K].
    q_BHTK, k_BHSK, v_BHSK = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
    weights_BHTS = attention_weights(q_BHTK, k_BHSK, mask, causal, segments, bias)
    weights_BHTS = (weights_BHTS if drop is None else drop(weights_BHTS)).astype(v.dtype)
    return product(weights_BHTS, v_BHSK, (((3,), (2,)), ((0, 1), (0, 1)))).transpose(0, 2, 1, 3)


def _every_head(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """Keys and values repeated for each query head they serve."""
    times = q.shape[2] // k.shape[2]
    return (k, v) if times == 1 else (jnp.repeat(k, times, axis=2), jnp.repeat(v, times, axis=2))


def _fused(q: Array, k: Array, v: Array, mask: Array | None, segments: Segments | None, causal: bool) -> Array:
    k, v = _every_head(q, k, v)
    mask = jnp.ones(k.shape[:2], bool) if mask is None else mask

    def local(q: Array, k: Array, v: Array, *rest: Array) -> Array:
        flat = [x.reshape(*x.shape[:2], -1) for x in (q, k, v)]
        mask_BS, own = (rest[0], None) if len(rest) == 1 else (jnp.ones(k.shape[:2], bool), rest)
        return fused_attention(*flat, mask_BS, own, q.shape[2], causal, platform() == "cpu").reshape(q.shape)

    return _per_device(local, causal, q, k, v, *((mask,) if segments is None else _ids(mask, segments)))


def _splash(q: Array, k: Array, v: Array, mask: Array | None, segments: Segments | None, causal: bool) -> Array:
    """Splash attention, both lengths padded to whole tiles; padding is a segment of its own."""
    blind = mask is not None or segments is not None or (causal and q.shape[1] > k.shape[1])
    zeros = (jnp.zeros(q.shape[:2], jnp.int32), jnp.zeros(k.shape[:2], jnp.int32))
    local = functools.partial(_splash_local, causal=causal, blind=blind)
    return _per_device(local, causal, q, k, v, *_ids(mask, segments or zeros))


def _ids(mask: Array | None, segments: Segments) -> Segments:
    """Segments in which a masked key has an id that no query has."""
    return segments if mask is None else (segments[0], jnp.where(mask, segments[1], NOBODYS))


def _seen(*rest: Array, tokens: int, causal: bool) -> Array:
    """[B or 1, T or 1, S] bool, which keys each query sees, of a mask [B, S] or of the ids of queries and keys."""
    *_, keys_BS = rest
    seen = keys_BS[:, None, :] if len(rest) == 1 else rest[0][:, :, None] == keys_BS[:, None, :]
    if not causal:
        return seen
    attended = keys_BS.shape[1]
    return seen & (jnp.arange(attended)[None, None, :] <= jnp.arange(tokens)[None, :, None] + (attended - tokens))


def _or_mean(out: Array, v: Array, sees_BT: Array) -> Array:
    """`out`, or the mean of all values for a query that sees none: kernels count their padding too, or give NaN."""
    mean_B1GK = jnp.mean(v.astype(jnp.float32), axis=1, keepdims=True).astype(out.dtype)
    mean_B1HK = jnp.repeat(mean_B1GK, out.shape[2] // v.shape[2], axis=2)
    return jnp.where(sees_BT[:, :, None, None], out, mean_B1HK)


def _splash_local(q: Array, k: Array, v: Array, ids_q: Array, ids_k: Array, causal: bool, blind: bool) -> Array:
    """`blind`: a query may see nothing."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    tokens, attended = q.shape[1], k.shape[1]
    tiles = (_padded(tokens), _padded(attended))
    # A causal query t sees keys up to t + S - T, however long the padding makes either.
    full = splash.CausalMask(tiles, offset=attended - tokens) if causal else splash.FullMask(tiles)
    block_q, block_k = (math.gcd(n, 512) for n in tiles)
    sizes = splash.BlockSizes(
        block_q=block_q,
        block_q_dkv=block_q,
        block_q_dq=block_q,
        block_kv=block_k,
        block_kv_compute=block_k,
        block_kv_dkv=block_k,
        block_kv_dkv_compute=block_k,
        block_kv_dq=block_k,
    )
    heads = splash.MultiHeadMask([full] * q.shape[2])
    kernel = splash.make_splash_mha_single_device(heads, block_sizes=sizes, interpret=platform() == "cpu")

    def pad(x: Array, length: int, value: int = 0) -> Array:
        return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)), constant_values=value)

    scaled = (q * q.shape[-1] ** -0.5).astype(q.dtype)
    by_head = [pad(x, n).transpose(0, 2, 1, 3) for x, n in ((scaled, tiles[0]), (k, tiles[1]), (v, tiles[1]))]
    ids = splash.SegmentIds(q=pad(ids_q, tiles[0]), kv=pad(ids_k, tiles[1], NOBODYS))
    out_BTHK = jax.vmap(kernel)(*by_head, ids).transpose(0, 2, 1, 3)[:, :tokens]
    return _or_mean(out_BTHK, v, _seen(ids_q, ids_k, tokens=tokens, causal=causal).any(-1)) if blind else out_BTHK


def _padded(length: int) -> int:
    return -(-length // LANES) * LANES


def _cudnn(q: Array, k: Array, v: Array, mask: Array | None, segments: Segments | None, causal: bool) -> Array:
    masks = () if mask is None else (mask,)
    rest = masks if segments is None else _ids(mask, segments)
    return _per_device(functools.partial(_cudnn_local, causal=causal), causal, q, k, v, *rest)


def _cudnn_local(q: Array, k: Array, v: Array, *rest: Array, causal: bool) -> Array:
    """cuDNN's flash attention. Its causal mask counts from the first key, so where T is not S ours goes into the mask.

    A mask becomes a bias that is very negative, of lengths that must be even (odd ones are padded with a key that nobody
    sees), and whoever sees nothing is left to see everything: some versions give NaN where a whole row is very negative.
    """
    tokens, attended = q.shape[1], k.shape[1]
    square = causal and tokens == attended
    attention = functools.partial(jax.nn.dot_product_attention, is_causal=square, implementation="cudnn")
    if not rest and square == causal:
        return attention(q, k, v)
    rest = rest or (jnp.ones((1, attended), bool),)
    seen = _seen(*rest, tokens=tokens, causal=causal)
    sees = seen.any(-1, keepdims=True)
    seen_BTS = jnp.broadcast_to(seen | ~sees, (q.shape[0], tokens, attended))
    pad_q, pad_k = tokens % 2, attended % 2
    padded = [jnp.pad(x, ((0, 0), (0, n), (0, 0), (0, 0))) for x, n in ((q, pad_q), (k, pad_k), (v, pad_k))]
    seen_BTS = jnp.pad(jnp.pad(seen_BTS, ((0, 0), (0, pad_q), (0, 0)), constant_values=True), ((0, 0), (0, 0), (0, pad_k)))
    out_BTHK = attention(*padded, mask=seen_BTS[:, None])[:, :tokens]
    return _or_mean(out_BTHK, v, sees[:, :, 0])


def _per_device(local: Callable[..., Array], causal: bool, q: Array, k: Array, v: Array, *rest: Array) -> Array:
    """Run a kernel on each device's own examples and heads; the compiler cannot split one by itself.

    Queries stay split over `sequence` where no causal mask counts them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(q, k, v, *rest)
    axes = dict(mesh.shape)
    tokens = None if causal else "sequence"

    def spec(x: Array, *entries: Any) -> PartitionSpec:
        return fit(PartitionSpec(*entries), x.shape, axes)

    # Heads are split only where the fewest, those of keys, can be.
    heads = spec(k, BATCH, None, "tensor", None)[2]
    specs = [spec(q, BATCH, tokens, heads, None), *[spec(x, BATCH, None, heads, None) for x in (k, v)]]
    # The rest is a mask of keys, or the ids of queries and those of keys.
    others = [spec(x, BATCH, tokens if len(rest) == 2 and i == 0 else None) for i, x in enumerate(rest)]
    run = jax.shard_map(local, in_specs=(*specs, *others), out_specs=specs[0], check_vma=False)
    return run(q, k, v, *rest)

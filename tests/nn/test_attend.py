"""Every attention against torch's, in outputs and gradients; the kernels run interpreted."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytorch import functional as F  # noqa: N812
from pytorch import torch

from mmjax.core.errors import UserError
from mmjax.nn.attend import _has_flash, attend, choose
from mmjax.nn.fused_attention import fits
from mmjax.parallel.mesh import Mesh, use_mesh

B = 4


def arrays(tokens, attended, heads, kv_heads, width, seed=0):
    draw = np.random.default_rng(seed).normal
    shapes = ((B, tokens, heads, width), (B, attended, kv_heads, width), (B, attended, kv_heads, width))
    return tuple(draw(size=shape).astype(np.float32) for shape in shapes)


def a_mask(attended, seed=1):
    mask_BS = np.random.default_rng(seed).random((B, attended)) < 0.7
    mask_BS[:, 0] = True
    return mask_BS


def ids(tokens, attended):
    """Two texts in a row, cut at another place in each."""
    return tuple((np.arange(n)[None] >= np.array([[1], [2], [3], [2]])).astype(np.int32) for n in (tokens, attended))


def torchs(q, k, v, mask, segments, causal, upstream):
    """Output and gradients of torch's attention."""
    q, k, v = (torch.from_numpy(x).double().requires_grad_() for x in (q, k, v))
    seen = torch.from_numpy(mask)[:, None, None, :].expand(-1, 1, q.shape[1], -1)
    if causal:
        seen = seen & torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).bool()
    if segments is not None:
        a, b = (torch.from_numpy(x) for x in segments)
        seen = seen & (a[:, :, None] == b[:, None, :])[:, None]
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=seen, enable_gqa=True)
    out.transpose(1, 2).backward(torch.from_numpy(upstream).double())
    return [x.detach().numpy() for x in (out.transpose(1, 2), q.grad, k.grad, v.grad)]


def ours(q, k, v, mask, segments, causal, kind, upstream):
    def run(q, k, v):
        return attend(q, k, v, jnp.asarray(mask), segments and tuple(map(jnp.asarray, segments)), causal, kind)

    @jax.jit
    def both(q, k, v):
        out, vjp = jax.vjp(run, q, k, v)
        return (out, *vjp(jnp.asarray(upstream)))

    return both(q, k, v)


def check(kind, tokens, attended, heads, kv_heads, width, causal=False, segments=None):
    q, k, v = arrays(tokens, attended, heads, kv_heads, width)
    upstream = np.random.default_rng(2).normal(size=q.shape).astype(np.float32)
    mask = a_mask(attended)
    if segments is not None:
        mask[:, :4] = True  # each text has a token left
    expected = torchs(q, k, v, mask, segments, causal, upstream)
    for a, b in zip(ours(q, k, v, mask, segments, causal, kind, upstream), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


FUSED = [(19, 19, 4, 4, 64, False), (7, 12, 4, 2, 32, True), (1, 9, 2, 2, 128, False), (70, 70, 2, 1, 64, True)]


@pytest.mark.parametrize(("tokens", "attended", "heads", "kv_heads", "width", "causal"), FUSED)
def test_fused_is_torchs(tokens, attended, heads, kv_heads, width, causal):
    check("fused", tokens, attended, heads, kv_heads, width, causal)


@pytest.mark.parametrize(("tokens", "attended", "causal"), [(19, 150, False), (19, 150, True), (140, 140, True)])
def test_splash_is_torchs(tokens, attended, causal):
    check("splash", tokens, attended, 2, 1, 64, causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["plain", "fused", "splash"])
def test_segments_see_only_themselves(kind, causal):
    check(kind, 20, 20, 2, 2, 64, causal, ids(20, 20))


def test_padding_of_packed_rows_is_the_mean_of_all_values_in_every_kernel():
    """A query of padding, whose id padding's keys have too: their mask hides these."""
    q, k, v = arrays(20, 20, 2, 2, 64)
    own = np.where(np.arange(20)[None] < 15, ids(20, 20)[0], -1)
    for kind in ("plain", "fused", "splash"):
        out = ours(q, k, v, own >= 0, (own, own), False, kind, np.ones_like(q))[0]
        mean = np.broadcast_to(v.mean(1, keepdims=True), v.shape)
        np.testing.assert_allclose(out[:, 15:], mean[:, 15:], atol=1e-6)
        assert not np.allclose(out[:, :15], mean[:, :15], atol=1e-2)


@given(st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_plain_is_torchs(tokens, attended, causal):
    check("plain", tokens, attended, 2, 1, 4, causal and tokens <= attended)


def test_a_query_that_sees_nothing_attends_evenly_and_moves_no_logit():
    q, k, v = arrays(5, 6, 2, 2, 64)
    none = np.zeros((B, 6), bool)
    out, dq, dk, _ = ours(q, k, v, none, None, False, "fused", np.ones_like(q))
    np.testing.assert_allclose(out, np.broadcast_to(v.mean(1, keepdims=True), out.shape), atol=1e-6)
    assert not np.any(dq) and not np.any(dk)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_the_same_over_examples_tokens_and_heads(kind, causal):
    q, k, v = arrays(4, 4, 4, 4, 64)
    upstream = np.random.default_rng(2).normal(size=q.shape).astype(np.float32)
    alone = ours(q, k, v, a_mask(4), None, causal, kind, upstream)
    with use_mesh(Mesh(data=2, sequence=2, tensor=2).build()):
        split = ours(q, k, v, a_mask(4), None, causal, kind, upstream)
    for a, b in zip(split, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def test_half_precision_is_near_float32():
    q, k, v = arrays(19, 19, 4, 4, 64)
    half = tuple(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    exact = attend(*(x.astype(jnp.float32) for x in half), kind="plain")
    for kind in ("plain", "fused"):
        out = attend(*half, kind=kind)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.02)


def test_what_is_chosen_where():
    image, long, narrow = (8, 196, 12, 64), (8, 2048, 16, 128), (8, 196, 3, 40)
    take = functools.partial(choose, "auto")
    assert take(image, image, jnp.float32) == "plain"  # this is a CPU
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmjax.nn.attend.platform", lambda: "tpu")
        assert take(image, image, jnp.bfloat16) == "fused"
        assert take((8, 1, 12, 64), image, jnp.bfloat16) == "plain"
        assert take(long, long, jnp.bfloat16) == "splash"
        assert take(narrow, narrow, jnp.bfloat16) == "plain"
        assert take(image, image, jnp.bfloat16, drop=True) == "plain"
        patch.setattr("mmjax.nn.attend.platform", lambda: "gpu")
        assert take(image, image, jnp.bfloat16) == "cudnn"
        assert take((8, 197, 12, 64), (8, 197, 12, 64), jnp.bfloat16) == "cudnn"
        assert take((8, 1, 12, 64), image, jnp.bfloat16) == "plain"
        assert take(image, image, jnp.float32) == "plain"
        patch.setattr("mmjax.nn.attend._has_flash", lambda: False)  # a T4, or a GPU that is not NVIDIA's
        assert take(image, image, jnp.bfloat16) == "plain"
        with pytest.raises(UserError, match=r"needs an NVIDIA GPU of compute capability 8.0 \(Ampere\) or newer; use auto"):
            choose("cudnn", image, image, jnp.bfloat16)


@pytest.mark.parametrize(
    ("version", "capability", "has"),
    [
        ("PJRT C API\ncuda 13000", "9.0", True),
        ("PJRT C API\ncuda 12080", "7.5", False),
        ("cuda 13000", "12.0", True),
        ("PJRT C API\nrocm 60300", "gfx942", False),
    ],
)
def test_which_gpus_have_flash_attention(version, capability, has, monkeypatch):
    device = SimpleNamespace(client=SimpleNamespace(platform_version=version), compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda backend: [device])
    assert _has_flash.__wrapped__() == has


def test_a_gpu_that_is_not_here_has_flash_attention():
    assert _has_flash.__wrapped__()


def test_what_cannot_be_had_is_refused():
    shape = (8, 196, 12, 64)
    with pytest.raises(UserError, match="use one of auto, plain, fused"):
        choose("fussed", shape, shape, jnp.float32)
    with pytest.raises(UserError, match="cannot take 196 x 196 tokens, 12 heads of width 64 in float32; use auto or plain"):
        choose("cudnn", shape, shape, jnp.float32)
    with pytest.raises(UserError, match="dropout of its weights"):
        choose("fused", shape, shape, jnp.float32, drop=True)


def test_what_fits():
    assert fits(12, 64, 196, 196) and fits(8, 128, 512, 64)
    assert not fits(3, 64, 196, 196)  # half a register would be left over
    assert not fits(16, 72, 196, 196) and not fits(12, 64, 513, 64)


@pytest.fixture
def jaxs_own(monkeypatch):
    """JAX's own arithmetic in place of cuDNN for the same call, in float32 and strict about the lengths that JAX refuses."""
    real = jax.nn.dot_product_attention

    def stand_in(q, k, v, mask=None, is_causal=False, implementation=None):
        assert implementation == "cudnn"
        assert mask is None or (mask.shape == (q.shape[0], 1, q.shape[1], k.shape[1]) and mask.dtype == bool)
        assert mask is None or (q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0)
        with jax.numpy_dtype_promotion("standard"):
            return real(q, k, v, mask=mask, is_causal=is_causal, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr("mmjax.nn.attend.choose", lambda kind, *rest: kind)


CUDNN = [
    (19, 19, 4, 2, False),
    (20, 20, 2, 2, True),
    (19, 19, 2, 1, True),
    (2, 5, 2, 2, True),
    (1, 9, 2, 2, False),
    (7, 12, 4, 2, True),
]


@pytest.mark.parametrize(("tokens", "attended", "heads", "kv_heads", "causal"), CUDNN)
def test_what_cudnn_is_asked_for_is_torchs(jaxs_own, tokens, attended, heads, kv_heads, causal):
    check("cudnn", tokens, attended, heads, kv_heads, 16, causal)


@pytest.mark.parametrize("tokens", [20, 21])
def test_segments_see_only_themselves_with_cudnn(jaxs_own, tokens):
    check("cudnn", tokens, 20, 2, 2, 16, segments=ids(tokens, 20))


def test_cudnn_is_given_no_mask_where_there_is_none(jaxs_own):
    q, k, v = arrays(5, 5, 2, 2, 16)  # odd: a mask would need padding
    for causal in (False, True):
        jaxpr = str(jax.make_jaxpr(lambda q, k, v, causal=causal: attend(q, k, v, causal=causal, kind="cudnn"))(q, k, v))
        assert "pad[" not in jaxpr
        np.testing.assert_allclose(
            attend(q, k, v, causal=causal, kind="cudnn"), attend(q, k, v, causal=causal, kind="plain"), atol=1e-6
        )


@pytest.mark.parametrize(("tokens", "causal"), [(5, False), (6, False), (6, True), (9, True)])
@pytest.mark.parametrize("kind", ["splash", "cudnn"])
def test_a_query_that_sees_nothing_is_the_plain_ones_in_every_kernel(jaxs_own, kind, tokens, causal):
    """An empty text, one padded on the left, and with more causal queries than keys those before the first key."""
    q, k, v = arrays(tokens, 6, 2, 1, 64)
    upstream = np.random.default_rng(2).normal(size=q.shape).astype(np.float32)
    mask = np.arange(6)[None] >= np.array([[6], [0], [3], [1]])
    plain, other = (ours(q, k, v, mask, None, causal, each, upstream) for each in ("plain", kind))
    for a, b in zip(other, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


LOWERED = [(16, 16, False, False), (17, 17, False, False), (16, 16, False, True), (17, 17, True, False), (16, 33, True, False)]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("tokens", "attended", "causal", "segmented"), LOWERED)
def test_cudnn_is_lowered_to_its_flash_attention(tokens, attended, causal, segmented, split, monkeypatch):
    """As far as a machine without a GPU goes: the program for one, forward and backward, calls cuDNN's kernels, whole and over
    a mesh; JAX, which refuses what cuDNN cannot do, takes all of it."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)
    q, k = (jax.ShapeDtypeStruct((8, n, 4, 64), jnp.bfloat16) for n in (tokens, attended))
    mask = jax.ShapeDtypeStruct((8, attended), bool)
    segments = tuple(jnp.zeros((8, n), jnp.int32) for n in (tokens, attended)) if segmented else None

    def total(q, k, v, mask):
        return jnp.sum(attend(q, k, v, mask, segments, causal, kind="cudnn").astype(jnp.float32))

    mesh = Mesh(data=2, sequence=2, tensor=2).build() if split else Mesh().build(jax.devices()[:1])
    with use_mesh(mesh):
        traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k, mask)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text and "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.types import Tokens
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer
from mmjax.models.encoders.text import join_context
from mmjax.nn.position import sincos_1d

SIZE = {"vocab_size": 11, "max_length": 6, "width": 8, "depth": 1, "heads": 2}
IDS = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
MASK = IDS > 0
IMAGE = Tokens(
    jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 8)), jnp.float32), jnp.array([[1, 1, 0], [1, 1, 1]], bool)
)


def drawn(model, *args, method=None):
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *(args or (IDS,)), method=method))["params"]
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape) * 0.3, x.dtype), shapes)


def bare(**fields):
    """A text side that only looks its words up."""
    return TextTransformer(**(SIZE | {"depth": 0, "positions": "none"} | fields))


def test_words_are_rows_of_the_table():
    params = drawn(bare())
    assert list(params) == ["words"]
    np.testing.assert_array_equal(bare().apply({"params": params}, IDS).embeddings, params["words"]["table"][IDS])


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_positions_and_segments_are_added(positions):
    model = bare(positions=positions, segments=2)
    params = drawn(model)
    segments = jnp.array([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
    table = sincos_1d(5, 8) if positions == "sincos" else params["position"]["table"][:5]
    words, kinds = params["words"]["table"], params["segment"]["table"]
    x = model.apply({"params": params}, IDS, None, segments)
    np.testing.assert_allclose(x.embeddings, words[IDS] + table[None] + kinds[segments], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(x.segments, segments)
    without = model.apply({"params": params}, IDS).embeddings
    np.testing.assert_allclose(without, words[IDS] + table[None] + kinds[jnp.zeros_like(IDS)], rtol=1e-5, atol=1e-6)


def test_a_narrow_word_table_is_projected():
    params = drawn(bare(embed_width=4))
    expected = params["words"]["table"][IDS] @ params["project_words"]["kernel"] + params["project_words"]["bias"][None, None]
    np.testing.assert_allclose(bare(embed_width=4).apply({"params": params}, IDS).embeddings, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_padding_changes_no_real_token(positions):
    model = TextTransformer(positions=positions, embed_norm=True, norm_placement="post", **SIZE)
    params = {"params": drawn(model)}
    run = jax.jit(model.apply)
    one, other = (run(params, ids, MASK).embeddings for ids in (IDS, jnp.where(MASK, IDS, 7)))
    np.testing.assert_array_equal(one[MASK], other[MASK])


def test_no_mask_means_all_real():
    tokens = bare().apply({"params": drawn(bare())}, IDS)
    assert bool(tokens.mask.all())
    np.testing.assert_array_equal(tokens.positions[0], np.arange(5))


def test_padding_counts_as_real_where_the_mask_hides_nothing():
    model = TextTransformer(mask_padding=False, **SIZE)
    params = {"params": drawn(model)}
    run = jax.jit(model.apply)
    padded, real = run(params, IDS, MASK), run(params, IDS)
    np.testing.assert_array_equal(padded.embeddings, real.embeddings)
    assert bool(padded.mask.all())


def test_a_text_too_long_is_refused_where_positions_are_learned():
    params = drawn(bare(positions="learned"))
    long = jnp.zeros((1, 7), jnp.int32)
    with pytest.raises(UserError, match="a text of 7 tokens is longer than the model's max_length=6"):
        bare(positions="learned").apply({"params": params}, long)
    assert bare(positions="sincos").apply({"params": params}, long).embeddings.shape == (1, 7, 8)


def test_the_first_position_may_be_a_later_row_of_the_table():
    model = bare(positions="learned", position_offset=2)
    params = drawn(model)
    words, table = params["words"]["table"], params["position"]["table"]
    assert table.shape == (SIZE["max_length"] + 2, 8)
    np.testing.assert_array_equal(model.apply({"params": params}, IDS).embeddings, words[IDS] + table[None, 2:7])


@pytest.mark.parametrize(("rates", "zeros"), [({"dropout": 0.5}, 0.5), ({"dropout": 0.5, "embed_dropout": 0.0}, 0.0)])
def test_the_embeddings_may_have_a_dropout_rate_of_their_own(rates, zeros):
    model = bare(width=64, heads=1, **rates)
    x = model.apply({"params": drawn(model)}, IDS, rngs={"dropout": jax.random.key(0)}).embeddings
    assert np.mean(np.asarray(x) == 0.0) == pytest.approx(zeros, abs=0.1)


def test_unknown_positions_are_refused():
    with pytest.raises(UserError, match="positions='alibi': use learned, sincos, rotary, relative or none"):
        drawn(bare(positions="alibi"))


def test_contexts_are_joined_in_the_order_of_their_names():
    other = Tokens(jnp.ones((2, 1, 8)), jnp.ones((2, 1), bool))
    x, mask = join_context({"video": other, "image": IMAGE})
    np.testing.assert_array_equal(x, jnp.concatenate([IMAGE.embeddings, other.embeddings], axis=1))
    np.testing.assert_array_equal(mask, jnp.concatenate([IMAGE.mask, other.mask], axis=1))
    assert join_context({}) is None
    assert join_context(None) is None


def decoder(**fields):
    model = TextDecoder(**(SIZE | fields))
    params = {"params": drawn(model, IDS, MASK, {"image": IMAGE}, method="decode")}
    run = jax.jit(lambda ids, image: model.apply(params, ids, MASK, {"image": image}, method="decode"))
    return run, params["params"]


def test_a_decoder_predicts_from_what_came_before_and_from_real_context():
    run, params = decoder()
    logits = run(IDS, IMAGE)
    assert logits.shape == (2, 5, 11)
    assert "logits" not in params

    later = run(IDS.at[:, 3].set(8), IMAGE)
    np.testing.assert_array_equal(later[:, :3], logits[:, :3])
    assert not np.allclose(later[:, 3:], logits[:, 3:])

    padded = Tokens(jnp.where(IMAGE.mask[..., None], IMAGE.embeddings, 99.0), IMAGE.mask)
    np.testing.assert_array_equal(run(IDS, padded), logits)
    moved = Tokens(IMAGE.embeddings + jnp.arange(8.0)[None, None], IMAGE.mask)
    assert not np.allclose(run(IDS, moved), logits)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_a_narrow_decoder_are_float32_and_not_rounded(tied):
    model = TextDecoder(**(SIZE | {"tied": tied, "context": (), "output_bias": True}))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), drawn(model, IDS, MASK, method="decode"))
    logits = model.apply({"params": params}, IDS, MASK, method="decode")
    assert logits.dtype == jnp.float32
    assert np.mean(logits == logits.astype(jnp.bfloat16).astype(jnp.float32)) < 0.5


def test_a_decoder_may_have_an_output_matrix_of_its_own():
    assert decoder(tied=False, depth=0)[1]["logits"]["kernel"].shape == (8, 11)


def test_the_tied_output_is_the_word_table():
    run, params = decoder(depth=0, positions="none")
    table = params["words"]["table"]
    np.testing.assert_allclose(run(IDS, IMAGE), table[IDS] @ table.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_may_have_the_output_of_bert(tied):
    run, params = decoder(tied=tied, transform=True, output_bias=True, depth=0, positions="none", norm_epsilon=0.1)
    params = jax.tree.map(np.asarray, params)
    own = (params["words"]["table"].T, params["tied_bias"]) if tied else (params["logits"]["kernel"], params["logits"]["bias"])
    x = params["words"]["table"][IDS] @ params["project"]["kernel"] + params["project"]["bias"]
    x = np.asarray(jax.nn.gelu(x, approximate=False))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1)
    x = x * params["output_norm"]["scale"] + params["output_norm"]["bias"]
    np.testing.assert_allclose(run(IDS, IMAGE), x @ own[0] + own[1], rtol=1e-5, atol=1e-5)


def test_a_decoder_may_read_the_padding_of_its_context():
    run, _ = decoder(mask_context=False)
    everywhere = Tokens(IMAGE.embeddings, jnp.ones_like(IMAGE.mask))
    np.testing.assert_array_equal(run(IDS, IMAGE), run(IDS, everywhere))
    assert not np.allclose(run(IDS, IMAGE), decoder()[0](IDS, IMAGE))

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.models.encoders import ViT
from mmjax.nn.position import resize_grid, sincos_2d

SIZE = {"width": 8, "depth": 1, "heads": 2}
IMAGE = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)


def drawn(model, image=None):
    shapes = jax.eval_shape(model.init, jax.random.key(0), model.example() if image is None else image)["params"]
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape) * 0.3, x.dtype), shapes)


def bare(**fields):
    """A ViT that only embeds its patches."""
    return ViT(image_size=(8, 12), patch=(4, 2), **(SIZE | {"depth": 0, "positions": "none"} | fields))


def test_patches_are_projected_in_reading_order():
    params = drawn(bare())
    x = bare().apply({"params": params}, IMAGE).embeddings
    kernel, bias = (np.asarray(params["project_patches"][name]) for name in ("kernel", "bias"))
    assert x.shape == (2, 2 * 6, 8)
    for row in range(2):
        for column in range(6):
            patch = IMAGE[:, 4 * row : 4 * row + 4, 2 * column : 2 * column + 2].reshape(2, -1)
            np.testing.assert_allclose(x[:, 6 * row + column], patch @ kernel + bias, rtol=1e-4, atol=1e-5)


def test_no_layers_means_no_stack():
    assert list(drawn(bare())) == ["project_patches"]


def test_tokens_say_where_they_are():
    tokens = bare(cls_token=True).apply({"params": drawn(bare(cls_token=True))}, IMAGE)
    assert tokens.mask.shape == (2, 13)
    assert bool(tokens.mask.all())
    np.testing.assert_array_equal(tokens.positions[1], np.arange(13))


@pytest.mark.parametrize("cls_token", [False, True])
@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_positions_are_added_to_patches(cls_token, positions):
    model = bare(cls_token=cls_token, positions=positions)
    params = drawn(model)
    placed = np.asarray(model.apply({"params": params}, IMAGE).embeddings)
    plain = np.asarray(bare(cls_token=cls_token).apply({"params": params}, IMAGE).embeddings)
    added = np.broadcast_to(
        sincos_2d(2, 6, 8) if positions == "sincos" else np.asarray(params["position"]["table"])[-12:], (2, 12, 8)
    )
    np.testing.assert_allclose((placed - plain)[:, -12:], added, rtol=1e-4, atol=1e-5)
    if cls_token:
        first = np.zeros(8) if positions == "sincos" else params["position"]["table"][0]
        np.testing.assert_allclose(plain[:, 0], np.asarray(params["cls"]).repeat(2, axis=0))
        np.testing.assert_allclose((placed - plain)[0, 0], first, rtol=1e-4, atol=1e-5)


def test_learned_positions_are_interpolated_at_another_size():
    model = bare(cls_token=True, positions="learned")
    params = drawn(model)
    image = np.random.default_rng(2).normal(size=(1, 16, 8, 3)).astype(np.float32)
    added = model.apply({"params": params}, image).embeddings - bare(cls_token=True).apply({"params": params}, image).embeddings
    table = params["position"]["table"]
    np.testing.assert_allclose(added[0, 1:], resize_grid(table[1:], (2, 6), (4, 4)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(added[0, 0], table[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("positions", ["learned", "sincos", "rotary", "none"])
@pytest.mark.parametrize("size", [(8, 12), (4, 4), (12, 8)])
def test_any_whole_number_of_patches_goes_in(positions, size):
    model = ViT(image_size=(8, 12), patch=(4, 2), positions=positions, embed_norm=True, **SIZE)
    params = jax.eval_shape(model.init, jax.random.key(0), model.example())
    tokens = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((2, *size, 3), jnp.float32))
    patches = size[0] // 4 * size[1] // 2
    assert (tokens.embeddings.shape, tokens.mask.shape) == ((2, patches, 8), (2, patches))


def test_another_number_of_channels():
    shapes = jax.eval_shape(lambda: bare(channels=1).init(jax.random.key(0), bare(channels=1).example()))
    assert shapes["params"]["project_patches"]["kernel"].shape == (4 * 2 * 1, 8)


@pytest.mark.parametrize("size", [(9, 12), (8, 11)])
def test_an_image_that_is_no_whole_number_of_patches_is_refused(size):
    with pytest.raises(UserError, match=rf"image of {size[0]} x {size[1]} pixels is not a whole number of patches of 4 x 2"):
        bare().apply({"params": drawn(bare())}, np.zeros((1, *size, 3), np.float32))


def test_unknown_positions_are_refused():
    with pytest.raises(UserError, match="positions='alibi': use learned, sincos, rotary or none"):
        drawn(bare(positions="alibi"))

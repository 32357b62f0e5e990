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


def apply(model, params, *args, **kwargs):
    """A model's tokens, compiled: op by op would be compiled for each."""
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args, **kwargs))(params, *args)


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


def test_extra_tokens_come_after_the_first():
    model = bare(cls_token=True, extra_tokens=2, positions="learned")
    params = drawn(model)
    x = apply(model, params, np.zeros((1, 16, 8, 3), np.float32)).embeddings
    table, patch = params["position"]["table"], params["project_patches"]["bias"]
    first = jnp.concatenate([params["cls"], params["extra"]]) + table[:3]
    np.testing.assert_allclose(x[0, :3], first, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        x[0, 3:], patch[None] + jax.jit(resize_grid, static_argnums=(1, 2))(table[3:], (2, 6), (4, 4)), rtol=1e-4, atol=1e-5
    )


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
    with pytest.raises(UserError, match="positions='alibi': use learned, fixed, sincos, rotary or none"):
        drawn(bare(positions="alibi"))


def test_padding_of_images_is_masked_and_positions_are_of_each_ones_own_size():
    model = bare(cls_token=True, positions="learned", resize="bilinear")
    params = drawn(model)
    real = np.zeros((2, 8, 12), bool)
    real[0, :, :6], real[1, :4] = True, True
    tokens = apply(model, params, IMAGE, real)
    for row, (high, wide) in enumerate([(8, 6), (4, 12)]):
        np.testing.assert_array_equal(tokens.mask[row, 1:].reshape(2, 6), real[row, ::4, ::2])
        alone = apply(model, params, IMAGE[row : row + 1, :high, :wide]).embeddings[0]
        np.testing.assert_allclose(tokens.embeddings[row][tokens.mask[row]], alone, rtol=1e-5, atol=1e-5)


def test_several_images_follow_one_another():
    model = bare(images=2, cls_token=True)
    params = drawn(bare(cls_token=True))
    assert jax.tree.structure(drawn(model)) == jax.tree.structure(params)
    one = bare(cls_token=True).apply({"params": params}, IMAGE)
    both = model.apply({"params": params}, IMAGE[None])
    assert both.mask.shape == (1, 26)
    np.testing.assert_array_equal(both.embeddings.reshape(2, 13, 8), one.embeddings)


def test_bad_masks_and_numbers_of_images_are_refused():
    learned = bare(positions="learned")
    with pytest.raises(UserError, match="a mask of the image needs resize='bilinear'"):
        learned.apply({"params": drawn(learned)}, IMAGE, np.ones((2, 8, 12), bool))
    with pytest.raises(UserError, match="resize='linear': use bicubic or bilinear"):
        learned.copy(resize="linear").apply({"params": drawn(learned)}, IMAGE[:, :, :6])
    with pytest.raises(UserError, match=r"images=2: use an input \[B, 2, H, W, channels\], found \(2, 8, 12, 3\)"):
        bare(images=2).apply({"params": drawn(bare())}, IMAGE)


def test_the_mask_token_stands_for_masked_patches():
    model = bare(mask_token=True, cls_token=True)
    params = drawn(model)
    masked = np.arange(12)[None] % np.array([[2], [3]]) == 0
    shown = model.apply({"params": params}, IMAGE).embeddings
    hidden = model.apply({"params": params}, IMAGE, None, jnp.asarray(masked, jnp.int32)).embeddings
    np.testing.assert_array_equal(hidden[:, 0], shown[:, 0])
    want = np.where(masked[..., None], params["mask_token"][None], shown[:, 1:])
    np.testing.assert_array_equal(hidden[:, 1:], want)
    with pytest.raises(UserError, match="that needs mask_token=True, found False"):
        bare().init(jax.random.key(0), IMAGE, None, jnp.asarray(masked, jnp.int32))

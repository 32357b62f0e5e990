import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.flops import count_flops
from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Tokens
from mmjax.models import Multimodal, param_shapes
from mmjax.models.decoders import PixelDecoder
from mmjax.models.encoders import ViT
from mmjax.models.forward import BoundForward
from mmjax.nn.augment import ImageAugment
from mmjax.nn.position import resize_grid, sincos_2d
from mmjax.objectives import MaskedImage

SIZE = {"width": 8, "depth": 1, "heads": 2}
PLACE = {"image_size": (8, 12), "patch": (4, 2)}
DRAW = np.random.default_rng(0)
BATCH = {"image": DRAW.normal(size=(2, 8, 12, 3)).astype(np.float32), "index": np.arange(2, dtype=np.int32)}
KEEP = np.array([[7, 0, 3], [2, 11, 5]], np.int32)


def drawn(shapes):
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape) * 0.3, x.dtype), shapes)


def bare(**fields):
    """A decoder without layers, whose last norm is all that is between the tokens and the pixels."""
    return PixelDecoder(**(PLACE | SIZE | {"depth": 0, "firsts": 1} | fields))


def seen(positions=True):
    """The class token and three patches of each image."""
    places = np.concatenate([np.zeros((2, 1), np.int32), 1 + KEEP], axis=1)
    x = DRAW.normal(size=(2, 4, 5)).astype(np.float32)
    return Tokens(jnp.asarray(x), jnp.ones((2, 4), bool), jnp.asarray(places) if positions else None)


def of_decoder(decoder, tokens):
    shapes = jax.eval_shape(
        lambda: decoder.init(
            jax.random.key(0),
            decoder.example(),
            {"image": Tokens(jnp.zeros((1, 13, 5)), jnp.ones((1, 13), bool), jnp.arange(13)[None])},
            method="decode",
        )
    )
    params = drawn(shapes["params"])
    run = jax.jit(lambda params, image: decoder.apply({"params": params}, image, {"image": tokens}, method="decode"))
    return params, lambda image=BATCH["image"]: run(params, image)


def written_out(params, tokens, table):
    """The formula, in numpy, with the positions [T, D] given."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = np.broadcast_to(p["mask_token"], (2, len(table), 8)).copy()
    own = np.asarray(tokens.embeddings) @ p["project_tokens"]["kernel"] + p["project_tokens"]["bias"]
    for row in range(2):
        x[row, np.asarray(tokens.positions)[row]] = own[row]
    x += table
    x = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + 1e-6)
    x = x * p["stack"]["final_norm"]["scale"] + p["stack"]["final_norm"]["bias"]
    return x[:, 1:] @ p["project_pixels"]["kernel"] + p["project_pixels"]["bias"]


@pytest.mark.parametrize("positions", ["sincos", "learned", "fixed"])
def test_tokens_go_to_their_places_and_the_rest_is_masked(positions):
    tokens = seen()
    params, run = of_decoder(bare(positions=positions), tokens)
    names = {"learned": "position", "fixed": "fixed_position"}
    sines = np.pad(sincos_2d(2, 6, 8), ((1, 0), (0, 0)))
    table = np.asarray(params[names[positions]]["table"]) if positions in names else sines
    assert run().shape == (2, 12, 4 * 2 * 3)
    np.testing.assert_allclose(run(), written_out(params, tokens, table), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_an_image_of_another_size(positions):
    """Learned positions are interpolated along the sequence, others are those of the grid."""
    tokens = seen()
    params, run = of_decoder(bare(positions=positions), tokens)
    if positions == "learned":
        table = params["position"]["table"]
        table = np.concatenate([table[:1], jax.jit(resize_grid, static_argnums=(1, 2))(table[1:], (1, 12), (1, 16))])
    else:
        table = np.pad(sincos_2d(4, 4, 8), ((1, 0), (0, 0)))
    found = run(np.zeros((2, 16, 8, 3), np.float32))
    np.testing.assert_allclose(found, written_out(params, tokens, table), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "tokens", "said"),
    [
        ({"positions": "rotary"}, seen(), "positions='rotary': use sincos, learned, fixed, sequence"),
        ({"context": ("image", "text")}, seen(), r"context=\('image', 'text'\): a pixel decoder paints what one encoder saw"),
        ({}, seen(positions=False), r"context=\('image',\): its tokens do not say where they stand"),
        ({"patch": (5, 2)}, seen(), r"image of 8 x 12 pixels is not a whole number of patches of 5 x 2 \(patch\)"),
    ],
)
def test_refusals(fields, tokens, said):
    with pytest.raises(UserError, match=said):
        jax.eval_shape(lambda: bare(**fields).apply({}, BATCH["image"], {"image": tokens}, method="decode"))


def autoencoder(augment=None, **fields):
    return Multimodal(
        encoders={"image": ViT(**PLACE, **SIZE, cls_token=True, **fields)},
        decoders={"pixels": PixelDecoder(**PLACE, **SIZE, firsts=1)},
        augment={"image": augment} if augment else {},
        dtype="float32",
    )


def test_a_decoder_that_counts_other_first_tokens_is_refused():
    made = autoencoder().copy(encoders={"image": ViT(**PLACE, **SIZE)})
    with pytest.raises(UserError, match="firsts=1 tokens and the patches of an image are 13; the context gives 12"):
        param_shapes(made)


@pytest.mark.parametrize("positions", ["learned", "fixed", "sincos", "rotary"])
def test_kept_patches_are_encoded_as_if_there_were_no_others(positions):
    """Without layers, each is what it is in the whole image; and they come in the order they are named."""
    model = ViT(**PLACE, **(SIZE | {"depth": 0}), cls_token=True, positions=positions)
    params = drawn(jax.eval_shape(model.init, jax.random.key(0), model.example())["params"])
    both = jax.jit(lambda p, image: (model.apply({"params": p}, image), model.apply({"params": p}, image, keep=KEEP)))
    whole, some = both(params, BATCH["image"])
    places = np.concatenate([np.zeros((2, 1), np.int32), 1 + KEEP], axis=1)
    np.testing.assert_array_equal(some.positions, places)
    np.testing.assert_allclose(some.embeddings, np.take_along_axis(whole.embeddings, places[:, :, None], 1), rtol=1e-5)


def test_hidden_patches_are_not_seen_and_cost_nothing():
    params = drawn(param_shapes(autoencoder()))

    @jax.jit
    def encode(image, keep):
        return BoundForward(autoencoder(), params, BATCH).encode("image", {"image": image, "image_keep": keep}, "x").embeddings

    changed = BATCH["image"].copy()
    changed[0, :4, 2:4] += 5.0  # patch 1, which neither image keeps
    np.testing.assert_array_equal(encode(changed, KEEP), encode(BATCH["image"], KEEP))
    every = np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12))
    assert count_flops(encode, BATCH["image"], KEEP) < count_flops(encode, BATCH["image"], every) / 3


def test_fixed_positions_start_as_sines_and_get_no_gradient():
    bare_vit = ViT(**PLACE, **(SIZE | {"depth": 0}), cls_token=True, positions="fixed")
    init = jax.jit(lambda: bare_vit.init(jax.random.key(0, impl="unsafe_rbg"), bare_vit.example()))  # quick to compile
    table = init()["params"]["fixed_position"]["table"]
    np.testing.assert_array_equal(table, np.pad(sincos_2d(2, 6, 8), ((1, 0), (0, 0))))
    model, objective = autoencoder(positions="fixed"), MaskedImage(patch=(4, 2))
    key = jax.random.key(1, impl="unsafe_rbg")
    loss = lambda p: objective(BoundForward(model, p, BATCH), BATCH, key).sum  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(drawn(param_shapes(model)))
    still = {path for path, g in leaves_by_path(gradient).items() if not np.any(g)}
    assert still - {f"{part}/stack/layers/attention/k/bias" for part in ("encoders_image", "decoders_pixels")} == {
        "encoders_image/fixed_position/table"
    }


def test_the_augmented_image_is_what_is_painted():
    forward = BoundForward(autoencoder(ImageAugment(flip=1.0)), {}, BATCH, jax.random.key(0))
    assert forward.view("image") is forward.view("image")
    np.testing.assert_allclose(forward.view("image"), BATCH["image"][:, :, ::-1], atol=1e-6)
    np.testing.assert_array_equal(BoundForward(autoencoder(), {}, BATCH).view("image"), BATCH["image"])

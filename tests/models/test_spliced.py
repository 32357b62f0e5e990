import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.types import Tokens
from mmjax.models import Multimodal, param_shapes
from mmjax.models.decoders import DECODERS, SplicedDecoder
from mmjax.models.encoders import ViT
from mmjax.models.forward import BoundForward

PLACE = 50  # outside of the vocabulary
BARE = {"vocab_size": 11, "width": 4, "depth": 0, "heads": 1, "positions": "none", "place": PLACE}
DRAW = np.random.default_rng(0).normal
IMAGE = Tokens(jnp.asarray(DRAW(size=(2, 3, 6)), jnp.float32), jnp.ones((2, 3), bool))
IDS = jnp.array([[3, PLACE, PLACE, 4, 5], [PLACE, 7, 2, PLACE, 1]])


def drawn(model):
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IDS, None, {"image": IMAGE}, method="decode"))["params"]
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape) * 0.3, x.dtype), shapes)


def run(model, params, ids=IDS, image=IMAGE):
    context = {} if image is None else {"image": image}
    return model.apply({"params": params}, ids, None, context, method="decode")


def test_tokens_stand_at_their_places_in_their_order():
    model = SplicedDecoder(**BARE, project_activation="relu")
    params = drawn(model)
    arrays = jax.tree.map(np.asarray, params)
    words, first, second = arrays["words"]["table"], arrays["project_in"], arrays["project_out"]
    hidden = np.maximum(np.asarray(IMAGE.embeddings) @ first["kernel"] + first["bias"], 0)
    image = hidden[:, 1:] @ second["kernel"] + second["bias"]
    rows = [
        [words[3], image[0, 0], image[0, 1], words[4], words[5]],
        [image[1, 0], words[7], words[2], image[1, 1], words[1]],
    ]
    expected = np.array(rows) @ words.T
    for ids in (IDS, np.asarray(IDS)):
        np.testing.assert_allclose(run(model, params, ids), expected, rtol=1e-4, atol=1e-6)


def test_within_jit_a_place_too_many_keeps_its_word_and_a_token_too_many_is_left_out():
    model = SplicedDecoder(**BARE | {"place": 7})
    params = drawn(model)
    ids = jnp.array([[7, 7, 7], [7, 7, 7]])
    logits, words = jax.jit(lambda ids: run(model, params, ids))(ids), run(model, params, ids, None)
    np.testing.assert_allclose(logits[:, 2], words[:, 2], rtol=1e-6)
    assert not np.allclose(logits[:, 1], words[:, 1])
    fewer = jax.jit(lambda ids: run(model, params, ids))(ids.at[:, 1:].set(3))
    np.testing.assert_allclose(fewer[:, 0], logits[:, 0], rtol=1e-6)


@pytest.mark.parametrize(("row", "found"), [([PLACE] * 3 + [4, 5], 3), ([PLACE, 4, 4, 4, 4], 1), ([1, 2, 3, 4, 5], 0)])
def test_outside_jit_another_number_of_places_is_refused(row, found):
    model = SplicedDecoder(**BARE)
    params = drawn(model)
    for ids in (IDS.at[1].set(jnp.array(row)), np.array([IDS[0], row])):
        with pytest.raises(UserError, match=rf"^place=50: text 1 has {found} of this id, and its image has 2 tokens"):
            run(model, params, ids)


@pytest.mark.parametrize("tied", [True, False])
def test_without_a_head_it_gives_the_last_layers_result(tied):
    whole = SplicedDecoder(**BARE, tied=tied)
    params = drawn(whole)
    bare = whole.copy(headless=True)
    shapes = drawn(bare)
    assert shapes.keys() == params.keys() - {"logits"}
    table = params["words"]["table"].T if tied else params["logits"]["kernel"]
    hidden = run(bare, {name: params[name] for name in shapes})
    np.testing.assert_allclose(np.asarray(hidden) @ np.asarray(table), run(whole, params), rtol=1e-5, atol=1e-6)


def test_no_skip_takes_the_first_token_too():
    model = SplicedDecoder(**BARE, skip=0)
    params = drawn(model)
    moved = Tokens(IMAGE.embeddings.at[:, 0].add(1.0), IMAGE.mask)
    ids = IDS.at[:, -1].set(PLACE)
    changed = jnp.abs(run(model, params, ids) - run(model, params, ids, moved)).max(axis=-1) > 0
    np.testing.assert_array_equal(changed, [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]])


def test_a_context_of_several_is_refused():
    with pytest.raises(UserError, match="a spliced decoder has the tokens of one encoder in its text"):
        drawn(SplicedDecoder(**BARE | {"context": ("image", "video")}))


def test_in_a_model_it_reads_the_image_and_what_came_before():
    size = {"width": 8, "depth": 2, "heads": 2}
    decoder = DECODERS["spliced"](**size, vocab_size=11, positions="rotary", place=PLACE, skip=1)
    image = ViT(image_size=(4, 4), patch=(2, 4), cls_token=True, take_layer=1, **size)
    model = Multimodal(encoders={"image": image}, decoders={"caption": decoder}, dtype="float32")
    draw = np.random.default_rng(1).normal
    params = jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape) * 0.3, x.dtype), param_shapes(model))

    @jax.jit
    def logits(p, pixels):
        batch = {"image": pixels, "text": IDS, "text_mask": jnp.ones(IDS.shape, bool)}
        forward = BoundForward(model, p, batch)
        return forward.decode("caption", batch, {"image": forward.encode("image")})

    pixels = jnp.asarray(DRAW(size=(2, 4, 4, 3)), jnp.float32)
    changed = jnp.abs(logits(params, pixels) - logits(params, pixels.at[:, 2:].add(1.0))).max(axis=-1) > 0
    np.testing.assert_array_equal(changed, [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    gradient = jax.jit(jax.grad(lambda p: logits(p, pixels).sum()))(params)["encoders_image"]["stack"]
    used = jax.tree.map(lambda g: jnp.abs(g).reshape(g.shape[0], -1).max(axis=1) > 0, gradient["layers"]["mlp"])
    np.testing.assert_array_equal(used["down"]["kernel"], [True, False])
    assert not np.any(gradient["final_norm"]["scale"])

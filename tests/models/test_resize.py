"""Tables of positions at another size: the numbers that the model adds when it resizes them on the fly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.trees import leaves_by_path
from mmjax.models import Multimodal, init_params
from mmjax.models.decoders import PixelDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.forward import BoundForward
from mmjax.models.resize import position_tables, resize_positions, resized_model

SIZE = {"width": 8, "heads": 2, "depth": 1}


def model(**changes):
    image = ViT(image_size=(8, 12), patch=(4, 4), **{"cls_token": True, **SIZE, **changes})
    return Multimodal(encoders={"image": image, "text": TextTransformer(vocab_size=9, max_length=6, **SIZE)})


@pytest.mark.parametrize(
    "changes",
    [{}, {"cls_token": False}, {"extra_tokens": 1}, {"resize": "bilinear"}, {"positions": "fixed"}],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items()) or "learned",
)
def test_an_image_of_the_new_size_is_read_alike(changes):
    old = model(**changes)
    new = resized_model(old, {"image": (16, 8)})
    params = init_params(old, jax.random.key(0))
    params = {**params, "encoders_image": {**params["encoders_image"]}}
    resized, paths = resize_positions(params, old, new)
    assert len(paths) == 1 and paths[0] in position_tables(old)
    assert {p: x.shape for p, x in leaves_by_path(resized).items() if p not in paths} == {
        p: x.shape for p, x in leaves_by_path(params).items() if p not in paths
    }
    picture = np.random.default_rng(0).normal(size=(2, 16, 8, 3)).astype(np.float32)
    before, after = (
        BoundForward(m, p, {"image": jnp.asarray(picture)}).encode("image") for m, p in ((old, params), (new, resized))
    )
    np.testing.assert_allclose(before.embeddings, after.embeddings, atol=1e-6)


@pytest.mark.parametrize("positions", ["sincos", "rotary", "none"])
def test_positions_that_are_no_table_have_nothing_to_resize(positions):
    old = model(positions=positions)
    params = init_params(old, jax.random.key(0))
    assert resize_positions(params, old, resized_model(old, {"image": (16, 8)})) == (params, [])


@pytest.mark.parametrize("other", [model(extra_tokens=2), model(positions="fixed")], ids=["first tokens", "another kind"])
def test_what_differs_otherwise_is_left(other):
    old = model()
    params = init_params(old, jax.random.key(0))
    assert resize_positions(params, old, resized_model(other, {"image": (16, 8)}))[1] == []


def test_a_pixel_decoders_are_one_sequence():
    encoder = ViT(image_size=(8, 8), patch=(4, 4), cls_token=True, positions="fixed", **SIZE)
    decoder = PixelDecoder(image_size=(8, 8), patch=(4, 4), firsts=1, positions="learned", **SIZE)
    old = Multimodal(encoders={"image": encoder}, decoders={"pixels": decoder})
    new = resized_model(old, {"image": (12, 12)})
    assert new.decoders["pixels"].image_size == (12, 12)
    params = init_params(old, jax.random.key(0))
    resized, paths = resize_positions(params, old, new)
    assert sorted(paths) == ["decoders_pixels/position/table", "encoders_image/fixed_position/table"]
    picture = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    made = []
    for m, p in ((old, params), (new, resized)):
        forward = BoundForward(m, p, {"image": jnp.asarray(picture)})
        made.append(forward.decode("pixels", forward.batch, {"image": forward.encode("image")}))
    np.testing.assert_allclose(made[0], made[1], atol=1e-6)

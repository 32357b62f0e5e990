import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.models import Multimodal
from mmjax.models.encoders import ResNet
from mmjax.models.forward import BoundForward, whole_shapes
from mmjax.models.heads import Classifier

SMALL = {"widths": (8, 12), "depths": (2, 1), "block": "basic", "stem_width": 8}
IMAGE = np.random.default_rng(0).normal(size=(4, 9, 14, 3)).astype(np.float32)
KEY = jax.random.key(0)


def model(**fields):
    return Multimodal(encoders={"image": ResNet(**(SMALL | fields))}, heads={"classes": Classifier(classes=3)})


def drawn(of):
    draw = np.random.default_rng(1).uniform
    return jax.tree.map(lambda x: jnp.asarray(draw(0.1, 0.5, x.shape), x.dtype), whole_shapes(of))


@jax.jit
def trained(params, batch):
    """Logits of a training step, of its second use, and what is written."""
    forward = BoundForward(model(), params, batch, KEY)
    first, again = forward.head("classes"), forward.encode("image")
    return first, again.embeddings, [written for written in forward.written() if written]


def test_tokens_are_the_last_grid_in_reading_order():
    bare = ResNet(**SMALL)
    shapes = jax.eval_shape(lambda: bare.init(KEY, IMAGE))
    tokens = jax.eval_shape(bare.apply, shapes, IMAGE)
    assert (tokens.embeddings.shape, tokens.mask.shape, tokens.grid) == ((4, 4, 12), (4, 4), (2, 2, 0))
    assert jax.eval_shape(lambda t: t.raster("it"), tokens).shape == (4, 2, 2, 12)


def test_the_published_sizes():
    sizes = {
        25_557_032: ResNet(),  # He 2015's ResNet-50, with its 1000 classes
        11_689_512: ResNet(block="basic", widths=(64, 128, 256, 512), depths=(2, 2, 2, 2)),
    }
    for count, encoder in sizes.items():
        shapes = jax.eval_shape(lambda e=encoder: e.init(KEY, jnp.zeros((1, 64, 64, 3))))["params"]
        head = 1000 * (encoder.widths[-1] + 1)
        assert sum(x.size for x in jax.tree.leaves(shapes)) + head == count


def test_equal_blocks_are_stacked_and_the_first_stands_apart_where_it_differs():
    paths = leaves_by_path(whole_shapes(model()))
    stages = {"/".join(path.split("/")[1:3]) for path in paths if path.startswith("encoders_image/stage")}
    assert stages == {"stage_0/layers", "stage_1/first"}
    assert paths["encoders_image/stage_0/layers/conv_2/convolve/kernel"].shape == (2, 3, 3, 8, 8)


def test_rows_that_do_not_count_change_no_statistic_and_no_other_row():
    params = drawn(model())
    valid = np.array([True, False, True, True])
    batch = {"image": IMAGE, "index": np.arange(4), "valid": valid}
    logits, _, (written,) = trained(params, batch)
    other = np.where(valid[:, None, None, None], IMAGE, 50.0)
    same, _, (again,) = trained(params, {**batch, "image": other, "image_valid": np.ones(4, bool)})
    np.testing.assert_allclose(logits[valid], same[valid], rtol=1e-5, atol=1e-6)
    assert written.keys() == {
        path.removeprefix("variables/") for path in leaves_by_path(params) if path.startswith("variables")
    }
    for path, x in written.items():
        np.testing.assert_allclose(x, again[path], rtol=1e-5, atol=1e-6, err_msg=path)
    _, _, (whole,) = trained(params, {**batch, "image": other, "valid": np.ones(4, bool), "image_valid": valid})
    for path, x in written.items():
        np.testing.assert_allclose(x, whole[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_tower_of_which_nothing_is_trained_is_as_in_evaluation():
    params, batch = drawn(model()), {"image": IMAGE, "index": np.arange(4)}

    @jax.jit
    def both(params):
        still = BoundForward(model(), params, batch, KEY, still={"encoders_image"})
        said = still.head("classes"), still.with_(inputs={"image": IMAGE}).head("classes")
        assert not any(still.written())
        return *said, BoundForward(model(), params, batch).head("classes")

    for said in both(params)[:2]:
        np.testing.assert_allclose(said, both(params)[2], rtol=1e-6)


def test_recomputing_and_laying_out_change_nothing():
    small = {"widths": (8,), "depths": (2,)}
    params, batch = drawn(model(**small)), {"image": IMAGE, "index": np.arange(4)}

    def gradient(**fields):
        def loss(own):
            forward = BoundForward(model(**small, **fields), {**params, **own}, batch, KEY)
            return jnp.sum(forward.head("classes") ** 2), forward.written()

        return jax.jit(jax.grad(loss, has_aux=True))({"encoders_image": params["encoders_image"]})

    one, other = leaves_by_path(gradient()), leaves_by_path(gradient(remat="full", unroll=True))
    for path, x in one.items():
        np.testing.assert_allclose(other[path], x, rtol=1e-4, atol=1e-4 * float(jnp.abs(x).max()), err_msg=path)


def test_groups_need_no_statistics_and_take_micro_batches():
    grouped = model(norm="group", groups=4)
    assert not grouped.encoders["image"].in_batch and model().encoders["image"].in_batch
    assert "variables" not in whole_shapes(grouped)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": "wide"}, "block='wide': use one of basic, bottleneck"),
        ({"norm": "layer"}, "norm='layer': use one of batch, group"),
        ({"remat": "dots"}, "remat='dots': use one of none, full"),
        ({"depths": (1,)}, r"widths=\(8, 12\) and depths=\(1,\): give one of each for every stage"),
        ({"block": "bottleneck", "widths": (8, 10)}, r"widths=\(8, 10\): of a bottleneck they are multiples of 4"),
        ({"channels": 1}, r"channels=1: use images \[B, H, W, 1\], found \(4, 9, 14, 3\)"),
        ({"norm": "group", "groups": 3}, "groups=3 of norm='group' does not divide width=8"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(ResNet(**(SMALL | fields)).init, KEY, IMAGE)


def test_a_mask_of_the_image_is_refused():
    with pytest.raises(UserError, match="a mask of the image: convolutions read over its edge"):
        jax.eval_shape(ResNet(**SMALL).init, KEY, IMAGE, np.ones((4, 9, 14), bool))

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmjax.adapt import Bottleneck, LoRA, adapted
from mmjax.adapt.adaptation import trained_patterns
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, map_with_path, match_any
from mmjax.models import Multimodal
from mmjax.models.encoders import ConvNeXt, ResNet
from mmjax.models.forward import BoundForward
from mmjax.models.fusion import Dual
from mmjax.train.optimizer import NO_DECAY

SMALL = {"widths": (8, 12), "depths": (2, 2), "patch": (2, 2)}
IMAGE = np.random.default_rng(0).normal(size=(64, 8, 12, 3)).astype(np.float32)
KEY = jax.random.key(0)


def drawn(encoder):
    shapes = jax.eval_shape(encoder.init, KEY, encoder.example())["params"]
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape) * 0.3, x.dtype), shapes)


def test_tokens_are_the_last_grid_in_reading_order_and_edges_are_left_out():
    encoder = ConvNeXt(**SMALL, final_norm=True)
    params = {"params": jax.eval_shape(lambda: drawn(encoder))}
    tokens = jax.eval_shape(encoder.apply, params, np.zeros((2, 9, 13, 3), np.float32))
    assert (tokens.embeddings.shape, tokens.mask.shape, tokens.grid) == ((2, 6, 12), (2, 6), (2, 3, 0))


def test_the_published_sizes():
    for count, encoder in ((28_589_128, ConvNeXt()), (28_635_496, ConvNeXt(layer_scale=0.0, response_norm=True))):
        shapes = jax.eval_shape(lambda e=encoder: e.init(KEY, e.example()))["params"]
        head = 1000 * 769 + 2 * 768  # and the norm of what is pooled
        assert sum(x.size for x in jax.tree.leaves(shapes)) + head == count


def test_norms_scales_and_biases_are_not_decayed():
    paths = leaves_by_path(jax.eval_shape(lambda: drawn(ConvNeXt(**SMALL, response_norm=True))))
    assert {path.rpartition("/")[2] for path in paths if not match_any(NO_DECAY, path)} == {"kernel"}


def test_later_blocks_are_skipped_more_often():
    """Of four blocks at rates 0, 1/6, 1/3 and 1/2; what is kept of the last is doubled."""
    encoder = ConvNeXt(**SMALL, drop_path=0.5)
    params = drawn(encoder)

    def only(stage, layer):
        """Only this block's branch gives anything."""

        def kept(path, x):
            layers = np.arange(2) == (layer if f"stage_{stage}/" in path else -1)
            return jnp.where(layers[:, None], x, 0.0) if path.endswith("mlp_layer_scale") else x

        return map_with_path(kept, params)

    @jax.jit
    def run(params, key):
        return encoder.apply({"params": params}, IMAGE, rngs=None if key is None else {"dropout": key}).embeddings

    none = run(only(9, 0), None)
    for number, rate in enumerate((0.0, 1 / 6, 1 / 3, 1 / 2)):
        own = only(number // 2, number % 2)
        moved = run(own, KEY) - none
        skipped = np.abs(np.asarray(moved)).max(axis=(1, 2)) == 0
        assert abs(skipped.mean() - rate) < 0.15
        if number == 3:
            np.testing.assert_allclose(moved[~skipped], 2 * (run(own, None) - none)[~skipped], rtol=1e-3, atol=1e-4)


def test_adapters_act_in_its_feed_forward_layers_and_a_resnet_has_none():
    model = Multimodal(encoders={"image": ConvNeXt(**{**SMALL, "depths": (1, 1)}, layer_scale=1.0)})
    params = {"encoders_image": drawn(model.encoders["image"])}

    @jax.jit
    def run(params):
        return BoundForward(model, params, {"image": IMAGE[:2]}).encode("image").embeddings

    plain = run(params)
    methods = {"*/stage_1/layers/mlp/down/kernel": Bottleneck(r=2), "*/stage_0/*/up/kernel": LoRA(r=2)}
    added = adapted(model, params, methods, KEY)
    np.testing.assert_allclose(run(added), plain, rtol=1e-6, atol=1e-6)
    for leaf in ("lora_b", "bottleneck_up"):
        moved = map_with_path(lambda path, x, leaf=leaf: x + 1.0 if path.endswith(leaf) else x, added)
        assert np.abs(run(moved) - plain).max() > 0.01, leaf
    bare = Multimodal(encoders={"image": ResNet(widths=(8,), depths=(1,))})
    with pytest.raises(UserError, match="adapt: 'all-linear' matches no kernel; only linear layers are adapted"):
        trained_patterns(bare, {"all-linear": LoRA(r=2)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"remat": "dots"}, "remat='dots': use one of none, full"),
        ({"widths": ()}, r"widths=\(\) and depths=\(2, 2\): give one of each for every stage"),
        ({"patch": (16, 2)}, "of 8 x 12 is smaller than a window of 16 x 2: use larger images"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(ConvNeXt(**(SMALL | fields)).init, KEY, IMAGE)


def test_images_and_captions_are_learned_with_a_convolutional_tower():
    model = tiny.small_model()
    image = ConvNeXt(widths=(8,), depths=(2,), patch=(2, 2), layer_scale=1.0, drop_path=0.1, final_norm=True)
    model = model.copy(encoders={**model.encoders, "image": image}, fusions={"dual": Dual(width=16, project=("image",))})
    made = tiny.experiment(model=model, tasks=tiny.tasks("contrastive"), evaluate={})
    _, _, losses = tiny.states(made, steps=12)
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.1

import functools

import jax
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mmjax.adapt import IA3, Bottleneck, LoRA, Prefix, Prompt, adapted
from mmjax.adapt.places import places_of
from mmjax.core.trees import leaves_by_path, nested
from mmjax.models import Multimodal, param_shapes
from mmjax.models.cached import CachedClassifier
from mmjax.models.codebook import Codebook
from mmjax.models.decoders import PixelDecoder, SplicedDecoder, TextDecoder
from mmjax.models.encoders import AudioTransformer, ConvNeXt, ResNet, TextTransformer, ViT, WaveformTransformer
from mmjax.models.forward import whole_shapes
from mmjax.models.fusion import FUSIONS, Concatenate, Cross, Dual, SingleStream, Weighted
from mmjax.models.heads import Classifier, DistilledClassifier, OrdinalClassifier, TokenClassifier
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.rules import RULES, rows, shardings, spec
from mmjax.train.config_file import load_config, shipped_configs
from mmjax.train.narrow import narrowed

AXES = {"data": 1, "fsdp": 4, "tensor": 2}


def every_part():
    """A model that has every parameter there is."""
    size = {"width": 8, "heads": 2, "depth": 2}
    gated = {"activation": "swiglu", "norm": "rmsnorm", "kv_heads": 1, "layer_scale": 0.1}
    text = {"vocab_size": 32, "max_length": 8, **size}
    wide = size | {"width": 16}
    return Multimodal(
        encoders={
            "image": ViT(image_size=(8, 8), patch=(4, 4), cls_token=True, embed_norm=True, **size),
            "video": ViT(image_size=(8, 8), patch=(4, 4), positions="rotary", extra_tokens=1, mask_token=True, **size, **gated),
            "text": TextTransformer(segments=2, embed_norm=True, norm_placement="post", **text),
            "source": TextTransformer(positions="relative", **text),
            "title": TextTransformer(embed_width=4, positions="rotary", **text, **gated),
        },
        fusions={
            "dual": Dual(width=8, pool={"image": "attention", "text": "last"}, bias=True, heads=2),
            "cross": Cross(**size),
            "both": Cross(both=True, **wide),
            "single": SingleStream(**wide),
            "concatenate": Concatenate(width=8, pool="attention", heads=2),
            "weighted": Weighted(width=8, modalities=("text", "image", "video")),
        },
        decoders={
            "tied": TextDecoder(transform=True, output_bias=True, **text),
            "spliced": SplicedDecoder(**text),
            "free": TextDecoder(tied=False, context=("image", "video"), **text),
            "pixels": PixelDecoder(image_size=(8, 8), patch=(4, 4), firsts=1, positions="fixed", **size),
        },
        heads={
            "class": Classifier(classes=4, pool="attention", heads=2, hidden_width=8),
            "distilled": DistilledClassifier(classes=4),
            "match": Classifier(input="cross", pool="cls", normed_width=8),
            "words": TokenClassifier(classes=32, tied_to="text"),
            "tags": TokenClassifier(classes=4, input="cross"),
            "grade": OrdinalClassifier(classes=5),
            "remembers": CachedClassifier(classes=4, size=6, width=8),
        },
        unread={"head.bias": (4,)},
    )


def every_convolution():
    """What has running statistics, or other names of its own."""
    small = {"widths": (8, 12), "depths": (1, 2)}
    size = {"width": 8, "heads": 2, "depth": 1}
    return Multimodal(
        encoders={
            "photo": ResNet(stem_width=8, **small),
            "sketch": ConvNeXt(response_norm=True, final_norm=True, **small),
            "speech": AudioTransformer(**size),
            "wave": WaveformTransformer(extract_bias=True, mask_token=True, position_groups=2, **size),
        },
        heads={"drawn": Classifier(input="sketch", pool_norm=True), "codes": Codebook(input="wave:frames")},
    )


ADAPTED = [
    {"all-linear": LoRA(dora=True, init="pissa", r=1), "*/words/table": LoRA(r=2)},
    {"*logits/kernel": LoRA(dropout=0.1, dora=True, init="pissa", r=1)},
    {"heads_*/project*/kernel": LoRA(dora=True, init="pissa", r=1)},
    {"*/*position/table": LoRA(r=1), "*/segment/table": LoRA(r=1), "*/relative/table": LoRA(r=1)},
    {"*": IA3()},
    {"*": IA3("input")},
    {"*": Prompt(n=2)},
    {"encoders_image/*": Prompt(n=2, deep=True)},
    {"*": Prefix(n=2)},
    {"*": Bottleneck(r=2)},
]


@functools.cache
def shapes(name):
    """Of every part with all that adapters could put beside its kernels."""
    if name == "every convolution":
        return whole_shapes(every_convolution())
    if name != "every part":
        return param_shapes(load_config(name).model)
    model, leaves = every_part(), {}
    own = param_shapes(model)
    for adapt in ADAPTED:
        made = functools.partial(adapted, model, adapt=adapt, key=jax.random.key(0))
        leaves |= leaves_by_path(jax.eval_shape(made, own))
    places = places_of(model)
    return jax.eval_shape(lambda: narrowed(jax.tree.map(lambda x: jax.numpy.zeros(x.shape), nested(leaves)), places, "int8"))


@pytest.mark.parametrize("name", ["every part", "every convolution", *shipped_configs()])
def test_every_parameter_matches_exactly_one_row(name):
    wrong = {path: rows(path) for path in leaves_by_path(shapes(name)) if len(rows(path)) != 1}
    assert wrong == {}


def test_every_row_is_used_and_every_fusion_is_tried():
    paths = [*leaves_by_path(shapes("every part")), *leaves_by_path(shapes("every convolution"))]
    used = {row for path in paths for at in (path, f"ema/{path}") for row in rows(at)}
    assert [RULES[i][0] for i in range(len(RULES)) if i not in used] == []
    assert {type(f) for f in every_part().fusions.values()} == set(FUSIONS.values())


@pytest.mark.parametrize(
    "name", ["abnorm", "abnormality", "logits", "attention", "mlp", "unread", "x_logit", "mixture", "x_type"]
)
def test_the_name_of_a_part_decides_nothing(name):
    """A part lives where it would under any other name, also a module of the user's own."""
    for path, shape in [("{}/own/kernel", (16, 8)), ("{}/own/bias", (8,)), ("{}/scale", (8,)), ("{}/logits/kernel", (16, 8))]:
        for room in ("heads", "encoders", "ema/heads"):
            named, other = (path.format(f"{room}_{n}") for n in (name, "z"))
            assert rows(named) == rows(other) and spec(named, shape, AXES) == spec(other, shape, AXES), named


@pytest.mark.parametrize("name", ["every part", "every convolution", *shipped_configs()])
def test_every_row_fits_its_parameters_rank(name):
    for path, x in leaves_by_path(shapes(name)).items():
        assert len(RULES[rows(path)[0]][1]) == x.ndim - ("/layers/" in path), path


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("encoders_text/stack/layers/attention/q/kernel", (2, 8, 4, 3), P(None, "fsdp", "tensor", None)),
        ("encoders_text/stack/layers/cross_attention/out/kernel", (2, 4, 3, 8), P(None, "tensor", None, "fsdp")),
        ("encoders_text/stack/layers/attention/k/bias", (2, 4, 3), P(None, "tensor", None)),
        ("encoders_text/stack/layers/attention/k/kernel", (2, 8, 1, 3), P(None, "fsdp", None, None)),
        ("encoders_image/stack/layers/mlp/up/kernel", (2, 8, 16), P(None, "fsdp", "tensor")),
        ("encoders_image/stack/layers/mlp/down/kernel", (2, 16, 8), P(None, "tensor", "fsdp")),
        ("encoders_image/stack/layers/mlp/down/bias", (2, 8), P(None, None)),
        ("encoders_text/words/table", (32, 8), P("tensor", "fsdp")),
        ("encoders_text/words/table", (31, 8), P(None, "fsdp")),
        ("heads_words/tied_bias", (32,), P("tensor")),
        ("fusions_dual/scale_logit", (), P()),
        ("fusions_dual/project_image/kernel", (8, 8), P("fsdp", None)),
    ],
)
def test_where_a_parameter_lives(path, shape, expected):
    assert spec(path, shape, AXES) == expected


def test_the_layer_dim_is_never_split():
    for path, x in leaves_by_path(shapes("every part")).items():
        if "/layers/" in path:
            assert spec(path, (4, *x.shape[1:]), AXES)[0] is None, path


def test_an_array_of_the_users_own_is_split_along_its_largest_dim():
    assert spec("encoders_mine/filter", (3, 12, 5), AXES) == P(None, "fsdp", None)
    assert spec("encoders_mine/filter", (3, 13, 5), AXES) == P(None, None, None)
    assert spec("encoders_mine/temperature", (), AXES) == P()


def test_optimizer_state_lives_where_its_parameters_do():
    mesh = Mesh(1, 4, 2).build()
    params = shapes("every part")
    wanted = {path: s.spec for path, s in leaves_by_path(shardings(params, mesh)).items()}
    state = {"optimizer": jax.eval_shape(optax.chain(optax.scale_by_adam(), optax.trace(0.9)).init, params), "ema": params}
    found = leaves_by_path(shardings(state, mesh))
    for prefix in ("optimizer/0/mu", "optimizer/0/nu", "optimizer/1/trace", "ema"):
        assert {p: found[f"{prefix}/{p}"].spec for p in wanted} == wanted
    assert found["optimizer/0/count"].spec == P()


def test_factored_statistics_have_a_place():
    params = {name: shapes("every part")[name] for name in ("encoders_image", "heads_words")}
    state = jax.eval_shape(optax.scale_by_factored_rms(min_dim_size_to_factor=4).init, params)
    for path, s in leaves_by_path(shardings(state, Mesh(1, 4, 2).build())).items():
        assert len(s.spec) <= leaves_by_path(state)[path].ndim, path


def test_a_mesh_without_model_axes_splits_no_parameter():
    assert all(s.is_fully_replicated for s in jax.tree.leaves(shardings(shapes("every part"), Mesh(8).build())))

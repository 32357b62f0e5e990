import jax.numpy as jnp
import pytest

from mmjax.core.trees import count, leaves_by_path, map_with_path, match, match_any, nested, size_bytes

TREE = {"b": {"kernel": jnp.ones((2, 3))}, "a": [jnp.ones(4, jnp.bfloat16), jnp.zeros((), jnp.int32)]}


def test_leaves_are_named_by_their_path():
    assert {path: x.shape for path, x in leaves_by_path(TREE).items()} == {"a/0": (4,), "a/1": (), "b/kernel": (2, 3)}


def test_map_with_path_gives_each_leaf_its_path_and_its_partners():
    summed = map_with_path(lambda path, x, y: (path, x + y), {"a": {"b": 1}, "c": 2}, {"a": {"b": 10}, "c": 20})
    assert summed == {"a": {"b": ("a/b", 11)}, "c": ("c", 22)}


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*/bias", "encoders_image/stack/layers/mlp/up/bias", True),
        ("*/bias", "bias", False),
        ("encoders_*", "encoders_text/words/table", True),
        ("encoders_*", "heads_encoders_x", False),
        ("*attention/[qkv]/kernel", "stack/layers/cross_attention/k/kernel", True),
        ("*attention/[qkv]/kernel", "stack/layers/attention/out/kernel", False),
        ("*Norm*", "stack/norm/scale", False),
        ("*/norm/scale", "heads_abnorm/scale", False),
        ("*/*_norm/scale", "encoders_a/stack/layers/mlp_norm/scale", True),
    ],
)
def test_a_pattern_matches_the_whole_path(pattern, path, expected):
    assert match(pattern, path) is expected
    assert match_any(["nothing", pattern], path) is expected


def test_no_pattern_matches_nothing():
    assert not match_any([], "a")


def test_counts():
    assert count(TREE) == 6 + 4 + 1
    assert size_bytes(TREE) == 6 * 4 + 4 * 2 + 4


def test_leaves_by_path_are_nested_again():
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert nested(leaves_by_path(tree)) == tree and nested({}) == {}

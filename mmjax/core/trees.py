"""Trees of arrays by path: naming, matching and replacing leaves.

A leaf's path is its keys joined by "/", for instance `encoders_image/layers/attention/q/kernel`. Patterns are shell-style
(`*` matches any text, "/" included) and match the whole path. What stands between two "/", or after the last, is a whole name:
`*/norm/scale` is no leaf of a part called `abnorm`. Users choose the names of their parts and modalities (`heads_NAME`,
`project_NAME`), so a pattern of the library's own is made of whole names that the library itself gives.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
    """ "a/b/0" for a JAX key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Every leaf by its path, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def map_with_path(fn: Callable[..., Any], tree: Any, *rest: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """Like `jax.tree.map`, with the leaf's path as the first argument."""
    named = jax.tree_util.tree_map_with_path
    return named(lambda path, *leaves: fn(path_name(path), *leaves), tree, *rest, is_leaf=is_leaf)


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path -> nested dicts: what `leaves_by_path` undoes."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *rooms, name = path.split("/")
        room = tree
        for step in rooms:
            room = room.setdefault(step, {})
        room[name] = leaf
    return tree


def match(pattern: str, path: str) -> bool:
    """Whether a shell-style pattern matches the whole path."""
    return fnmatch.fnmatchcase(path, pattern)


def match_any(patterns: Iterable[str], path: str) -> bool:
    """Whether any of the patterns matches the whole path."""
    return any(match(pattern, path) for pattern in patterns)


def split_layers(pattern: str) -> tuple[str, slice | None]:
    """ "a/*[:6]" -> ("a/*", layers 0 to 5), "a/*[::2]" every second; a pattern without a slice -> (pattern, None)."""
    found = re.fullmatch(r"(.*)\[(-?\d*):(-?\d*)(?::([1-9]\d*)?)?\]", pattern)
    if not found:
        return pattern, None
    start, stop, step = (int(number) if number else None for number in found.groups()[1:])
    return found.group(1), slice(start, stop, step)


def count(tree: Any) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def size_bytes(tree: Any) -> int:
    """How many bytes a tree holds."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

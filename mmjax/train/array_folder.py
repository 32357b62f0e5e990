"""A folder of arrays as orbax writes it, read whatever tree it was written from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmjax.parallel.rules import shardings
from mmjax.train.reading import names_in

METADATA = "_METADATA"  # the file that says which arrays there are


def shapes_in(reader: ocp.Checkpointer, path: Path) -> Any:
    """The shapes of what a folder holds.

    Raises:
      EOFError, FileNotFoundError: it is damaged, or there is none.
    """
    require_metadata(path)
    found = reader.metadata(path).item_metadata
    if found is None:  # orbax has read the names of the arrays, and could not make sense of them
        raise EOFError(f"the list of arrays in {path} is damaged")
    return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), found.tree)


def restored(reader: ocp.Checkpointer, path: Path, target: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """The arrays of a folder that have a shape in `target`: as host arrays, or with a mesh in their places on it, where each
    process reads its own parts alone."""
    if mesh is None:
        places = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    else:
        places = jax.tree.map(lambda place: ocp.ArrayRestoreArgs(sharding=place), shardings(target, mesh))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # orbax: no sharding given, which is what we mean here
        args = ocp.args.PyTreeRestore(item=target, restore_args=places, partial_restore=True)
        return reader.restore(path, args=args)


def require_metadata(path: Path) -> None:
    """Without this file orbax reads a tree of nothing, and complains of the tree."""
    if METADATA not in names_in(path):
        raise FileNotFoundError(f"{path} has no {METADATA}")

"""A frozen base that is kept narrower than it is computed with: in bfloat16, or its kernels in int8.

Of what is frozen as a whole the kernels of linear layers and the tables are kept so; norms, biases and what is trained stay
float32. A layer widens its own kernels when it runs, so that at no time more than one layer's are wide.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from mmjax.adapt.places import LINEAR, Place, places_of
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, nested
from mmjax.core.types import Params
from mmjax.models import Multimodal
from mmjax.nn.narrow import SCALE, quantised
from mmjax.train.trained import Trained

WIDE, HALF, INT8 = "float32", "bfloat16", "int8"
DTYPES = (WIDE, HALF, INT8)


def narrow_places(model: Multimodal, trained: Trained, dtype: str) -> dict[str, Place]:
    """Path -> place, of what is kept narrow; nothing where `dtype` is float32.

    Raises:
      UserError: an unknown `dtype`, or one that nothing could be kept in.
    """
    if dtype not in DTYPES:
        raise UserError(f"frozen_dtype={dtype!r}: use one of {', '.join(DTYPES)}")
    if dtype == WIDE:
        return {}
    whole = trained.whole
    found = {} if whole is None else places_of(model)
    found = {path: place for path, place in found.items() if whole is not None and path not in {*whole, *trained.layers}}
    if not found:
        raise UserError(
            f"frozen_dtype={dtype!r}: no kernel is frozen as a whole, and what is trained stays float32: adapt the model, name "
            "kernels in optimizer.freeze, or use float32"
        )
    return found


def narrowed(params: Params, places: Mapping[str, Place], dtype: str) -> Params:
    """The parameters with what lies at `places` kept narrow, of host arrays or a device's. Beside kernels in int8 lie their
    scales, and tables are bfloat16 then."""
    leaves = leaves_by_path(params)
    for path, place in places.items():
        if dtype == INT8 and place.kind == LINEAR:
            lead = len(place.lead)
            leaves[path], leaves[f"{place.room}/{SCALE}"] = quantised(
                leaves[path], tuple(range(lead, lead + len(place.inputs)))
            )
        else:
            leaves[path] = leaves[path].astype(jnp.bfloat16)
    return nested(leaves)

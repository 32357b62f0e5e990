"""mmjax: multimodal Transformers in JAX, from one config file to a TPU pod.

Where things are, from the top: `mmjax.cli` the command line; `mmjax.predict` a run at work, whose `Predictor` and `Adapters`
are here as well; `mmjax.convert` the bridge to and from HuggingFace, whose `load` and `save_hf` are here too; `mmjax.train`
experiments, the step and the loop, whose `set_up` is the door of a notebook; `mmjax.evaluate` evaluators; `mmjax.generate`
texts written with a cache; `mmjax.models` encoders, fusions, decoders and heads; `mmjax.nn` layers; `mmjax.objectives` losses;
`mmjax.data` sources, transforms and batches; `mmjax.parallel` the mesh; `mmjax.core` the words all of them share.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmjax.convert import load, save_hf
    from mmjax.predict.adapters import Adapters
    from mmjax.predict.predictor import Predictor
    from mmjax.train.session import set_up

    __version__: str

_PLACES = {
    "Adapters": "mmjax.predict.adapters",
    "Predictor": "mmjax.predict.predictor",
    "load": "mmjax.convert",
    "save_hf": "mmjax.convert",
    "set_up": "mmjax.train.session",
}

__all__ = ["Adapters", "Predictor", "load", "save_hf", "set_up"]


def __getattr__(name: str) -> Any:
    # Found when first asked for: whoever imports one room does not wait for all of them.
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name == "__version__":
        metadata = importlib.import_module("importlib.metadata")
        try:
            return metadata.version("mmjax")
        except metadata.PackageNotFoundError:  # run from a checkout that was never installed
            return "unknown"
    raise AttributeError(f"module 'mmjax' has no attribute {name!r}")

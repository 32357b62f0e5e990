"""One of several processes that read: a checksum of each step's global batch, of every format in turn.

`python many.py ROOT OUT [JOINING]` opens what `pictures.written` wrote to ROOT as training does, by `set_up` and `Feed`, puts
each batch on a mesh over the processes and together again, and writes {"format, order, first step": [checksum of a step]}.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pictures
import tiny

from mmjax import cli
from mmjax.data import Balanced, Caption, Data, Flip, Mix, Noise, Normalise, RandomCrop
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.fusion import Dual
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.parallel.multihost import joined
from mmjax.train.feed import Feed
from mmjax.train.run import Run
from mmjax.train.setup import set_up

STEPS, STOPPED = 6, 3
TRANSFORMS = (RandomCrop((8, 8)), Flip(), Noise(0.05), Normalise())


def cases(root: str):
    """(name, source, order) of each case."""
    found = pictures.sources(Path(root))
    found["mix"] = Mix({"tar": found["web_dataset"], "table": found["parquet"]}, {"tar": 3.0, "table": 1.5})
    found["balanced"] = Balanced(found["folder"])
    del found["texts"], found["streamed texts"]  # which have no image
    for name, source in found.items():
        yield name, source, "records"
        if name in ("web_dataset", "parquet", "arrow", "array_record", "mix"):
            yield name, source, "blocks"


def experiment(source, order: str):
    captions = (Caption(tiny.TEMPLATES),) if "Folder" in repr(source) else ()  # which has no texts
    data = Data(source, (*TRANSFORMS, *captions), batch_size=8, max_length=tiny.LENGTH, order=order, block_window=2)
    encoders = {"image": tiny.vit(), "text": TextTransformer(**tiny.TEXT, **(tiny.SIZE | {"depth": 0}), positions="none")}
    model = Multimodal(encoders=encoders, fusions={"dual": Dual(width=16, project=())})
    return tiny.experiment(model=model, tasks=tiny.tasks("contrastive"), data={"train": data}, evaluate={}, seed=11)


def checksums(made, start: int) -> list[int]:
    """Of the global batches from a step on."""
    from jax.experimental.multihost_utils import process_allgather

    mesh, found = Mesh(data=-1).build(), []
    with use_mesh(mesh):
        feed = Feed(set_up(made, Run("nowhere"), mesh), start)
        for _ in range(start, STEPS):
            batch = process_allgather(feed.take()["train"], tiled=True)
            assert batch["index"].tolist() == list(range(8)), batch["index"]
            found.append(zlib.crc32(b"".join(key.encode() + np.asarray(batch[key]).tobytes() for key in sorted(batch))))
        feed.close()
    return found


def main() -> int:
    root, out, *flags = sys.argv[1:]
    with joined(cli._join(flags)):
        found = {
            f"{name}, {order}, {start}": checksums(experiment(source, order), start)
            for name, source, order in cases(root)
            for start in (0, STOPPED)
        }
    Path(out).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

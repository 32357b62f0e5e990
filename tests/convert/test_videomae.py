"""VideoMAE handed over: a run of videos, exported, opened by `transformers` from the folder's files alone."""

import jax
import numpy as np
import pytest
import torch
import transformers
from families import CASES
from families.videomae import CLASSES
from handed import command
from parity import assert_close, save

import mmjax
from mmjax import Predictor
from mmjax.convert import load_model
from mmjax.data import CenterCrop, Class, Data, Moving, Normalise, ResizeShortest, Video
from mmjax.data.sources.moving import COUNTS
from mmjax.objectives import Classification
from mmjax.parallel.mesh import Mesh
from mmjax.train import AdamW, Experiment, Task, train

av = pytest.importorskip("av", reason="videos are read by it: pip install 'mmjax[video]'")
FRAMES = 4
TRANSFORMS = (
    ResizeShortest(18, "bilinear", field="video"),
    CenterCrop((16, 16), field="video"),
    Normalise((0.3,) * 3, (0.2, 0.3, 0.4), field="video"),
)


@pytest.fixture(scope="module")
def handed(tmp_path_factory):
    """A run that started from an imported checkpoint, and what was exported of it."""
    home = tmp_path_factory.mktemp("videomae")
    hf = CASES["videomae"].make(CLASSES.of({"num_labels": 3}))
    command("convert", "from-hf", save(hf, home / "hf"), home / "start")
    columns = {"video": Video(frames=FRAMES), "label": Class(COUNTS)}
    data = Data(Counted(), TRANSFORMS, columns, batch_size=8, threads=0)
    experiment = Experiment(
        model=load_model(home / "start"),
        data={"train": data, "validation": data},
        tasks={"classes": Task(Classification())},
        optimizer=AdamW(1e-3),
        steps=2,
        init_from=str(home / "start"),
    )
    with pytest.MonkeyPatch.context() as patch:  # one device: two steps are compiled, and hardly run
        build = Mesh.build
        patch.setattr(Mesh, "build", lambda self, devices=None: build(self, devices or jax.devices()[:1]))
        train(experiment, home / "run")
    command("convert", "to-hf", home / "run", home / "out")
    return home / "run", home / "out"


class Counted(Moving):
    """Whose label is the count."""

    def build(self):
        records = super().build()
        inner = type(records)

        class Records(inner):
            def __getitem__(self, index):
                record = super().__getitem__(index)
                return {"video": record["video"], "label": record["count"]}

        return Records(records.spec, records.ink, records.digits)


def test_the_folder_answers_as_the_run_does(handed):
    run, folder = handed
    videos = [Moving("test", 3, frames=FRAMES).build()[n]["video"] for n in range(3)]
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor([list(one) for one in videos], return_tensors="pt")["pixel_values"]
    own = Predictor(run)._batch({"video": videos})["video"]
    np.testing.assert_allclose(own, pixels.permute(0, 1, 3, 4, 2).numpy(), atol=1e-5)
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = theirs(pixels).logits
    found = Predictor(run).classify(videos=videos, top_k=0)
    shares = [{row["label"]: row["score"] for row in one} for one in found]
    assert_close([[one[name] for name in COUNTS] for one in shares], logits.softmax(-1))
    assert [theirs.config.id2label[n] for n in range(3)] == list(COUNTS)


def test_its_pipeline_says_the_same(handed, tmp_path):
    """Of a file with as many frames as the class reads: the pipeline takes the first ones, a run spreads them."""
    run, folder = handed
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "bgr0"
        for image in Moving("test", 1, frames=FRAMES).build()[0]["video"]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    ask = transformers.pipeline("video-classification", model=str(folder), device="cpu")
    theirs = ask(str(path), top_k=3)
    (ours,) = mmjax.Predictor(run).classify(videos=str(path), top_k=0)
    assert [one["label"] for one in ours] == [one["label"] for one in theirs]
    assert_close([one["score"] for one in ours], [one["score"] for one in theirs], 1e-4)

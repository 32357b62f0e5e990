"""A run of videos and texts at work: classes, captions, vectors, of files, folders and manifests."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest

from mmjax import Predictor
from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.data import Class, Data, Moving, Normalise, Video, WordPiece
from mmjax.data.sources.moving import COUNTS, DIRECTIONS
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, VideoTransformer
from mmjax.models.fusion import Dual
from mmjax.models.heads import Classifier
from mmjax.objectives import CausalLM, Classification, Contrastive
from mmjax.parallel.mesh import Mesh
from mmjax.predict.answers import Asked, answers, listed
from mmjax.train import AdamW, Experiment, Task, train

pytest.importorskip("av", reason="videos are read by it: pip install 'mmjax[video]'")
NORMALISE = Normalise((0.2,) * 3, (0.25,) * 3, field="video")
SIZE = {"width": 16, "depth": 1, "heads": 2}


def data(split):
    columns = {"video": Video(frames=4), "direction": Class(DIRECTIONS), "count": Class(COUNTS)}
    return Data(Moving(split, 32), (NORMALISE,), columns, batch_size=8, max_length=8, threads=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    text = {"vocab_size": 60, "max_length": 8, **SIZE}
    model = Multimodal(
        encoders={
            "video": VideoTransformer(frames=4, image_size=(32, 32), tubelet=2, patch=(16, 16), **SIZE),
            "text": TextTransformer(**text),
        },
        fusions={"dual": Dual(width=16, pool={"video": "mean", "text": "last"})},
        decoders={"caption": TextDecoder(context=("video",), **text)},
        heads={"direction": Classifier(8, input="video"), "count": Classifier(3, input="video")},
    )
    tasks = {
        "contrastive": Task(Contrastive(modalities=("video", "text"))),
        "caption": Task(CausalLM()),
        **{key: Task(Classification(head=key, label=key)) for key in ("direction", "count")},
    }
    path = tmp_path_factory.mktemp("run")
    experiment = Experiment(
        model=model,
        data={split: data(split) for split in ("train", "validation")},
        tokenizer=WordPiece(60),
        tasks=tasks,
        optimizer=AdamW(1e-3),
        steps=2,
    )
    with pytest.MonkeyPatch.context() as patch:  # one device: two steps are compiled, and hardly run
        build = Mesh.build
        patch.setattr(Mesh, "build", lambda self, devices=None: build(self, devices or jax.devices()[:1]))
        train(experiment, path / "run")
    return path / "run"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three files without loss, their frames, and a file that is none."""
    import av

    root = tmp_path_factory.mktemp("clips")
    records = Moving("test", 3).build()
    videos = [records[n]["video"] for n in range(3)]
    for n, video in enumerate(videos):
        with av.open(str(root / f"{n}.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=8)
            stream.height, stream.width, stream.pix_fmt = 32, 32, "bgr0"
            for image in video:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    (root / "broken.mp4").write_bytes(b"no video")
    return root, videos


def command(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        status = main([str(word) for word in words])
    return status, [json.loads(line) for line in out.getvalue().splitlines() if line.startswith("{")]


def test_classes_of_files_are_those_of_their_frames(run, clips):
    root, videos = clips
    ask = Predictor(run)
    own = {key: ask.classify(videos=videos, head=key, top_k=0) for key in ("direction", "count")}
    status, found = command("predict", run, root, "--top_k", "0")
    assert status == 1 and [one["video"].rsplit("/")[-1] for one in found] == ["0.mkv", "1.mkv", "2.mkv", "broken.mp4"]
    assert "no video that can be read" in found[3]["error"]
    for n, one in enumerate(found[:3]):
        for key, rows in own.items():
            assert {row["label"] for row in one[key]} == {row["label"] for row in rows[n]}
            scores = {row["label"]: row["score"] for row in rows[n]}
            assert one[key][0]["score"] == pytest.approx(scores[one[key][0]["label"]], abs=1e-5)
    assert {row["label"] for row in found[0]["direction"]} == set(DIRECTIONS)


def test_a_batch_of_the_run_is_answered_as_its_own_evaluation_would(run, clips):
    ask = Predictor(run)
    source = Data(Moving("test", 3), (NORMALISE,), {"video": Video(frames=4)}, batch_size=3, threads=0).build(
        None, 0, spare=True
    )
    (batch,) = source.epoch()
    own = ask._batch({"video": clips[1]})
    for key in ("video", "video_mask"):
        np.testing.assert_array_equal(own[key], batch[key])


def test_captions_and_vectors(run, clips, tmp_path):
    root, videos = clips
    ask = Predictor(run)
    vectors = ask.embed_video(videos)
    assert vectors.shape == (3, 16) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    lines = [{"video": f"{n}.mkv"} for n in range(3)]
    (root / "clips.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    status, _ = command("embed", run, root / "clips.jsonl", "--out", tmp_path / "v.npz")
    with np.load(tmp_path / "v.npz") as kept:
        assert status == 0
        np.testing.assert_allclose(kept["vectors"], vectors, atol=1e-5)
    texts = ask.generate(videos=videos, max_new_tokens=4)
    status, found = command("predict", run, root / "clips.jsonl", "--decoder", "caption", "--max_new_tokens", "4")
    assert status == 0 and [one["caption"] for one in found] == texts
    status, found = command("predict", run, "two digits move up", "--text", "--index", tmp_path / "v.npz")
    assert status == 0 and len(found[0]["nearest"]) == 3, "videos are found by a text"


def test_what_is_asked_of_images_is_refused(run, clips):
    with pytest.raises(UserError, match=r"videos: --question, --classes and --pair are of images and texts"):
        list(answers(Predictor(run), listed([str(clips[0] / "0.mkv")], "video"), "video", Asked(question="why?")))
    with pytest.raises(UserError, match=r"decoders\.caption watches a video, and there is none"):
        Predictor(run).generate()

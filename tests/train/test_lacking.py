"""A run on examples that lack modalities: trained, evaluated, asked about any subset, the same on every mesh."""

import dataclasses

import numpy as np
import pytest
import tiny

from mmjax import Predictor
from mmjax.core.errors import UserError
from mmjax.data import Digits, ModalityDropout
from mmjax.evaluate import HeldOut, Report, Retrieval, ZeroShot
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.fusion import Dual, SingleStream
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification, Contrastive
from mmjax.parallel.mesh import Mesh
from mmjax.train import Task, train
from mmjax.train.run import Run

RATES = {"image": 0.4, "text": 0.4}


def some(split="train", **changes):
    """Digits of which some lack the picture and some the caption."""
    own = tiny.data(split, **changes)
    return dataclasses.replace(own, transforms=(*own.transforms, ModalityDropout(RATES)), optional=("image", "text"))


def experiment(**changes):
    model = Multimodal(
        encoders={"image": tiny.vit(), "text": TextTransformer(**tiny.TEXT, **tiny.SIZE)},
        fusions={"dual": Dual(width=16), "both": SingleStream(**tiny.SIZE)},
        heads={"classes": Classifier(classes=10, input="both")},
    )
    chosen = {
        "model": model,
        "data": {split: some(split) for split in ("train", "validation")},
        "tasks": {"classify": Task(Classification()), "contrastive": Task(Contrastive())},
        "evaluate": {
            "report": Report(),
            "retrieval": Retrieval(),
            "held_out": HeldOut(Classification()),
            "zero_shot": ZeroShot(tiny.TEMPLATES),
        },
    }
    return tiny.experiment(**{**chosen, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run, and its last metrics."""
    folder = tmp_path_factory.mktemp("lacking") / "run"
    made = experiment(steps=4, evaluate_every=4)
    with pytest.MonkeyPatch.context() as patch:
        tiny.single_device(patch)
        return folder, train(made, folder), made


def test_what_is_evaluated_has_what_is_read(trained):
    """Counted by hand from the batches of the same data."""
    folder, metrics, made = trained
    tokenizer = Run(folder).tokenizers()[""]
    batches = list(made.data["validation"].build(tokenizer, 0, "validation").epoch())
    has = {name: np.concatenate([rows[f"{name}_valid"] & rows["valid"] for rows in batches]) for name in RATES}
    assert 0.2 < 1 - has["image"].mean() < 0.6
    assert all(np.isfinite(value) for value in metrics.values())
    retrieved = metrics["retrieval/image_to_text_r1"] * (has["image"] & has["text"]).sum()
    np.testing.assert_allclose(retrieved, round(retrieved), atol=1e-4)  # so many queries there are, and no more
    seen = metrics["zero_shot/accuracy"] * has["image"].sum()
    np.testing.assert_allclose(seen, round(seen), atol=1e-4)


def test_any_subset_is_answered(trained):
    ask, digits = Predictor(trained[0]), [record["image"] for record in list(Digits("test").build())[:2]]
    text = "a photo of the digit 3."
    both = ask.classify([digits[0], None, digits[1]], [text, text, None], top_k=0)
    alone = (ask.classify(texts=text, top_k=0), ask.classify(images=digits[1], top_k=0))
    shares = [{one["label"]: one["score"] for one in row} for row in (both[1], both[2], *alone[0], *alone[1])]
    for found, own in ((shares[0], shares[2]), (shares[1], shares[3])):
        np.testing.assert_allclose([found[name] for name in own], list(own.values()), rtol=2e-6)
    assert both[0] != both[1]
    assert ask.classify(digits[:1], [""], top_k=0) == ask.classify(digits[:1], top_k=0)
    with pytest.raises(UserError, match="input 1: nothing is given of it"):
        ask.classify([digits[0], None], [text, None])
    with pytest.raises(UserError, match="2 image and 1 text: give as many of each, None for none"):
        ask.classify([digits[0], None], text)


def test_a_mesh_has_the_losses_of_one_device():
    made = experiment(evaluate={})
    one, own = (tiny.states(made, 4, mesh)[2] for mesh in (tiny.ONE, Mesh(data=2, fsdp=2, tensor=2)))
    np.testing.assert_allclose(own, one, rtol=2e-5)


def test_nothing_is_answered_of_what_is_not_there(trained):
    ask, digits = Predictor(trained[0]), [record["image"] for record in list(Digits("test").build())[:2]]
    assert ask.embed_image([digits[0]]).shape == (1, 16)
    with pytest.raises(UserError, match="input 1: what is asked of it reads a modality that it lacks"):
        ask._rows("both", lambda forward: (forward.embed("image"), forward.embed("text")),
                  ask._batch({"image": digits, "text": ["a number", None]}))  # fmt: skip

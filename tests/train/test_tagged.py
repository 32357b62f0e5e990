"""Tags of tokens trained and evaluated on every mesh, and the loss against PyTorch's."""

import jax
import numpy as np
import pytest
import tiny
import torch

from mmjax.data import Conll, Data, Tags, WordPiece
from mmjax.evaluate import Entities
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.forward import BoundForward
from mmjax.models.heads import TokenClassifier
from mmjax.objectives import Classification
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.train import SGD, Experiment, Task

LENGTH = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp("tagged") / "a.conll"
    lines = []
    for _ in range(24):
        for _ in range(rng.integers(1, 14)):
            word = "ab"[rng.integers(2)] * rng.integers(1, 5)
            lines.append(f"{word} {'B-X' if word[0] == 'a' else 'O'}")
        lines.append("")
    file.write_text("\n".join(lines))
    data = Data(Conll(str(file)), (), {"tags": Tags()}, batch_size=8, max_length=LENGTH, threads=0)
    text = TextTransformer(vocab_size=tiny.WORDS, max_length=LENGTH, **tiny.SIZE)
    return Experiment(
        model=Multimodal(encoders={"text": text}, heads={"token_classes": TokenClassifier(classes=3, transform=False)}),
        tokenizer=WordPiece(12),
        data={"train": data, "validation": data},
        tasks={"tags": Task(Classification(head="token_classes", label="tags"), data="train")},
        evaluate={"entities": Entities()},
        optimizer=SGD(learning_rate=0.1, schedule="constant"),
        steps=4,
    )


@pytest.fixture(scope="module")
def trained(made):
    return tiny.states(made, 4)


@pytest.mark.parametrize("mesh", [Mesh(data=2, fsdp=2, tensor=2), Mesh(sequence=2, data=-1)], ids=str)
def test_losses_are_the_same_on_every_mesh(mesh, made, trained):
    np.testing.assert_allclose(tiny.states(made, 4, mesh)[2], trained[2], rtol=2e-5)


def test_the_loss_is_pytorchs_over_the_first_tokens(made, trained):
    first, _, losses = trained
    batch = made.data["train"].build(WordPiece(12).train(made.data["train"].texts()), made.seed, "train").batch(0)
    logits = np.array(BoundForward(made.model, first.params, batch).head("token_classes"))
    said = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).reshape(-1, 3), torch.from_numpy(batch["tags"]).long().reshape(-1), ignore_index=-1
    )
    assert losses[0] == pytest.approx(float(said), rel=1e-5)
    assert 0 < (batch["tags"] >= 0).sum() < batch["text_mask"].sum() < batch["tags"].size


def test_figures_are_the_same_on_every_mesh(made, trained):
    params, found = trained[1].params, []
    for mesh in (tiny.ONE, Mesh(sequence=2, data=-1)):
        setup, _ = tiny.prepared(made, mesh)
        with use_mesh(setup.mesh):
            found.append(Entities()(setup.evaluation(), jax.device_put(params)))
    assert found[0] == found[1] and found[0]["lost"] > 0

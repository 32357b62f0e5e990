"""Tensors that no forward pass reads: kept through a run, never trained, written back bit for bit."""

import jax
import numpy as np
import pytest
import torch
import transformers as hf
from parity import randomise, save
from safetensors.numpy import load_file

import mmjax
from mmjax.convert.api import from_hf, to_hf
from mmjax.core.trees import leaves_by_path
from mmjax.data import Data, Digits, Normalise
from mmjax.objectives import Classification
from mmjax.parallel.mesh import Mesh
from mmjax.train import AdamW, Checkpoint, Experiment, Log, Task, train

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
BIAS = "cls.predictions.bias"


@pytest.fixture
def bert(tmp_path):
    theirs = hf.BertForPreTraining(hf.BertConfig(**SIZES, vocab_size=12, tie_word_embeddings=False))
    return save(randomise(theirs), tmp_path / "hf")


def file_of(folder):
    return load_file(folder / "model.safetensors")


def test_a_run_with_decay_averaging_and_rates_by_layer_leaves_them_as_they_were(tmp_path):
    vision = {**SIZES, "image_size": 8, "patch_size": 4}
    theirs = randomise(hf.CLIPForImageClassification(hf.CLIPConfig(vision_config=vision, num_labels=10)))
    with torch.no_grad():
        theirs.vision_model.post_layernorm.bias[:2] = torch.tensor([-0.0, 0.0])
    from_hf(save(theirs, tmp_path / "hf"), tmp_path / "run")
    experiment = Experiment(
        model=mmjax.convert.load_model(tmp_path / "run"),
        data={"train": Data(Digits("train"), (Normalise((0.3,) * 3, (0.35,) * 3),), batch_size=8, threads=0)},
        tasks={"classes": Task(Classification())},
        init_from=str(tmp_path / "run"),
        optimizer=AdamW(learning_rate=0.01, weight_decay=0.5, ema=0.9, layer_decay=0.8, schedule="constant"),
        mesh=Mesh(data=2, fsdp=4),
        steps=2,
        checkpoint=Checkpoint(every=2),
        log=Log(tensorboard=False, progress=False),
    )
    train(experiment, tmp_path / "tuned")
    assert to_hf(tmp_path / "tuned", tmp_path / "back") == {".": "CLIPForImageClassification"}
    before, after = file_of(tmp_path / "hf"), file_of(tmp_path / "back")
    for name, value in before.items():
        same = after[name].tobytes() == value.tobytes()
        assert same == ("post_layernorm" in name), name


def test_they_are_parameters_of_the_model(bert):
    model, params = mmjax.load(bert)
    assert model.unread == {BIAS: (12,)}
    np.testing.assert_array_equal(params["unread"][BIAS], file_of(bert)[BIAS])
    shapes = leaves_by_path(mmjax.models.param_shapes(model))
    assert {path: x.shape for path, x in leaves_by_path(params).items()} == {path: x.shape for path, x in shapes.items()}


@pytest.mark.parametrize("why", ["came without", "another shape"])
def test_a_model_that_has_none_that_fits_writes_a_copy_of_what_is_read(why, bert, tmp_path):
    """As `transformers` 4 had it, where both names were one tensor."""
    model, params = mmjax.load(bert)
    unread = {} if why == "came without" else {BIAS: (7,)}
    kept = {name: jax.numpy.ones(shape) for name, shape in unread.items()}
    mmjax.save_hf(model.copy(unread=unread), {**params, "unread": kept}, tmp_path / "back")
    written = file_of(tmp_path / "back")
    np.testing.assert_array_equal(written[BIAS], written["cls.predictions.decoder.bias"])
    assert written.keys() == file_of(bert).keys()


def test_a_class_that_lacks_them_is_written_without(bert, tmp_path):
    model, params = mmjax.load(bert)
    pooler = model.heads["next_sentence"].copy(classes=0)
    base = {name: tree for name, tree in params.items() if not name.startswith("heads_")}
    base["heads_pooler"] = {"project": params["heads_next_sentence"]["project"]}
    assert mmjax.save_hf(model.copy(heads={"pooler": pooler}), base, tmp_path / "back") == "BertModel"
    _, info = hf.BertModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))

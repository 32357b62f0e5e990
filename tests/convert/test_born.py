"""Models of our own as HuggingFace's: the Python door opens for what `mmjax convert to-hf` writes."""

import numpy as np
import pytest
import torch
import transformers as hf
from parity import assert_close, bound, compiled
from test_towers import IDS, MASK, SIZES, params_of

import mmjax
from mmjax.convert import load_classifier, load_extractor, load_tagger
from mmjax.convert.api import save_params
from mmjax.convert.born import born, with_head
from mmjax.convert.export import prepare
from mmjax.core.config import leaves
from mmjax.core.errors import UserError
from mmjax.data import WordPiece
from mmjax.models import Multimodal, param_shapes
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Dual
from mmjax.models.heads import Classifier, TokenClassifier
from mmjax.train import Experiment
from mmjax.train.config_file import load_config
from mmjax.train.run import Run

BERT = {"norm_placement": "post", "embed_norm": True, "segments": 2}
WORDS = 11


def text(**changes):
    return TextTransformer(vocab_size=WORDS, max_length=6, **SIZES, **{**BERT, **changes})


def masked(**changes):
    return Multimodal({"text": text(**changes)}, heads={"masked_lm": TokenClassifier(WORDS, tied_to="text")})


def a_run(folder, model):
    run = Run(folder)
    folder.mkdir()
    run.write_config(Experiment(model=model, data={}, tasks={}, steps=0))
    return run


def test_a_run_from_nothing_opens_and_is_saved_as_its_class(tmp_path):
    model, params = masked(), params_of(masked())
    save_params(a_run(tmp_path / "run", model), params)
    assert mmjax.save_hf(*mmjax.load(tmp_path / "run"), tmp_path / "hf") == "BertForMaskedLM"
    theirs = hf.AutoModelForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    there = theirs(torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits.detach().numpy()
    batch = {"text": IDS.astype(np.int32), "text_mask": MASK}
    here = compiled(lambda p: bound(model, p, batch).head("masked_lm"))(params)
    assert_close(np.asarray(here)[MASK], there[MASK])


def test_what_is_pretrained_on_texts_goes_out_whole_and_is_what_the_configs_of_texts_begin_with():
    model = load_config("text_pretraining").model
    assert prepare(model, WordPiece(300).train(["a red three"]), {}, {}).architecture == "BertForMaskedLM"
    for name in ("texts", "labels"):
        other = load_config(name).model.encoders["text"].copy(max_length=model.encoders["text"].max_length)
        assert leaves(other) == leaves(model.encoders["text"])


@pytest.mark.parametrize(
    ("opened", "name"),
    [
        (lambda run: load_classifier(run, 3), "BertForSequenceClassification"),
        (lambda run: load_tagger(run, 3), "BertForTokenClassification"),
        (load_extractor, "BertForQuestionAnswering"),
    ],
)
def test_a_text_encoder_trained_from_nothing_gets_the_head_of_its_family(opened, name, tmp_path):
    a_run(tmp_path / "run", masked())
    model = opened(tmp_path / "run")
    assert prepare(model.copy(huggingface={**model.huggingface, "pad_token_id": 0}), None, {}, {}).architecture == name
    shapes = [param_shapes(m)["encoders_text"] for m in (model, masked())]
    assert shapes[0] == shapes[1], "init_from takes all of it"


def test_a_tower_of_two_is_enough(tmp_path):
    image = ViT(image_size=(8, 8), patch=(4, 4), cls_token=True, **SIZES)
    a_run(tmp_path / "run", Multimodal({"image": image, "text": text()}, {"dual": Dual(width=16)}))
    model = load_classifier(tmp_path / "run", 3)
    assert set(model.encoders) == {"image"} and model.huggingface["architectures"] == ("ViTForImageClassification",)
    assert set(load_tagger(tmp_path / "run", 3).encoders) == {"text"}


def test_what_differs_is_said():
    with pytest.raises(UserError, match=r"that tags tokens has such an encoder.*embed_norm=False has no place in Bert"):
        with_head(masked(embed_norm=False), 3, ("ForTokenClassification",), "tags tokens")
    with pytest.raises(UserError, match=r"the whole of this model: model.encoders.text.embed_norm=False has no place in Bert"):
        born(masked(embed_norm=False))
    pooled = Multimodal({"text": text()}, heads={"topic": Classifier(3, "text", "mean")})
    with pytest.raises(UserError, match=r"none is made of encoders\.text, heads\.topic"):
        born(pooled)
    assert with_head(pooled, 3, ("ForSequenceClassification",), "classifies").heads["classes"].pool == "cls"

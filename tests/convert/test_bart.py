"""BART at work: what it reads, writes and learns is what `transformers` does with the same folder and its own tokenizer."""

import jax
import numpy as np
import pytest
import torch
import transformers
from families.bart import BATCH, SIZES
from parity import assert_close, bound, compiled, save, spread
from peft_cases import ours
from safetensors.numpy import load_file, save_file
from test_t5 import their_loss
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import mmjax
from mmjax.adapt import BitFit
from mmjax.convert import load
from mmjax.convert.peft.to_peft import adapter_of
from mmjax.core.errors import UserError
from mmjax.data import Pretrained
from mmjax.objectives import CausalLM

TEXTS = ["The cat sat.", "A dog sat on the cat, and then it left.", "On dogs"]
NEW = 9


def tokenizer():
    """Bytes and a few merges, with the first and last token that BART's has."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, special_tokens=names))
    own.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    roles = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=own, **roles, unk_token="<unk>", mask_token="<mask>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder, its model and its tokenizer; some words are likelier whatever was read."""
    words, home = tokenizer(), tmp_path_factory.mktemp("bart")
    config = transformers.BartConfig(**{**SIZES, "vocab_size": len(words), "max_position_embeddings": 48})
    model = spread(transformers.BartForConditionalGeneration(config))
    for name, p in model.named_parameters():  # a norm that is nearly zero leaves nothing of what was read
        p.data += 1.5 * (p.ndim == 1 and "norm" in name and name.endswith("weight"))
    model.final_logits_bias.normal_(generator=torch.Generator().manual_seed(0))
    model.generation_config.forced_bos_token_id, model.generation_config.no_repeat_ngram_size = 0, 3
    words.save_pretrained(save(model, home))
    return home, model, words


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_transformers(folder, beams):
    home, model, words = folder
    assert model.generation_config.forced_eos_token_id == 2
    inputs = words(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    theirs = model.generate(**inputs, num_beams=beams, max_new_tokens=NEW, do_sample=False)
    ask = mmjax.Predictor(home)
    found = ask.generate(TEXTS, num_beams=beams, max_new_tokens=NEW, details=True)
    ours = [[2, *one.ids] for one in found]
    assert ours == [[token for n, token in enumerate(row) if token != 1 or 2 not in row[1:n]] for row in theirs.tolist()]
    assert all(row[1] == 0 for row in ours) and len(set(map(tuple, ours))) == len(TEXTS) and not ask.work.unwritten
    own = Pretrained(str(home)).train(()).encode(TEXTS, 40)
    assert [row[mask].tolist() for row, mask in zip(own["ids"], own["mask"], strict=True)] == words(TEXTS)["input_ids"]


@pytest.mark.parametrize("start", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_the_loss_is_theirs(start, tmp_path):
    model = spread(
        transformers.BartForConditionalGeneration(transformers.BartConfig(**{**SIZES, "decoder_start_token_id": start}))
    )
    ours, params = load(save(model, tmp_path))
    forward = bound(ours, params, BATCH)
    loss = compiled(lambda: CausalLM("target", text="target")(forward, forward.batch, jax.random.key(0)))()
    assert_close(loss.sum / loss.count, their_loss(model, BATCH))


def test_a_bias_of_no_module_has_no_place_in_an_adapter(folder):
    model, params = load(folder[0])
    name = r"decoders_target/tied_bias: final_logits_bias is no module's in BartForConditionalGeneration"
    with pytest.raises(UserError, match=name):
        adapter_of(model, "BartForConditionalGeneration", *ours(model, params, {"*": BitFit()}))


def test_words_of_one_side_alone_are_refused(tmp_path):
    save(transformers.BartForConditionalGeneration(transformers.BartConfig(**SIZES)), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    shared = tensors["model.shared.weight"]
    for name, other in (("model.decoder.embed_tokens.weight", shared + 1), ("lm_head.weight", shared * 2)):
        save_file(tensors | {name: np.ascontiguousarray(other)}, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(
            UserError, match=r"another word table than model\.shared|tie_word_embeddings=False is not supported"
        ):
            load(tmp_path)

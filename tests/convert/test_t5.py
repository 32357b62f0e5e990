"""T5 at work: what it reads, writes and learns is what `transformers` does with the same folder and its own tokenizer."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from families.t5 import BATCH, SIZES
from parity import assert_close, bound, compiled, save, spread
from safetensors.numpy import load_file, save_file

import mmjax
from mmjax.cli import main
from mmjax.convert import FAMILIES, load, save_hf
from mmjax.convert.family import Honoured
from mmjax.data import Pretrained
from mmjax.objectives import CausalLM

PIECES = ("▁", "▁the", "▁cat", "▁sat", "s", "a", "t", "c", "h", "e", "▁a", "▁dog", "▁on", "o", "n", "d", "g")
TEXTS = ["the cat", "a dog sat on the cat", "on the dogs"]
NEW = 9


def tokenizer():
    """T5's own class, with four sentinels after its pieces."""
    scored = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((piece, -float(len(PIECES) - n)) for n, piece in enumerate(PIECES)),
    ]
    scored += [(f"<extra_id_{n}>", 0.0) for n in reversed(range(4))]
    return transformers.T5Tokenizer(vocab=scored, extra_ids=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder, its model and its tokenizer."""
    words, home = tokenizer(), tmp_path_factory.mktemp("t5")
    config = transformers.T5Config(**{**SIZES, "vocab_size": len(words) + 3}, feed_forward_proj="gated-gelu")
    model = spread(transformers.T5ForConditionalGeneration(config))
    words.save_pretrained(save(model, home))
    return home, model, words


def told(words, ids):
    """Rows as `generate` gives them, without the start, and up to their end."""
    rows = [row[1:].tolist() for row in ids]
    return [row[: row.index(words.eos_token_id) + 1] if words.eos_token_id in row else row for row in rows]


def test_its_tokenizer_gives_the_same_ids(folder):
    home, _, words = folder
    ours = Pretrained(str(home)).train(())
    texts = [*TEXTS, "the <extra_id_0> sat <extra_id_3>"]
    found, theirs = ours.encode(texts, 12), words(texts, padding="max_length", max_length=12, return_tensors="np")
    np.testing.assert_array_equal(found["ids"], theirs["input_ids"])
    np.testing.assert_array_equal(found["mask"], theirs["attention_mask"].astype(bool))
    assert (ours.pad_id, ours.eos_id, ours.opening) == (0, 1, (0,))


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_transformers(folder, beams):
    home, model, words = folder
    inputs = words(TEXTS, padding=True, return_tensors="pt")
    theirs = model.generate(**inputs, num_beams=beams, max_new_tokens=NEW, do_sample=False)
    found = mmjax.Predictor(home).generate(TEXTS, num_beams=beams, max_new_tokens=NEW, details=True)
    assert [one.ids for one in found] == told(words, theirs)
    assert len({tuple(one.ids) for one in found}) == len(TEXTS)


def test_the_command_writes_what_it_reads(folder, capsys):
    home, model, words = folder
    theirs = model.generate(**words(TEXTS, padding=True, return_tensors="pt"), max_new_tokens=NEW, do_sample=False)
    assert main(["predict", str(home), "--text", *TEXTS, "--max_new_tokens", str(NEW)]) == 0
    ours = [json.loads(line)["target"] for line in capsys.readouterr().out.splitlines()]
    assert ours == words.batch_decode(theirs, skip_special_tokens=True)


def their_loss(model, batch=BATCH):
    text, mask, target = (torch.tensor(batch[key].astype(np.int64)) for key in ("text", "text_mask", "target"))
    labels = target.masked_fill(~torch.tensor(batch["target_mask"]), -100)
    return model(input_ids=text, attention_mask=mask, labels=labels).loss.item()


@pytest.mark.parametrize("start", [0, pytest.param(5, marks=pytest.mark.slow)])
def test_the_loss_is_theirs(start, tmp_path):
    """The decoder reads its first token, then the labels one late."""
    model = spread(transformers.T5ForConditionalGeneration(transformers.T5Config(**{**SIZES, "decoder_start_token_id": start})))
    ours, params = load(save(model, tmp_path))
    forward = bound(ours, params, BATCH)
    loss = compiled(lambda: CausalLM("target", text="target")(forward, forward.batch, jax.random.key(0)))()
    assert_close(loss.sum / loss.count, their_loss(model))
    assert float(loss.count) == BATCH["target_mask"].sum()


def test_mt5_is_read_as_t5_is():
    t5, mt5 = (dict(FAMILIES[name].fields) for name in ("t5", "mt5"))
    assert t5.keys() - mt5.keys() == {"scale_decoder_outputs"} and mt5.keys() < t5.keys()
    for name, field in mt5.items():
        other = dataclasses.replace(t5[name], default=field.default) if isinstance(field, Honoured) else t5[name]
        assert other == field, name
    config = transformers.MT5Config().to_dict()
    assert all(field.default == config.get(name, field.default) for name, field in mt5.items() if isinstance(field, Honoured))


def test_an_output_of_its_own_is_read_and_written(tmp_path):
    """As version 1.1 has it: config.json says that it is not tied, by which its scale is told; mT5 has no scale at all."""
    for kind, scaled in (("T5", False), ("MT5", False), ("T5", True)):
        home = tmp_path / f"{kind}{scaled}"
        made = getattr(transformers, f"{kind}ForConditionalGeneration")
        save(spread(made(made.config_class(**SIZES))), home)
        tensors = load_file(home / "model.safetensors")
        own = np.random.default_rng(1).normal(size=tensors["shared.weight"].shape).astype(np.float32)
        save_file(tensors | {"lm_head.weight": own}, home / "model.safetensors", {"format": "pt"})
        config = json.loads((home / "config.json").read_text())
        if not scaled:  # of version 4 of transformers
            config.pop("scale_decoder_outputs", None)
            config["tie_word_embeddings"] = False
        (home / "config.json").write_text(json.dumps({**config, "n_positions": 77}))
        theirs = made.from_pretrained(home).eval()
        assert theirs.lm_head.weight is not theirs.shared.weight
        model, params = load(home)
        decoder = model.decoders["target"]
        assert (decoder.tied, decoder.scale_output, decoder.max_length) == (False, scaled, 77)
        forward = bound(model, params, BATCH)
        loss = compiled(lambda: CausalLM("target", text="target")(forward, forward.batch, jax.random.key(0)))()  # noqa: B023
        assert_close(loss.sum / loss.count, their_loss(theirs))
        assert save_hf(model, params, home / "back") == made.__name__
        assert their_loss(made.from_pretrained(home / "back").eval()) == their_loss(theirs)
        assert {name: x.tobytes() for name, x in load_file(home / "back" / "model.safetensors").items()} == {
            name: x.tobytes() for name, x in load_file(home / "model.safetensors").items()
        }

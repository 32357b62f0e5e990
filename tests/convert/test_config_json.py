"""config.json as it is read: the type of every field of every family, and fields that nothing knows."""

import json
import logging

import numpy as np
import pytest
import transformers as hf
from parity import randomise, save
from safetensors.torch import load_file, save_file

import mmjax
from mmjax.convert import FAMILIES
from mmjax.convert.config_json import KINDS, kind_of, unknown_fields
from mmjax.convert.config_paths import get, put
from mmjax.convert.family import Honoured
from mmjax.convert.huggingface import build_model
from mmjax.core.errors import UserError

WRONG = {"whole": "2", "wholes": "2", "number": "0.1", "flag": "yes", "word": [1], "object": 3}
FIELDS = [(name, path, kind_of(field)) for name, family in FAMILIES.items() for path, field in family.table().items()]
TYPED = [(name, path, kind) for name, path, kind in FIELDS if kind in WRONG]


def test_every_honoured_field_has_a_type():
    left = [(name, path) for name, family in FAMILIES.items() for path, f in family.fields.items() if isinstance(f, Honoured)]
    untyped = {(name, path) for name, path, kind in FIELDS if kind not in KINDS}
    assert not [each for each in left if each in untyped]


@pytest.mark.parametrize(("name", "path", "kind"), TYPED)
def test_a_value_of_the_wrong_type_is_named(name, path, kind):
    config = {"model_type": name}
    put(config, path, WRONG[kind])
    with pytest.raises(UserError, match=path.split(".")[-1]):
        build_model(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("text_config", [1]), ("id2label", ["a"]), ("id2label", {"a": "b"}), ("architectures", "CLIPModel"), ("torch_dtype", 1)],
)
def test_so_is_a_group_or_a_list_of_names(field, value):
    with pytest.raises(UserError, match=field):
        build_model({"model_type": "clip", field: value})


@pytest.mark.parametrize("name", FAMILIES)
def test_the_config_that_transformers_writes_has_no_unknown_field(name):
    config = hf.AutoConfig.for_model(name)
    assert unknown_fields(FAMILIES[name], json.loads(config.to_json_string(use_diff=False))) == []


def test_an_unknown_field_is_told_and_a_silent_one_is_not(tmp_path, caplog):
    size = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
    folder = save(randomise(hf.GPT2LMHeadModel(hf.GPT2Config(**size))), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    silent = {"_name_or_path": "x", "torch_dtype": "float32", "n_ctx": 8, "gradient_checkpointing": True, "unused": None}
    (folder / "config.json").write_text(json.dumps(config | silent | {"qk_norm": True}))
    with caplog.at_level(logging.WARNING, "mmjax"):
        mmjax.load(folder)
    said = [record.getMessage() for record in caplog.records if record.name == "mmjax"]
    assert len(said) == 1 and "qk_norm=True" in said[0] and not any(name in said[0] for name in silent)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 31}
TEXT = SMALL | {"max_position_embeddings": 12}
IMAGE = {name: value for name, value in SMALL.items() if name != "vocab_size"} | {"image_size": 8, "patch_size": 4}
WHISPER = {
    "vocab_size": 31,
    "d_model": 16,
    "num_mel_bins": 8,
    "max_source_positions": 6,
    "max_target_positions": 12,
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
    **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos")},
}
TIED = {
    "bert": ("BertForMaskedLM", TEXT),
    "roberta": ("RobertaForMaskedLM", TEXT),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 31, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12}),
    "llama": ("LlamaForCausalLM", TEXT | {"tie_word_embeddings": True}),
    "blip": ("BlipForConditionalGeneration", {"text_config": TEXT, "vision_config": IMAGE}),
    "vilt": ("ViltForMaskedLM", TEXT | IMAGE),
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "llama", "tie_word_embeddings": True},
            "vision_config": IMAGE | {"model_type": "clip_vision_model"},
            "tie_word_embeddings": True,
            "image_token_index": 30,
        },
    ),
    "whisper": ("WhisperForConditionalGeneration", WHISPER | {"decoder_start_token_id": 2}),
}


def test_every_family_that_can_be_tied_is_tried():
    """Those of two sides, whose words are shared by name, in test_t5.py and test_bart.py."""
    assert TIED.keys() | {"t5", "mt5", "bart"} == {name for name, family in FAMILIES.items() if family.ties}


@pytest.mark.parametrize("name", TIED)
def test_an_output_matrix_of_its_own_is_read_where_the_config_says_tied(name, tmp_path):
    """The file's matrix arrives, and goes back; one that equals the words leaves the model tied."""
    kind, sizes = TIED[name]
    theirs = randomise(getattr(hf, kind)(getattr(hf, kind).config_class(**sizes)))
    folder, family = save(theirs, tmp_path / "hf"), FAMILIES[name]
    held = load_file(folder / "model.safetensors")
    tie = family.ties[0]
    words = next(x for key, x in held.items() if key.endswith(("word_embeddings.weight", "wte.weight", "embed_tokens.weight")))
    for other in (False, True):
        matrix = words.clone() * (2 if other else 1)
        save_file(
            {**{key: x.clone() for key, x in held.items()}, tie.output: matrix}, folder / "model.safetensors", {"format": "pt"}
        )
        model, params = mmjax.load(folder)
        assert all(get(model.huggingface, field, True) is not other for field in tie.fields) or not other
        mmjax.save_hf(model, params, tmp_path / f"back-{other}")
        back = load_file(tmp_path / f"back-{other}" / "model.safetensors")
        assert (tie.output in back) is other
        if other:
            np.testing.assert_array_equal(back[tie.output].numpy(), matrix.numpy())

"""BLIP's defaults, what ties its output, and what its config cannot say."""

import pytest
import transformers
from families.blip import BLIP, CAPTION
from parity import save

from mmjax.convert import load, save_hf
from mmjax.convert.config_paths import put
from mmjax.convert.huggingface import build_model
from mmjax.core.errors import UserError


def built(**changes):
    """Our captioner of a config as public files of version 4 have it: what they lack has its default."""
    config = {"model_type": "blip", "torch_dtype": "float32", "architectures": [CAPTION.name]}
    for field, value in changes.items():
        put(config, field, value)
    return build_model(config)[1]


def test_fields_that_are_not_there_have_their_defaults():
    model = built()
    decoder, image = model.decoders["caption"], model.encoders["image"]
    theirs = transformers.BlipConfig()
    assert (decoder.width, decoder.depth, decoder.heads) == (768, 12, theirs.text_config.num_attention_heads)
    assert (decoder.norm_epsilon, decoder.max_length, decoder.tied) == (1e-12, 512, True)
    assert (image.image_size, image.patch, image.norm_epsilon) == ((384, 384), (16, 16), 1e-5)


@pytest.mark.parametrize(("top", "text"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_output_is_tied_unless_both_flags_say_no(top, text):
    flags = {"tie_word_embeddings": top, "text_config.tie_word_embeddings": text}
    decoder = BLIP.make(CAPTION.of(flags)).text_decoder
    tied = decoder.cls.predictions.decoder.weight is decoder.bert.embeddings.word_embeddings.weight
    assert built(**flags).decoders["caption"].tied == tied == (top or text)


def test_a_patch_that_does_not_divide_the_default_image_is_refused():
    with pytest.raises(UserError, match=r"image_size=40 is not supported by blip here: .*patch_size=16 must"):
        built(**{"vision_config.image_size": 40})


def test_a_frame_that_is_not_square_has_no_config(tmp_path):
    model, params = load(save(BLIP.make(CAPTION), tmp_path / "hf"))
    wide = model.copy(encoders={"image": model.encoders["image"].copy(image_size=(12, 16))})
    with pytest.raises(UserError, match=r"vision_config.image_size=\(12, 16\): a BLIP config holds a square only"):
        save_hf(wide, params, tmp_path / "back")

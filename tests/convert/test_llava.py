"""LLaVA: which layer of the image it reads, and how many places of the text it needs."""

import numpy as np
import pytest
import torch
from cases import given
from families.llava import LLAVA, WHOLE
from parity import assert_close, bound, part, save

from mmjax.convert import load
from mmjax.convert.config_paths import set_leaf
from mmjax.core.errors import UserError


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    theirs = LLAVA.make(WHOLE)
    return theirs, *load(save(theirs, tmp_path_factory.mktemp("llava") / "hf"))


def test_what_each_layer_gives_and_images_of_another_shape(both):
    theirs, model, params = both
    wide = np.random.default_rng(0).normal(size=(2, 8, 16, 3)).astype(np.float32)
    tower = theirs.model.vision_tower
    out = tower(torch.tensor(wide.transpose(0, 3, 1, 2)), interpolate_pos_encoding=True, output_hidden_states=True)
    encode = lambda m, p: bound(m, p, {"image": wide}).encode("image").embeddings  # noqa: E731
    for layer in (0, 1, -1, -2, -4):
        taken = set_leaf(model, "encoders.image.take_layer", layer)
        assert_close(part(encode, taken, params, ("encoders.image",)), out.hidden_states[layer])


def test_a_wrong_number_of_image_tokens_is_refused_as_there(both):
    theirs, model, params = both
    batch = LLAVA.batch(theirs)
    batch["text"][1, :8] = 5
    with pytest.raises(ValueError, match="tokens: 8"):
        theirs(**given(theirs, batch, LLAVA.silent))
    forward = bound(model, params, batch)
    with pytest.raises(UserError, match="place=35: text 1 has 0 of this id, and its image has 4 tokens"):
        forward.decode("caption", batch, {"image": forward.encode("image")})


def test_the_longest_text_changes_no_answer_and_is_ours(tmp_path):
    theirs = LLAVA.make(WHOLE.of({"text_config.max_position_embeddings": 99}))
    assert load(save(theirs, tmp_path / "hf"))[0].decoders["caption"].max_length == 99

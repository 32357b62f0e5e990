"""Reading the tensors of a folder, whatever the family."""

import numpy as np
import transformers as hf
from parity import randomise, save
from safetensors.numpy import load_file

from mmjax.convert import load


def test_more_than_ten_layers_come_in_their_order(tmp_path):
    """By name, layer 10 comes before layer 2."""
    theirs = randomise(hf.GPT2Model(hf.GPT2Config(vocab_size=7, n_embd=4, n_layer=12, n_head=1, n_positions=3)))
    _, params = load(save(theirs, tmp_path))
    files = load_file(tmp_path / "model.safetensors")
    kernels = params["encoders_text"]["stack"]["layers"]["mlp"]["up"]["kernel"]
    for layer in range(12):
        np.testing.assert_array_equal(kernels[layer], files[f"h.{layer}.mlp.c_fc.weight"], err_msg=f"layer {layer}")

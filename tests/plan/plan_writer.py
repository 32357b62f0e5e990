"""GPT-2 small, as a config that the tests of this folder price."""

from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.train import Experiment


def experiment(**fields):
    gpt2 = {"vocab_size": 50257, "max_length": 1024, "activation": "gelu_tanh"}
    model = Multimodal(encoders={}, decoders={"text": TextDecoder(context=(), **(gpt2 | fields))})
    return Experiment(model=model, data={}, tasks={}, steps=0)

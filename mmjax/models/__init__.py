"""Rung 3: encoders, fusions, decoders and heads, the model that names them, and the forward that objectives see."""

from mmjax.models.multimodal import Multimodal, init_params, param_shapes

__all__ = ["Multimodal", "init_params", "param_shapes"]

"""mmjax: multimodal Transformers in JAX, from one config file to a TPU pod."""

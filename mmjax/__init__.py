"""mmjax: multimodal Transformers in JAX, from one config file to a TPU pod.

Where things are, from the top: `mmjax.cli` the command line; `mmjax.train` experiments, the step and the loop;
`mmjax.evaluate` evaluators; `mmjax.models` encoders, fusions, decoders and heads; `mmjax.nn` layers; `mmjax.objectives`
losses; `mmjax.data` sources, transforms and batches; `mmjax.parallel` the mesh; `mmjax.core` the words all of them share.
"""

"""How the losses of several tasks, or their gradients, become one update. Optax style: `init` and `update`, no other state.

losses, pullback = jax.vjp(task_losses, params)     # task_losses: params -> {task: [] float32}
gradient, state, metrics = weighting.update(state, losses, lambda cotangents: pullback(cotangents)[0], key)
"""

from mmjax.train.weighting.dynamic import DynamicWeightAverage
from mmjax.train.weighting.fixed import Fixed
from mmjax.train.weighting.gradnorm import GradNorm
from mmjax.train.weighting.pcgrad import PCGrad
from mmjax.train.weighting.protocol import Weighting
from mmjax.train.weighting.uncertainty import Uncertainty

WEIGHTINGS: dict[str, type[Weighting]] = {
    "dynamic": DynamicWeightAverage,
    "fixed": Fixed,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "uncertainty": Uncertainty,
}

__all__ = ["WEIGHTINGS", "DynamicWeightAverage", "Fixed", "GradNorm", "PCGrad", "Uncertainty", "Weighting"]

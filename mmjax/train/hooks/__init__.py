"""What happens beside the steps, one hook a file: figures, evaluation, patience, saving and profile in any run, then those that
a config names."""

from mmjax.train.hooks.hook import Hook, HookSpec
from mmjax.train.hooks.norms import Norms
from mmjax.train.hooks.time_budget import TimeBudget

HOOKS: dict[str, type[HookSpec]] = {
    "norms": Norms,
    "time_budget": TimeBudget,
}

__all__ = ["HOOKS", "Hook", "HookSpec", "Norms", "TimeBudget"]

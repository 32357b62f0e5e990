"""How likely each class is by the logits of a head, and which comes first."""

from __future__ import annotations

import numpy as np

from mmjax.evaluate import ordinals


def shares(logits: np.ndarray, outcome: str) -> tuple[np.ndarray, np.ndarray]:
    """([N, C] float, [N, C] int): how likely each class is, and the classes with the likeliest first.

    Args:
      logits: [N, C], of `ordered` classes [N, C - 1].
      outcome: what they were trained for, see `train.classes.Use`: of `one` class and of an `ordered` one the shares sum to 1,
        of `several` each is by itself. Of ordered ones the first is that of `evaluate.Ordinals`, the middle of the shares,
        which need not be the largest.
    """
    if outcome == "ordered":
        share_NC = ordinals.shares(logits)
        first_N1 = ordinals.ranks(logits)[:, None]
        key_NC = np.where(np.arange(share_NC.shape[1])[None] == first_N1, 2.0, share_NC)
        return share_NC, np.argsort(-key_NC, axis=-1, kind="stable")
    if outcome == "several":
        share_NC = 1 / (1 + np.exp(-logits))
    else:
        share_NC = np.exp(logits - logits.max(-1, keepdims=True))
        share_NC = share_NC / share_NC.sum(-1, keepdims=True)
    return share_NC, np.argsort(-share_NC, axis=-1, kind="stable")

"""Adapters to and from folders of `peft`."""

from mmjax.convert.peft.from_peft import from_peft
from mmjax.convert.peft.to_peft import to_peft

__all__ = ["from_peft", "to_peft"]

"""Adapters to and from folders of `peft`: `to_peft.to_peft` writes one, `from_peft.from_peft` reads one."""

"""Bottlenecks to and from folders of the `adapters` library: `to_adapters.to_adapters`, `from_adapters.from_adapters`."""

"""Rung 6: a run, or an imported checkpoint, at work on new inputs."""

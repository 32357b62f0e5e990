"""Rung 1: the mesh, the one table of parameter shardings, and constraints on activations."""

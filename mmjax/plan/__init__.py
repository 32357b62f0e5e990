"""Rung 6: what an experiment will cost on a TPU, from compiling its real step for that TPU; no TPU is needed."""

"""Rung 2: the layers. Everything that multiplies a matrix goes through `linear`, everything that is deep through `stack`."""

"""Rung 0: the words, the tree helpers and the config machinery that every room shares."""

"""Lines about data that are said once: a source is opened for each split, for its texts, for training and for the test."""

from __future__ import annotations

import functools
import logging


def warn_once(log: logging.Logger, line: str, *args: object) -> None:
    """`log.warning`, of a line that this process has not said yet."""
    say_once(log.name, logging.WARNING, line % args)


@functools.cache
def say_once(logger: str, level: int, line: str) -> None:
    """A line of a logger, once a process. (`say_once.cache_clear()` forgets what was said.)"""
    logging.getLogger(logger).log(level, "%s", line)

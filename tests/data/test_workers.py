"""Worker processes: they end when they are told to, and one that dies is said."""

import multiprocessing
import os
import queue
import signal
import threading
import time

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data import Data, Digits, Normalise, Resize
from mmjax.data.workers import closed


class Process:
    exitcode = None


class Worker:
    """Stands for grain's: it ends when all that it sends was taken, of which one thing fits into its pipe."""

    def __init__(self):
        self._prefetch_process, self._prefetch_should_stop = Process(), threading.Event()
        self._buffer, self.left = queue.Queue(1), list(range(5))

    def send(self):
        while self.left:
            self._buffer.put(self.left.pop())


class Steps:
    def __init__(self, workers):
        self._iterators_in_use = [*workers, None]

    def close(self):
        for worker in self._iterators_in_use[:-1]:
            worker._prefetch_should_stop.set()
            thread = threading.Thread(target=worker.send, daemon=True)
            thread.start()
            thread.join(5)


def test_what_workers_still_send_is_taken():
    workers = [Worker(), Worker()]
    workers[1]._buffer.put("of use to who waits for it")
    closed(Steps(workers))
    assert [worker.left for worker in workers] == [[], []]


def test_workers_of_large_batches_end_at_once_and_one_that_dies_is_said():
    data = Data(Digits(), (Resize((96, 96)), Normalise()), batch_size=16, workers=1, threads=0)  # 590 kB a batch
    dataset = data.build(None, 0, "train")
    with dataset.batches() as batches:
        found = next(batches)
        began = time.monotonic()
    assert time.monotonic() - began < 5 and not multiprocessing.active_children()
    np.testing.assert_array_equal(found["image"], dataset.batch(0)["image"])
    with dataset.batches() as batches:
        next(batches)
        time.sleep(0.5)  # until it waits in the middle of a batch, of which the pipe takes the beginning
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        said = []
        reader = threading.Thread(target=read_on, args=(batches, said), daemon=True)
        reader.start()
        reader.join(20)
        assert not reader.is_alive()
    assert len(said) == 1 and said[0].startswith("data.train: workers: a process that reads has died with exit code -9; ")


def read_on(batches, said):
    """Until something is wrong, which is said."""
    try:
        for _ in range(50):
            next(batches)
    except UserError as error:
        said.append(str(error))

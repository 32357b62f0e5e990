"""What hangs is named, what does not is left alone."""

import subprocess
import sys
import threading
import time

import pytest

from mmjax.core.errors import UserError
from mmjax.train import Log
from mmjax.train.watchdog import Watchdog


def test_a_hung_step_is_named():
    said, heard = [], threading.Event()
    dog = Watchdog(0.2, lambda line: (said.append(line), heard.set()))
    with dog.watch("step 12 has hung"):
        assert heard.wait(20)
    dog.close()
    assert len(said) == 1 and said[0].startswith("process 0: step 12 has hung for more than 0.2 s; if that is normal raise")


def test_what_comes_back_in_time_is_left_alone():
    said = []
    dog = Watchdog(2.0, said.append)
    for _ in range(30):
        with dog.watch("a step"):
            time.sleep(0.01)
    time.sleep(0.1)  # between two steps nothing is watched
    dog.close()
    assert said == [] and not dog._thread.is_alive()


def test_zero_watches_nothing():
    dog = Watchdog(0.0)
    assert not dog._thread.is_alive()
    dog.close()
    with pytest.raises(UserError, match=r"log\.watchdog=-1"):
        Log(watchdog=-1)


def test_the_process_ends_though_its_main_thread_hangs():
    code = (
        "import time; from mmjax.train.watchdog import Watchdog\n"
        "with Watchdog(0.3).watch('step 3 has waited for a batch of train'): time.sleep(60)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("mmjax: process 0: step 3 has waited for a batch of train for more than 0.3 s")

"""One of several processes that join and then do what a word says: `python peer.py WORD PORT PROCESSES PROCESS`."""

import json
import os
import signal
import sys
import time

from mmjax.core.errors import UserError
from mmjax.parallel import multihost
from mmjax.parallel.multihost import Join, agree, barrier, gather, is_main, joined, told


def before(word: str, process: int) -> None:
    """What is odd about process 1 before it joins."""
    if word == "clock" and process == 1:
        now = time.time
        multihost.time.time = lambda: now() + 100
    if word == "version" and process == 1:
        version = multihost._version
        multihost._version = lambda package: "9.9" if package == "optax" else version(package)


def act(word: str, process: int) -> None:
    if word == "differ":
        values = {"gathered": gather("x", {"mine": process * 10}), "told": told("y", process + 5), "main": is_main()}
        agree("a thing", {"a": (1, 2), "b": {"c": "d"}})
        print(json.dumps(values), flush=True)
        agree("the plan", {"steps": 30, "model": {"depth": 2 + process, "width": 8}})
    if word == "late":
        if process == 1:
            time.sleep(3)
        barrier("the bridge", 1.5)
    if process == 1 and word == "mistake":
        raise UserError("no such folder: /data")
    if process == 1 and word == "defect":
        raise ValueError("a defect")
    if word in ("kill 0", "kill 1") and process == int(word[-1]):
        os.kill(os.getpid(), signal.SIGKILL)
    if word in ("mistake", "defect", "kill 0", "kill 1"):
        time.sleep(60)


def main() -> int:
    word, port, processes, process = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    before(word, process)
    patience = 12.0 if word in ("missing", "no coordinator") else 100.0
    try:
        with joined(Join(f"localhost:{port}", processes, process, join_timeout=patience, peer_timeout=6.0)):
            act(word, process)
    except UserError as error:
        print(f"mmjax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A filter, run as a process of its own: native code's reports of a dead peer on the way to standard error, as one line.

`python native_errors.py PROCESS SECONDS`, from standard input to standard error. It imports nothing of ours, so that it
starts at once.
"""

import re
import signal
import sys
from collections.abc import Iterable, Iterator

NOISE = re.compile(
    r"[EWI]\d{4} [\d:. ]+ (coordination|preemption|distributed)_?\w*\.(cc|h):|Additional GRPC error|:UNKNOWN:Error"
)
FATAL = "JAX distributed service detected fatal errors"
UNHEALTHY = "stopped sending heartbeats"


def filter_lines(lines: Iterable[str], process: int, seconds: float) -> Iterator[str]:
    """The lines to show: all but the coordination service's; of its last report, one that says who died; then nothing."""
    after_noise = False
    report: list[str] = []
    for line in lines:
        if report or FATAL in line:
            report.append(line)
        elif NOISE.match(line):
            after_noise = True
        elif line.startswith("mmjax: "):
            yield line
            return
        elif not (after_noise and not re.match(r"[A-Z]\d{4} |\w+:", line)):
            after_noise = False
            yield line
    if report:
        yield f"mmjax: {why('   '.join(report), process, seconds)}; what was saved is kept: start the same command again\n"


def why(report: str, process: int, seconds: float) -> str:
    """Who died, as the service's report has it."""
    dead = re.search(UNHEALTHY + r"\)?:\s+([\d, ]+)", report)
    if dead:
        names = ", ".join(re.findall(r"\d+", dead[1]))
        return f"process {names} has died or cannot be reached (no sign of life for {seconds:g} s)"
    if "RPC" in report and "UNAVAILABLE" in report:
        return "process 0, which coordinates, has died or cannot be reached"
    found = re.search(r"absl::Status: ([^\n]+)", report)
    return f"process {process}: the processes have lost each other ({found[1].strip() if found else 'no reason given'})"


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    shown = filter_lines(sys.stdin, int(sys.argv[1]), float(sys.argv[2]))
    for text in shown:
        sys.stderr.write(text)
        sys.stderr.flush()
    for _ in sys.stdin:  # until the last writer is gone, or it would be killed by a broken pipe
        pass

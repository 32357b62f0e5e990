"""A run that is hit by faults and killed again and again, against one that was left in peace: nothing good is ever lost.

    python benchmarks/faults.py                 # 20 faults; some minutes on two cores
    python benchmarks/faults.py --faults 100 --seed 7

Each life of the run meets one fault: a read or a write of its folder that fails once, twice or always (EIO, a time-out, a 503,
no memory), or damage done between two lives (a checkpoint's file cut short, a torn line in metrics.jsonl). Then, at a moment
drawn at random, comes `kill -9`. After each life every checkpoint that was good before must be there still, unless a later one
is (the keeping policy's doing) or the damage was done to it on purpose, and then it must have been set aside and not deleted.
At the end the run is finished without faults, and its parameters, its metrics and its final figures must be those of the
undisturbed run, bit for bit.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS, PACE = 150, 0.05  # of the run; seconds that a step takes at least, so that a kill can come between two
BEST = "report/accuracy"
TROUBLES = {
    "EIO": lambda: OSError(errno.EIO, "Input/output error"),
    "a time-out": lambda: OSError(errno.ETIMEDOUT, "Connection timed out"),
    "a 503": lambda: RuntimeError("503 Service Unavailable"),
    "no memory": lambda: MemoryError("cannot allocate memory"),
}
IN_LIFE = (
    "reading a checkpoint",
    "reading a file",
    "listing a folder",
    "saving a checkpoint",
    "finishing a checkpoint in the background",
    "replacing a file",
)
BETWEEN = ("a checkpoint's file is cut short", "a line of metrics.jsonl is torn", "nothing")
SPEED = re.compile(r".*(_per_second|_used)$")


def experiment(local: str) -> Any:
    from mmjax.data import Data, Digits, Normalise
    from mmjax.evaluate import Report
    from mmjax.models import Multimodal
    from mmjax.models.encoders import ViT
    from mmjax.models.heads import Classifier
    from mmjax.objectives import Classification
    from mmjax.train import AdamW, Checkpoint, Experiment, Log, Task

    encoder = ViT(image_size=(8, 8), patch=(4, 4), width=16, depth=1, heads=2)
    data = {s: Data(Digits(s), (Normalise(),), batch_size=36, threads=0) for s in ("train", "validation", "test")}
    return Experiment(
        model=Multimodal(encoders={"image": encoder}, heads={"classes": Classifier(classes=10)}),
        data=data,
        tasks={"classes": Task(Classification())},
        optimizer=AdamW(learning_rate=3e-3, ema=0.9),
        steps=STEPS,
        evaluate={"report": Report()},
        evaluate_every=10,
        checkpoint=Checkpoint(every=5, keep=2, best=BEST, local=local, local_every=2),
        log=Log(every=1, tensorboard=False, progress=False),
    )


def live(run: Path, fault: str, trouble: str, times: int) -> None:
    """One life of the run, in this process: its first reads or writes of one kind fail that many times."""
    import jax
    import orbax.checkpoint as ocp

    from mmjax.train import reading, train
    from mmjax.train.setup import Setup

    jax.config.update("jax_compilation_cache_dir", str(run.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    reading.WAITS = (0.02, 0.05, 0.1)
    place = Setup.place

    def slowly(self: Any, batch: Any) -> Any:
        time.sleep(PACE)
        return place(self, batch)

    Setup.place = slowly  # type: ignore[method-assign]
    manager: Any = ocp.CheckpointManager
    targets: dict[str, tuple[Any, str]] = {
        "reading a checkpoint": (manager, "restore"),
        "reading a file": (Path, "read_bytes"),
        "listing a folder": (Path, "iterdir"),
        "saving a checkpoint": (manager, "save"),
        "finishing a checkpoint in the background": (manager, "_finalize_checkpoint"),
        "replacing a file": (os, "replace"),
    }
    if fault in targets:
        owner, name = targets[fault]
        setattr(owner, name, failing(getattr(owner, name), TROUBLES[trouble], times, str(run)))
    train(experiment(str(run.parent / "local")), run)


def failing(act: Callable[..., Any], trouble: Callable[[], Exception], times: int, run: str) -> Callable[..., Any]:
    left = [times]

    def fail(*args: Any, **kwargs: Any) -> Any:
        ours = not isinstance(args[0], (str, Path)) or str(args[0]).startswith(run)
        if ours and left[0] > 0:
            left[0] -= 1
            raise trouble()
        return act(*args, **kwargs)

    return fail


def start(run: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--live", str(run), *words]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with (run.parent / "stderr").open("a") as said:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said, text=True)


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return whole.hexdigest()[:16]


def checkpoints(run: Path) -> dict[int, str]:
    folder = run / "checkpoints"
    return {int(p.name): digest(p) for p in folder.iterdir() if p.name.isdigit()} if folder.is_dir() else {}


def metric(run: Path, step: int) -> float | None:
    try:
        about = json.loads((run / "checkpoints" / str(step) / "about" / "metadata").read_text())
    except (OSError, ValueError):
        return None
    return about["metrics"].get(BEST)


def damage(run: Path, kind: str, rng: random.Random) -> int | None:
    """Do it; returns the step of the checkpoint that was broken, if one was."""
    steps = sorted(checkpoints(run))
    if kind == BETWEEN[0] and len(steps) > 1:
        data = [
            p for p in (run / "checkpoints" / str(steps[-1]) / "state").rglob("*") if p.name in ("_METADATA", "manifest.ocdbt")
        ]
        file = rng.choice(sorted(p for p in data if p.parent.name == "state"))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return steps[-1]
    metrics = run / "metrics.jsonl"
    if kind == BETWEEN[1] and metrics.exists():
        lines = metrics.read_text().splitlines(keepends=True)
        at = rng.randrange(len(lines))
        metrics.write_text("".join([*lines[:at], lines[at][: rng.randrange(1, 20)], *lines[at:]]))
    return None


def lost(run: Path, before: dict[int, str], broken: int | None, ranked: dict[int, float]) -> str:
    """What was good and is gone without a reason; "" where nothing is."""
    now = checkpoints(run)
    good = {step: found for step, found in before.items() if step != broken}
    newer = [step for step in now if step > max(good, default=0)]
    best = max(((value, step) for step, value in ranked.items() if step in good), default=None)
    for step, found in sorted(good.items()):
        if now.get(step) == found:
            continue
        if step in now and len(newer) < 2:  # else it was being deleted, as the policy says, when the kill came
            return f"checkpoint {step} was changed"
        if not newer and not (best and step not in (best[1], *sorted(good)[-2:])):
            return f"checkpoint {step} is gone, and no newer one is there"
        value = ranked.get(step)
        if best and step == best[1] and not any((metric(run, other) or -1.0) >= (value or 0.0) for other in now):
            return f"the best checkpoint, {step}, is gone"
    aside = run / "checkpoints" / "set_aside"
    if broken is not None and broken not in now and not any(p.name.startswith(f"{broken}.") for p in aside.glob("*")):
        return f"the broken checkpoint {broken} was deleted"
    return ""


def lines_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not SPEED.match(name)} for line in lines]


def params_of(run: Path) -> str:
    import jax

    from mmjax.train import Checkpoint
    from mmjax.train.checkpoint import Checkpoints

    params, _ = Checkpoints(run / "checkpoints", Checkpoint(), read_only=True).params(STEPS)
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(params))).hexdigest()[:16]


def one_fault(number: int, run: Path, rng: random.Random) -> str:
    """One life with one fault and its end; the line of the log. Raises SystemExit where something good was lost."""
    between, broken = "nothing", None
    if rng.random() < 0.4:
        between = rng.choice(BETWEEN[:2])
        broken = damage(run, between, rng)
        if broken is None and between == BETWEEN[0]:
            between = "nothing"
    fault, trouble, times = rng.choice(IN_LIFE), rng.choice(sorted(TROUBLES)), rng.choice((1, 2, 1000))
    before = checkpoints(run)
    ranked = {step: value for step in before if (value := metric(run, step)) is not None}
    seen = len(lines_of_torn(run))
    life, until, delay = start(run, fault, trouble, str(times)), time.monotonic() + 120, rng.uniform(0.0, 1.5)
    while life.poll() is None and len(lines_of_torn(run)) <= seen and time.monotonic() < until:
        time.sleep(0.02)
    if life.poll() is None:
        time.sleep(delay)
        life.send_signal(signal.SIGKILL)
    status = life.wait()
    end = "kill -9" if status == -signal.SIGKILL else f"ended by itself, exit status {status}"
    wrong = lost(run, before, broken, ranked)
    count = {1: "once", 2: "twice"}.get(times, "always")
    kept = ", ".join(map(str, sorted(checkpoints(run)))) or "none"
    line = f"{number:2}  {between}; {fault}: {trouble} {count}; {end}; checkpoints: {kept}" + (
        f"; WRONG: {wrong}" if wrong else ""
    )
    print(line, flush=True)
    if wrong:
        raise SystemExit(f"lost: {wrong}; the run is in {run}")
    return line


def lines_of_torn(run: Path) -> list[str]:
    file = run / "metrics.jsonl"
    return file.read_text(errors="replace").splitlines() if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--live", nargs=4, metavar=("RUN", "FAULT", "TROUBLE", "TIMES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.live:
        live(Path(args.live[0]), args.live[1], args.live[2], int(args.live[3]))
        return
    home, rng = Path(tempfile.mkdtemp(prefix="faults_")), random.Random(args.seed)
    (home / "peace").mkdir()
    peace, run = home / "peace" / "run", home / "run"
    if start(peace, "none", "EIO", "0").wait():
        raise SystemExit((peace.parent / "stderr").read_text())
    for number in range(1, args.faults + 1):
        one_fault(number, run, rng)
    if start(run, "none", "EIO", "0").wait():
        raise SystemExit(f"the last start failed: {(run.parent / 'stderr').read_text()[-2000:]}")
    same = {
        "parameters": params_of(run) == params_of(peace),
        "metrics": lines_of(run) == lines_of(peace),
        "final figures": (run / "final.json").read_text() == (peace / "final.json").read_text(),
    }
    aside = run / "checkpoints" / "set_aside"
    print(f"set aside: {', '.join(sorted(p.name for p in aside.iterdir())) if aside.is_dir() else 'none'}")
    print(f"as in the undisturbed run, bit for bit: {json.dumps(same)}")
    raise SystemExit(0 if all(same.values()) else 1)


if __name__ == "__main__":
    main()

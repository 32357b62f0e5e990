"""Stands in for gcloud, kubectl, sbatch ...: records its calls, keeps machines, runs what is sent there, fails as told.

Driven by variables. STAND_IN: the folder of what it remembers. RUN: the number of the script's run. RULES: a JSON list of
{"on": words of the call, "skip": matches to let pass, "times": to act on (1), "stderr", "stdout", "status", "preempt": true}.
QUEUE: the states of a new request, one a look. WORKERS: of a machine. EDIT: a file that is edited when machines are
taken away. It starts hundreds of times, so it imports little.
"""

import fcntl
import json
import os
import sys

ROOT = os.environ["STAND_IN"]
TOOL = os.path.basename(sys.argv[0])
WORDS = sys.argv[1:]
NOT_FOUND = "ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource 'projects/p/locations/z/{}' was not found"
EXISTS = "ERROR: (gcloud.compute.tpus) ALREADY_EXISTS: Resource 'projects/p/locations/z/{}' already exists"


def option(name: str, default: str = "") -> str:
    return next((word.partition("=")[2] for word in WORDS if word.startswith(f"--{name}=")), default)


def answer(stdout: str = "", stderr: str = "", status: int = 0) -> None:
    print(stdout, end="\n" if stdout else "")
    print(stderr, end="\n" if stderr else "", file=sys.stderr)
    sys.exit(status)


def wipe(start: str) -> None:
    """The disks of the workers whose names start so."""
    import shutil

    for home in os.listdir(f"{ROOT}/homes"):
        if home.startswith(start):
            shutil.rmtree(f"{ROOT}/homes/{home}")


def rule(memory: dict) -> dict | None:
    """The first rule that this call sets off."""
    call = " ".join([TOOL, *WORDS])
    for number, found in enumerate(json.loads(os.environ.get("RULES", "[]"))):
        if found["on"] in call:
            key = f"{os.environ['RUN']}.{number}"
            seen = memory["seen"].get(key, 0)
            memory["seen"][key] = seen + 1
            skip = found.get("skip", 0)
            if skip <= seen < skip + found.get("times", 1):
                return found
    return None


def take_away(memory: dict) -> None:
    memory["machines"] = dict.fromkeys(memory["machines"], "PREEMPTED")
    for request in memory["requests"].values():
        request["states"] = ["ACTIVE", "SUSPENDING", "SUSPENDED"]
    wipe("")
    if "EDIT" in os.environ:
        with open(os.environ["EDIT"], "w") as edited:
            edited.write("edited")


def machines(memory: dict, kind: str, verb: str, name: str) -> None:
    """`queued-resources` and `tpu-vm`: create, describe, delete."""
    kept = memory["requests"] if kind == "queued-resources" else memory["machines"]
    if verb == "create" and name in kept:
        answer(stderr=EXISTS.format(name), status=1)
    if verb != "create" and name not in kept:
        answer(stderr=NOT_FOUND.format(name), status=1)
    if verb == "create" and kind == "tpu-vm":
        kept[name] = "READY"
    elif verb == "create":
        count = int(option("node-count", "1"))
        nodes = [option("node-id")] if count == 1 else [f"{option('node-prefix')}-{i}" for i in range(count)]
        kept[name] = {"states": os.environ.get("QUEUE", "ACTIVE").split(), "nodes": nodes}
    elif verb == "delete":
        gone = kept.pop(name)
        for node in gone["nodes"] if kind == "queued-resources" else [name]:
            memory["machines"].pop(node, None)
            wipe(f"{node}.")
    elif kind == "tpu-vm":
        print(kept[name])
    elif "failedData" in option("format"):
        print(os.environ.get("FAILED_BECAUSE", ""))
    else:
        states = kept[name]["states"]
        state = states.pop(0) if len(states) > 1 else states[0]
        if state == "ACTIVE":
            for node in kept[name]["nodes"]:
                memory["machines"].setdefault(node, "READY")
        print(state)


def homes(memory: dict, node: str) -> list[str]:
    """Of the workers that are meant; fails as gcloud does where the machine is not usable."""
    if node not in memory["machines"]:
        answer(stderr=NOT_FOUND.format(node), status=1)
    if memory["machines"][node] != "READY":
        answer(
            stderr=f'ERROR: (gcloud) This TPU has terminal state "{memory["machines"][node]}", so it cannot be used anymore.',
            status=1,
        )
    which = option("worker", "0")
    found = [f"{ROOT}/homes/{node}.{i}" for i in (range(int(os.environ.get("WORKERS", "2"))) if which == "all" else [which])]
    for home in found:
        os.makedirs(home, exist_ok=True)
    return found


def on_machines(verb: str, found: list[str]) -> None:
    if verb == "scp":
        import shutil

        source, target = [word for word in WORDS if not word.startswith("--")][-2:]
        for home in found:
            shutil.copy(source, f"{home}/{target.partition(':')[2]}")
        return
    os.closerange(
        3, 64
    )  # as ssh, which hands nothing else over: what goes on in the background would keep the script's pipes open
    status = 0
    for home in found:
        os.chdir(home)
        environment = {**os.environ, "HOME": home, "PATH": f"{ROOT}/worker:{os.environ['PATH']}"}
        status = os.spawnvpe(os.P_WAIT, "bash", ["bash", "-c", option("command")], environment) or status
    sys.exit(status)


def gcloud(memory: dict) -> tuple[str, list[str]] | None:
    words = [word for word in WORDS if word != "alpha"]
    if words[:2] != ["compute", "tpus"]:
        return None
    kind, verb, name = words[2:5]
    if verb in ("create", "describe", "delete"):
        machines(memory, kind, verb, name)
        return None
    node = next(word for word in words[4:] if not word.startswith("--") and (verb == "ssh" or ":" in word)).partition(":")[0]
    return verb, homes(memory, node)


def main() -> None:
    with open(f"{ROOT}/memory", "r+") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        with open(f"{ROOT}/calls", "a") as calls:
            print(json.dumps([TOOL, *WORDS]), file=calls)
        memory = json.load(kept)
        try:
            told = rule(memory)
            if told and told.get("preempt"):
                take_away(memory)
            if told and {"status", "stderr", "stdout"} & set(told):
                answer(told.get("stdout", ""), told.get("stderr", ""), told.get("status", 0))
            there = gcloud(memory) if TOOL == "gcloud" else None
        finally:
            kept.seek(0)
            kept.truncate()
            json.dump(memory, kept)
            kept.flush()
    if there:
        on_machines(*there)


main()

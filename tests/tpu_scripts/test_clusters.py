"""GKE and SLURM: the manifest and the job that are made, and what kubectl and sbatch are asked."""

import base64
import json
import os
import random
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

WHERE = ["--project=p", "--zone=z"]
KUBECTL = ["kubectl", "--context=gke_p_z_mmjax"]
BUSY = "Unable to connect to the server: dial tcp 10.0.0.1:443: connect: connection refused"


@pytest.mark.parametrize(
    ("topology", "accelerator", "machine", "hosts", "chips"),
    [
        ("v5e:4x4", "tpu-v5-lite-podslice", "ct5lp-hightpu-4t", 4, 4),
        ("v5e:1x1", "tpu-v5-lite-podslice", "ct5lp-hightpu-1t", 1, 1),
        ("v6e:2x2", "tpu-v6e-slice", "ct6e-standard-4t", 1, 4),
        ("v5p:2x2x4", "tpu-v5p-slice", "ct5p-hightpu-4t", 4, 4),
        ("v4:2x2x2", "tpu-v4-podslice", "ct4p-hightpu-4t", 2, 4),
    ],
)
def test_pools_and_manifest_follow_the_topology(cloud, topology, accelerator, machine, hosts, chips):
    shape = topology.partition(":")[2]
    made = yaml.safe_load(cloud.run(f"gke.sh manifest --topology {topology} --slices 3 digits --steps 10").stdout)
    (slices,) = made["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (3, hosts, hosts)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert cloud.calls == []
    cloud.run(f"gke.sh create --topology {topology} --slices 2 --spot")
    shape_words = [f"--tpu-topology={shape}"] if hosts > 1 else []
    assert cloud.calls[1:3] == [
        ["gcloud", "container", "node-pools", "create", f"mmjax-{i}", "--cluster=mmjax", *WHERE, f"--machine-type={machine}",
         f"--num-nodes={hosts}", *shape_words, "--scopes=cloud-platform", "--spot"]
        for i in range(2)
    ]  # fmt: skip


def test_gke_create_goes_on_with_what_exists(cloud):
    exists = {
        "on": "create",
        "times": 2,
        "stderr": "ERROR: ResponseError: code=409, message=Already exists: projects/p",
        "status": 1,
    }
    cloud.run("gke.sh create --topology v5e:2x2 --reserved --reservation mine", rules=[exists])
    manifests = "https://github.com/kubernetes-sigs/jobset/releases/download/v0.10.1/manifests.yaml"
    size = ["--machine-type=e2-standard-4", "--num-nodes=1", "--scopes=cloud-platform"]
    assert cloud.calls[0] == ["gcloud", "container", "clusters", "create", "mmjax", *WHERE, *size]
    assert cloud.calls[1][-2:] == ["--reservation-affinity=specific", "--reservation=mine"]
    assert cloud.calls[2:] == [
        ["gcloud", "container", "clusters", "get-credentials", "mmjax", *WHERE],
        [*KUBECTL, "apply", "--server-side", "-f", manifests],
    ]
    assert "--reserved needs --reservation NAME" in cloud.run("gke.sh create --topology v5e:2x2 --reserved", status=2).stderr


def container_command(cloud, words: str) -> list[str]:
    made = yaml.safe_load(cloud.run(f"gke.sh manifest --topology v5e:4x4 {words}").stdout)
    return made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"]


def on_a_worker(cloud, command: list[str], **variables: str) -> subprocess.Popen:
    environment = {
        **cloud.variables,
        "HOME": str(cloud.root / "homes" / "pod"),
        "PATH": f"{cloud.root / 'worker'}:{cloud.bin}",
        **variables,
    }
    (cloud.root / "homes" / "pod" / "mmjax_run").mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def test_the_container_runs_the_words_as_they_are(cloud):
    command = container_command(cloud, """--env 'GREETING=a "b" \\ $c' digits --names "it's" 'two\nlines' '"q"'""")
    assert on_a_worker(cloud, command, MMJAX="7").wait() == 7
    (start,) = cloud.starts("pod")
    assert start["words"] == ["train", "digits", "--names", "it's", "two\nlines", '"q"', "--workdir", "gs://b/mmjax"]
    assert start["greeting"] == 'a "b" \\ $c'


CODE = {"my config.py": "from thing import X\nimport lib", "thing.py": "X = 'é'\n", "lib/__init__.py": "", "unused.py": ""}


def test_a_config_that_is_a_file_here_goes_along(cloud):
    cloud.write(CODE)
    done = cloud.run(
        "gke.sh manifest --topology v5e:4x4 --ref v1 --repository https://example.com/m './my config.py' --steps 10"
    )
    kept, made = yaml.safe_load_all(done.stdout)
    assert (kept["kind"], kept["metadata"], list(kept["binaryData"])) == ("ConfigMap", {"name": "mmjax-code"}, ["code.tar.gz"])
    assert done.stderr == "gke.sh: with ./my config.py go thing.py lib/__init__.py\n"
    pod = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["volumes"] == [{"name": "code", "configMap": {"name": "mmjax-code"}}]
    assert container["volumeMounts"] == [{"name": "code", "mountPath": "/mmjax_code", "readOnly": True}]
    (cloud.root / "mounted").mkdir()
    (cloud.root / "mounted" / "code.tar.gz").write_bytes(base64.b64decode(kept["binaryData"]["code.tar.gz"]))
    *command, text = container["command"]
    install, text = text.split(" || exit 1; ", 1)
    assert install.startswith("pip install ")
    text = text.replace("/mmjax_code", str(cloud.root / "mounted")).replace("/tmp/code", str(cloud.root / "unpacked"))
    assert on_a_worker(cloud, [*command, text]).wait(20) == 0
    assert cloud.starts("pod")[0]["folder"] == str(cloud.root / "unpacked")
    assert cloud.starts("pod")[0]["words"] == ["train", "my config.py", "--steps", "10", "--workdir", "gs://b/mmjax"]
    found = {path.name: path.read_text() for path in (cloud.root / "unpacked").rglob("*") if path.is_file()}
    assert found == {Path(name).name: text for name, text in CODE.items() if name != "unused.py"}


def test_a_config_of_the_image_is_left_to_it_and_too_much_is_refused(cloud):
    done = cloud.run("gke.sh manifest --topology v5e:4x4 /app/mine.py")
    assert yaml.safe_load(done.stdout)["kind"] == "JobSet"
    cloud.write({"mine.py": f"X = {random.Random(0).randbytes(200_000)!r}"})
    said = cloud.run("gke.sh train --topology v5e:4x4 mine.py", status=2).stderr
    assert said == "gke.sh: config mine.py: it and what it imports are more than a ConfigMap holds; put them in the --image\n"
    assert cloud.calls == []
    cloud.run("gke.sh stop")
    deleted = [["jobset", "mmjax"], ["configmap", "mmjax-code"]]
    assert cloud.calls == [[*KUBECTL, "delete", *names, "--ignore-not-found"] for names in deleted]


def test_a_container_that_is_told_to_stop_does_not_count_as_done(cloud):
    running = on_a_worker(cloud, container_command(cloud, "digits"), MMJAX="forever")
    while not cloud.starts("pod"):
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait(timeout=20) == 143


def test_a_refused_command_fails_the_whole_jobset_at_once(cloud):
    made = yaml.safe_load(cloud.run("gke.sh manifest --topology v5e:4x4 --spot digits").stdout)
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert made["spec"]["failurePolicy"]["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"] == {"containerName": "mmjax", "operator": "In", "values": [2]}
    assert job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    install = container_command(cloud, "--ref v1 --repository https://example.com/m digits")[2]
    assert install.startswith("pip install --quiet mmjax\\[tpu\\]\\ @\\ git+https://example.com/m@v1 || exit 1; ")


def test_gke_train_replaces_watch_looks_and_delete_deletes(cloud):
    cloud.run("gke.sh train --topology v5e:4x4 digits", rules=[{"on": "apply", "stderr": BUSY, "status": 1}])
    assert [call[2:5] for call in cloud.calls] == [
        ["delete", "jobset", "mmjax"],
        ["apply", "-f", cloud.calls[1][4]],
        ["apply", "-f", cloud.calls[1][4]],
    ]
    looks = [
        {"on": "get jobset", "stdout": " after 1 restarts"},
        {"on": "get jobset", "stdout": "Completed after 1 restarts"},
    ]
    assert "Completed after 1 restarts" in cloud.run("gke.sh watch", rules=looks).stderr
    failed = [{"on": "get jobset", "stdout": "Failed after 100 restarts"}]
    assert "the training failed; gke.sh logs --worker all says why" in cloud.run("gke.sh watch", 1, failed).stderr
    cloud.run("gke.sh logs")
    selector = "jobset.sigs.k8s.io/jobset-name=mmjax,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    assert cloud.calls[-1] == [*KUBECTL, "logs", "--follow", "--prefix", "--max-log-requests=1000", f"--selector={selector}"]
    cloud.run("gke.sh delete")
    assert cloud.calls[-1] == ["gcloud", "container", "clusters", "delete", "mmjax", *WHERE, "--quiet"]


def test_gke_without_kubectl_or_topology(cloud):
    assert "TOPOLOGY is not set" in cloud.run("gke.sh manifest digits", status=2).stderr
    (cloud.bin / "kubectl").unlink()
    assert "kubectl is not on PATH" in cloud.run("gke.sh watch", status=2).stderr


def directives(job: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in job.splitlines() if line.startswith("#SBATCH")]
    return dict(line.partition("=")[::2] for line in lines)


def test_slurm_job_of_one_process_a_gpu_or_a_node(cloud):
    job = cloud.run("slurm.sh script --nodes 4 --time 1:00:00 digits --workdir /shared/a").stdout
    found = directives(job)
    assert (found["nodes"], found["ntasks-per-node"], found["gpus-per-node"], found["time"]) == ("4", "8", "8", "1:00:00")
    assert (found["requeue"], found["signal"], found["open-mode"]) == ("", "TERM@300", "append")
    assert "JAX_LOCAL_DEVICE_IDS" not in job
    job = cloud.run("slurm.sh script --per node --gpus 2 digits --workdir /shared/a").stdout
    assert directives(job)["ntasks-per-node"] == "1"
    assert "no place for the run" in cloud.run("slurm.sh script digits", status=2, BUCKET="").stderr


@pytest.fixture
def job(cloud):
    """Runs the job's script as SLURM would, srun one task; gives its exit status and the calls it made."""
    (cloud.bin / "srun").write_text('#!/usr/bin/env bash\nexec "$@"\n')
    (cloud.bin / "srun").chmod(0o755)
    (cloud.root / "venv" / "bin").mkdir(parents=True)
    (cloud.root / "venv" / "bin" / "activate").touch()

    def run(words: str, stop: bool = False, state: str = "RUNNING", **variables: str) -> tuple[int, list[list[str]]]:
        text = cloud.run(f"slurm.sh script --venv {cloud.root / 'venv'} {words}").stdout
        (cloud.root / "job").write_text(text)
        looks = json.dumps([{"on": "squeue", "stdout": state}])
        running = on_a_worker(cloud, ["bash", str(cloud.root / "job")], SLURM_JOB_ID="7", RULES=looks, RUN="job", **variables)
        while not cloud.starts("pod"):
            time.sleep(0.02)
        if stop:
            # As SLURM does: the step, and not the batch shell.
            for child in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGTERM)
        return running.wait(timeout=20), cloud.calls

    return run


def test_a_slurm_job_passes_words_and_status_on(cloud, job):
    status, calls = job("--per node --gpus 2 --env GREETING='a $b' digits --names \"it's\" --workdir /shared/a", MMJAX="7")
    assert (status, calls) == (7, [])
    assert cloud.starts("pod")[0]["words"] == ["train", "digits", "--names", "it's", "--workdir", "/shared/a"]
    assert cloud.starts("pod")[0]["greeting"] == "a $b"


def test_a_slurm_job_reads_a_config_where_it_lies(cloud, job):
    cloud.folder = cloud.root / "it's here"
    cloud.write(CODE | {"alone.so": ""})
    done = cloud.run("slurm.sh script 'my config.py' --workdir /shared/a")
    paths = [str(cloud.folder / name) for name in ("my config.py", "thing.py", "lib/__init__.py")]
    assert shlex.split(done.stderr.removeprefix("slurm.sh: every node reads ")) == paths
    assert "lib/__init__.py" not in done.stdout
    assert job("'my config.py' --workdir /shared/a")[0] == 0
    assert cloud.starts("pod")[0]["words"][1] == str(cloud.folder / "my config.py")
    # What could not be copied need not be.
    cloud.write({"my config.py": "import alone"})
    assert cloud.run("slurm.sh script 'my config.py' --workdir /a").stderr.endswith("/my\\ config.py\n")


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", [["scontrol", "requeue", "7"]]), ("COMPLETING", [])])
def test_a_slurm_job_that_is_told_to_stop_goes_on_unless_it_was_cancelled(job, state, requeued):
    status, calls = job("digits --workdir /shared/a", stop=True, state=state, MMJAX="forever")
    assert status == 143
    assert calls == [["squeue", "--noheader", "--jobs=7", "--format=%T"], *requeued]


def test_slurm_submits_watches_and_cancels(cloud):
    cloud.run("slurm.sh train --sbatch-flags '--partition=gpu --account=me' digits --workdir /shared/a")
    assert cloud.calls[0][:3] == ["sbatch", "--partition=gpu", "--account=me"]
    looks = [{"on": "squeue", "stdout": "PENDING"}, {"on": "squeue", "stdout": "RUNNING"}]
    done = cloud.run("slurm.sh watch", rules=[*looks, {"on": "sacct", "stdout": "COMPLETED"}])
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["PENDING", "RUNNING", "COMPLETED"]
    done = cloud.run("slurm.sh watch", 1, [{"on": "sacct", "stdout": "TIMEOUT"}])
    assert "the job ended TIMEOUT; mmjax.log says why" in done.stderr
    cloud.run("slurm.sh delete")
    assert cloud.calls[-1] == ["scancel", "--me", "--name=mmjax"]
    (cloud.bin / "sbatch").unlink()
    assert "sbatch is not on PATH" in cloud.run("slurm.sh train digits --workdir /a", status=2).stderr


def test_slurm_and_gke_dry_runs_call_nothing(cloud):
    assert "sbatch --qos=low" in cloud.run("slurm.sh train --dry-run --sbatch-flags=--qos=low digits --workdir /a").stdout
    assert "python3 -m venv" in cloud.run("slurm.sh setup --dry-run").stdout
    for action in ("create", "train", "logs", "watch", "stop", "delete"):
        words = "digits" if action == "train" else ""
        assert (
            "--context=gke_p_z_mmjax" in cloud.run(f"gke.sh {action} --dry-run --topology v5e:4x4 {words}").stdout
            or action == "delete"
        )
    assert cloud.calls == []

"""create, setup, fetch and delete: the exact calls, and each way in which the real gcloud fails."""

import shutil

import pytest

WHERE = ["--project=p", "--zone=z"]
V5E = ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"]
QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
LOOKS = [
    [*QUEUED, "describe", "mmjax", *WHERE, "--format=value(state.state)"],
    ["gcloud", "compute", "tpus", "tpu-vm", "describe", "mmjax", *WHERE, "--format=value(state)"],
]
STOCKOUT = (
    'ERROR: (gcloud.compute.tpus.tpu-vm.create) There is no more capacity in the zone "z"; you can try in another zone where '
    "Cloud TPU Nodes are offered (see https://cloud.google.com/tpu/docs/regions) [EID: 0x7adf6d58c08b0aa4]"
)
QUOTA = (
    "ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit "
    "'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone z."
)
DENIED = (
    "ERROR: (gcloud.compute.tpus.queued-resources.create) PERMISSION_DENIED: Permission 'tpu.nodes.create' denied on "
    "'projects/p/locations/z'"
)
DISABLED = (
    "ERROR: (gcloud.compute.tpus) PERMISSION_DENIED: Cloud TPU API has not been used in project p before "
    "or it is disabled. reason: SERVICE_DISABLED"
)
LOGIN = "ERROR: (gcloud.compute.tpus) You do not currently have an active account selected.\nPlease run:\n  $ gcloud auth login"
BUSY = "ERROR: (gcloud.compute.tpus) UNAVAILABLE: The service is currently unavailable."
REFUSED = (
    "ssh: connect to host 10.0.0.2 port 22: Connection refused\n"
    "ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255]."
)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", [*V5E, "--node-id=mmjax"]),
        ("--spot", [*V5E, "--node-id=mmjax", "--spot"]),
        ("--reserved", [*V5E, "--node-id=mmjax", "--reserved"]),
        ("--create-flags '--service-account=me --network=n'", [*V5E, "--node-id=mmjax", "--service-account=me", "--network=n"]),
        ("--type v6e-64 --version other", ["--accelerator-type=v6e-64", "--runtime-version=other", "--node-id=mmjax"]),
    ],
)
def test_create_asks_for_one_slice(cloud, flags, words):
    cloud.run(f"create.sh {flags}")
    assert cloud.calls == [[*QUEUED, "create", "mmjax", *WHERE, *words], *LOOKS]


def test_create_asks_for_several_slices_and_looks_at_each(cloud):
    cloud.run("create.sh --slices=2 --spot --name=pod")
    assert cloud.calls[0] == [*QUEUED, "create", "pod", *WHERE, *V5E, "--node-count=2", "--node-prefix=pod", "--spot"]
    assert [call[5] for call in cloud.called("tpu-vm describe")] == ["pod-0", "pod-1"]


def test_create_makes_a_tpu_vm_at_once(cloud):
    cloud.run("create.sh --direct --reserved")
    words = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--reserved"]
    assert cloud.calls == [["gcloud", "compute", "tpus", "tpu-vm", "create", "mmjax", *WHERE, *words], LOOKS[1]]


@pytest.mark.parametrize(
    ("topology", "kind", "version"),
    [
        ("v4:2x2x4", "v4-32", "tpu-ubuntu2204-base"),
        ("v5e:4x4", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p:4x4x4", "v5p-128", "v2-alpha-tpuv5"),
        ("v6e:16x16", "v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_a_topology_of_plan_becomes_a_type_and_its_runtime(cloud, topology, kind, version):
    cloud.run(f"create.sh --no-wait --topology {topology}", TYPE=None)
    assert cloud.calls[0][-3:-1] == [f"--accelerator-type={kind}", f"--runtime-version={version}"]


def test_create_waits_in_the_queue(cloud):
    done = cloud.run("create.sh", QUEUE=" ".join(["CREATING"] + ["WAITING_FOR_RESOURCES"] * 12 + ["PROVISIONING", "ACTIVE"]))
    assert [line.split(": ", 1)[1] for line in done.stderr.splitlines()] == [
        "mmjax: CREATING",
        "mmjax: WAITING_FOR_RESOURCES",
        "still WAITING_FOR_RESOURCES after 10 looks: z has no free v5litepod-16; the place in the queue is kept",
        "mmjax: PROVISIONING",
        "mmjax: READY",
        "mmjax is ready; next: setup.sh",
    ]


def test_create_gives_up_on_a_queue_and_on_a_request_that_is_stuck(cloud):
    done = cloud.run("create.sh --queue-polls 3", status=1, QUEUE="WAITING_FOR_RESOURCES")
    assert "still WAITING_FOR_RESOURCES after 3 looks: try another --zone" in done.stderr
    cloud.run("delete.sh")
    done = cloud.run("create.sh --provision-polls 4", status=1, QUEUE="PROVISIONING")
    assert "stuck in PROVISIONING after 4 looks" in done.stderr


def test_no_capacity_is_tried_again_and_said(cloud):
    done = cloud.run("create.sh --direct", rules=[{"on": "tpu-vm create", "times": 2, "stderr": STOCKOUT, "status": 1}])
    assert cloud.verbs() == ["create"] * 3
    assert done.stderr.count("create.sh: no capacity in z: ERROR") == 2
    assert "try 3 of 20 in 0 s" in done.stderr
    done = cloud.run(
        "create.sh --direct --retries 3 --name b", 1, [{"on": "tpu-vm create", "times": 9, "stderr": STOCKOUT, "status": 1}]
    )
    assert "still failing after 3 tries: ERROR: (gcloud.compute.tpus.tpu-vm.create) There is no more capacity" in done.stderr


@pytest.mark.parametrize(
    ("stderr", "advice"),
    [
        (QUOTA, "the quota TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI is too small"),
        (DENIED, "not allowed in p (roles/tpu.admin and roles/iam.serviceAccountUser are needed)"),
        (DISABLED, "gcloud services enable tpu.googleapis.com"),
        (LOGIN, "gcloud has no valid login: gcloud auth login"),
        ("ERROR: (gcloud.compute.tpus) INVALID_ARGUMENT: Accelerator type v9 not found", "gcloud refuses the request: ERROR"),
    ],
)
def test_what_waiting_does_not_mend_stops_with_one_line_of_advice(cloud, stderr, advice):
    done = cloud.run("create.sh", 2, [{"on": "create", "times": 9, "stderr": stderr, "status": 1}])
    assert cloud.verbs() == ["create"]
    assert done.stderr.startswith(stderr)
    (line,) = done.stderr[len(stderr) :].strip().splitlines()
    assert line.startswith("create.sh: ")
    assert advice in line


def test_create_refuses_a_name_that_is_taken_but_not_by_its_own_first_try(cloud):
    cloud.run("create.sh")
    done = cloud.run("create.sh", status=2)
    assert "mmjax exists already in z: READY. watch.sh goes on with it, delete.sh removes it" in done.stderr
    done = cloud.run("create.sh", rules=[{"on": "create", "times": 1, "stderr": BUSY, "status": 1}])
    assert "a fault that passes" in done.stderr


def test_a_request_that_failed_says_why(cloud):
    done = cloud.run("create.sh", status=3, QUEUE="PROVISIONING FAILED", FAILED_BECAUSE="internal error while provisioning")
    assert "the request failed: internal error while provisioning" in done.stderr
    cloud.run("delete.sh")
    done = cloud.run(
        "create.sh", status=2, QUEUE="FAILED", FAILED_BECAUSE="Quota 'TPUV6EPerProjectPerZoneForTPUAPI' exhausted. Limit 8"
    )
    assert "the quota TPUV6EPerProjectPerZoneForTPUAPI is too small" in done.stderr


def test_setup_copies_and_installs_on_every_worker_of_every_slice(cloud):
    cloud.run("create.sh --slices 2")
    cloud.run("setup.sh --slices 2")
    for node in ("mmjax-0", "mmjax-1"):
        (copy,) = cloud.called(f"{node}:mmjax_source.tar.gz")
        assert copy[3:5] == ["tpu-vm", "scp"]
        assert copy[6:] == [f"{node}:mmjax_source.tar.gz", "--worker=all", *WHERE, "--quiet"]
        (install,) = cloud.called(f"ssh {node} ")
        assert install[:7] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", node, "--worker=all"]
        assert 'pip install --quiet ~/"mmjax_source[tpu]"' in install[7]
        for worker in (0, 1):
            home = cloud.root / "homes" / f"{node}.{worker}"
            assert (home / "mmjax_source" / "pyproject.toml").is_file()
            assert (home / "mmjax_run" / "ready").is_file()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_setup_clones_a_ref(cloud):
    cloud.run("create.sh")
    cloud.run("setup.sh --dry-run --ref v1 --repository https://example.com/mmjax")
    done = cloud.run("setup.sh --ref v1", status=2)
    assert "--ref v1 needs --repository URL" in done.stderr
    done = cloud.run("setup.sh --ref v1 --repository file:///nowhere", status=128)
    assert cloud.called("scp") == []
    assert "git -C ~/mmjax_source fetch --quiet --depth=1 file:///nowhere v1" in cloud.called("ssh")[0][7]


def test_ssh_that_is_not_up_yet_is_tried_again(cloud):
    cloud.run("create.sh")
    cloud.run("setup.sh", rules=[{"on": "tpu-vm ssh", "times": 2, "stderr": REFUSED, "status": 255}])
    assert cloud.verbs() == ["create", "scp", "ssh", "ssh", "ssh"]


def test_setup_on_a_machine_that_was_taken_away_ends_with_3(cloud):
    cloud.run("create.sh")
    gone = {"on": "tpu-vm ssh", "preempt": True}
    cloud.run("setup.sh", 3, [gone])
    cloud.run("delete.sh")
    cloud.run("create.sh")
    # ... also when all that is seen of it is a connection that breaks.
    cloud.run("setup.sh", 3, [{**gone, "stderr": REFUSED, "status": 255}])
    cloud.run("delete.sh")
    cloud.run("setup.sh", 3)


def test_a_key_outside_the_agent_is_named(cloud):
    cloud.run("create.sh")
    told = 'ERROR: SSH Key is not present in the SSH agent. Please run "ssh-add key" to add it, and try again.'
    done = cloud.run("setup.sh", 2, [{"on": "tpu-vm scp", "stderr": told, "status": 1}])
    assert "gcloud's SSH key is not in the agent: ssh-add ~/.ssh/google_compute_engine" in done.stderr


def test_ssh_through_iap_uses_the_track_that_has_it(cloud):
    cloud.run("create.sh")
    cloud.run("setup.sh --ssh-flags=--tunnel-through-iap")
    assert {tuple(call[:4]) for call in cloud.called("--tunnel-through-iap")} == {("gcloud", "alpha", "compute", "tpus")}


def test_fetch(cloud):
    cloud.run("fetch.sh")
    assert cloud.calls == [["gcloud", "storage", "rsync", "--recursive", "gs://b/mmjax", "runs/mmjax", "--project=p"]]
    assert (cloud.root / "runs" / "mmjax").is_dir()
    cloud.run("fetch.sh --from mmjax_run/log --to here --slices 2", status=3)
    words = ["mmjax-0:mmjax_run/log", "here", "--worker=0", "--recurse", *WHERE, "--quiet"]
    assert cloud.calls[1] == ["gcloud", "compute", "tpus", "tpu-vm", "scp", *words]
    assert "fetch what?" in cloud.run("fetch.sh", status=2, BUCKET="").stderr


def test_delete_removes_either_kind_and_says_when_there_is_none(cloud):
    cloud.run("create.sh")
    cloud.run("delete.sh")
    assert cloud.called("delete") == [[*QUEUED, "delete", "mmjax", *WHERE, "--quiet", "--force"]]
    cloud.run("create.sh --direct")
    cloud.run("delete.sh")
    assert cloud.called("delete")[1:] == [["gcloud", "compute", "tpus", "tpu-vm", "delete", "mmjax", *WHERE, "--quiet"]]
    assert "there is no mmjax in z" in cloud.run("delete.sh").stderr

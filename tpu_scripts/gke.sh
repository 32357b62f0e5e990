#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

usage() {
  cat <<'TEXT'
usage: gke.sh create|stop|delete|logs|watch|fetch [settings]
       gke.sh train|manifest [settings] [--env NAME=VALUE ...] CONFIG [--any.field value ...]

The same training on Google Kubernetes Engine: one node pool a slice, one JobSet that runs `mmjax train CONFIG ...` on all.
  create      a cluster called NAME with --slices pools of --topology (v5e:4x4), and JobSet in it
  train       print the manifest and apply it; JobSet starts it again after a preemption, and it goes on by itself
  manifest    print it only
  logs        follow worker 0 of slice 0 (--worker all: everyone)
  watch       look until it is done or has failed
  fetch       copy the run from the bucket (fetch.sh)
  stop        delete the training, keep the cluster; delete: delete the cluster, and with it all that costs
A CONFIG that is a file here goes along in a ConfigMap, with the modules and packages beside it that it imports; data do not.

  --image IMAGE       a container image with Python 3.11 or newer (python:3.12), or with mmjax in it already
  --ref REF --repository URL
                      what to install in it at the start; without them the image must hold mmjax
  --reservation NAME  which one, with --reserved
  --jobset VERSION    of the JobSet controller (v0.10.1)
  --max-restarts N    of the whole training (100)
TEXT
}

VALUES+=(image reservation jobset max-restarts worker)
: "${IMAGE:=python:3.12}" "${RESERVATION:=}" "${JOBSET:=v0.10.1}" "${MAX_RESTARTS:=100}" "${WORKER:=0}"
ACTION=${1:-}
case $ACTION in
  -h | --help) parse --help ;;
  create | train | manifest | logs | watch | fetch | stop | delete) shift ;;
  *) die "'$ACTION': create, train, manifest, logs, watch, fetch, stop or delete" ;;
esac
parse "$@"
from_1 MAX_RESTARTS
[[ $IMAGE =~ ^[A-Za-z0-9][A-Za-z0-9._:/@-]*$ ]] || die "--image '$IMAGE': a name such as python:3.12"
[[ $JOBSET =~ ^[A-Za-z0-9._-]+$ ]] || die "--jobset '$JOBSET': a version such as v0.10.1"
[[ $WORKER =~ ^([0-9]+|all)$ ]] || die "--worker '$WORKER': a number, or all"
need PROJECT ZONE NAME
where=("--project=$PROJECT" "--zone=$ZONE")
kubectl=(kubectl "--context=gke_${PROJECT}_${ZONE}_$NAME")

# slice: what a slice of TOPOLOGY is called and made of on GKE: ACCELERATOR, MACHINE, HOSTS, CHIPS_A_HOST.
slice() {
  [[ -n $TOPOLOGY ]] || die "TOPOLOGY is not set: give --topology, e.g. v5e:4x4"
  CHIPS_A_HOST=$((CHIPS < 4 ? CHIPS : 4)) HOSTS=$(((CHIPS + 3) / 4))
  case $KIND in
    v4) ACCELERATOR=tpu-v4-podslice MACHINE=ct4p-hightpu-${CHIPS_A_HOST}t ;;
    v5e) ACCELERATOR=tpu-v5-lite-podslice MACHINE=ct5lp-hightpu-${CHIPS_A_HOST}t ;;
    v5p) ACCELERATOR=tpu-v5p-slice MACHINE=ct5p-hightpu-${CHIPS_A_HOST}t ;;
    v6e) ACCELERATOR=tpu-v6e-slice MACHINE=ct6e-standard-${CHIPS_A_HOST}t ;;
  esac
}

# made COMMAND...: try, where it is no fault that the thing exists already.
made() {
  local status=0
  try "$@" || status=$?
  ((status == 0)) && return
  [[ $FAULT == exists ]] || fail "$(last_words)"
  say "exists already: going on with it"
}

create() {
  local pool tier=() number
  slice
  if [[ -n $SPOT ]]; then
    tier=(--spot)
  elif [[ -n $RESERVED ]]; then
    [[ -n $RESERVATION ]] || die "--reserved needs --reservation NAME on GKE"
    tier=(--reservation-affinity=specific "--reservation=$RESERVATION")
  fi
  # The one machine without TPUs is for JobSet's own controller.
  made gcloud container clusters create "$NAME" "${where[@]}" --machine-type=e2-standard-4 --num-nodes=1 \
    --scopes=cloud-platform
  for ((number = 0; number < SLICES; number++)); do
    pool=(gcloud container node-pools create "$NAME-$number" "--cluster=$NAME" "${where[@]}")
    pool+=("--machine-type=$MACHINE" "--num-nodes=$HOSTS")
    ((HOSTS == 1)) || pool+=("--tpu-topology=$SHAPE")
    # shellcheck disable=SC2206  # words on purpose; set -f leaves them as they are
    pool+=(--scopes=cloud-platform ${tier[@]+"${tier[@]}"} $CREATE_FLAGS)
    made "${pool[@]}"
  done
  try gcloud container clusters get-credentials "$NAME" "${where[@]}"
  try "${kubectl[@]}" apply --server-side -f "https://github.com/kubernetes-sigs/jobset/releases/download/$JOBSET/manifests.yaml"
}

# json TEXT: TEXT, in which `show` has left no character that YAML would take otherwise, as a string of YAML.
json() { local text=${1//\\/\\\\}; printf '"%s"' "${text//\"/\\\"}"; }

# packed: a document that holds ARCHIVE.
packed() {
  local data
  data=$(base64 <"$ARCHIVE" | tr -d '\n')
  # kubectl keeps what it applied in an annotation, and those have room for 256 kB.
  ((${#data} < 250000)) || die "config ${WORDS[0]}: it and what it imports are more than a ConfigMap holds; put them in the --image"
  cat <<YAML
# $(show "${CODE[@]}")
apiVersion: v1
kind: ConfigMap
metadata:
  name: $NAME-code
binaryData:
  code.tar.gz: $data
---
YAML
}

manifest() {
  local LC_ALL=C  # `show` writes everything in ASCII
  local text='' spot='' mounts='' volumes=''
  slice
  training
  copied
  if [[ -n $REF ]]; then
    [[ -n $REPOSITORY ]] || die "--ref $REF needs --repository URL"
    # Any status but 2, which says that mmjax refuses the command and that there is no use in starting it again.
    text="pip install --quiet $(show "mmjax[tpu] @ git+$REPOSITORY@$REF") || exit 1; "
  fi
  if [[ -n $ARCHIVE ]]; then
    packed
    text+="mkdir -p /tmp/code && cd /tmp/code && tar -xzf /mmjax_code/code.tar.gz || exit 1; "
    [[ -z $CODE_CONFIG ]] || COMMAND[2]=$CODE_CONFIG
    mounts='
              volumeMounts:
              - {name: code, mountPath: /mmjax_code, readOnly: true}'
    volumes="
            volumes:
            - {name: code, configMap: {name: $NAME-code}}"
  fi
  text+="$(supervised "${COMMAND[@]}"); exit \$code"
  [[ -z $SPOT ]] || spot='
              cloud.google.com/gke-spot: "true"'
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $MAX_RESTARTS
    rules:
    - action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $SLICES
    template:
      spec:
        parallelism: $HOSTS
        completions: $HOSTS
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: mmjax, operator: In, values: [2]}
        template:
          spec:
            restartPolicy: Never
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
              cloud.google.com/gke-tpu-topology: $SHAPE$spot
            tolerations:
            - {key: cloud.google.com/gke-spot, operator: Exists, effect: NoSchedule}
            containers:
            - name: mmjax
              image: "$IMAGE"
              command: ["bash", "-c", $(json "$text")]
              securityContext: {privileged: true}$mounts
              ports:
              - containerPort: 8471
              - containerPort: 8080
              resources:
                requests: {google.com/tpu: $CHIPS_A_HOST}
                limits: {google.com/tpu: $CHIPS_A_HOST}$volumes
YAML
}

watch() {
  local now before=''
  if [[ -n $DRY_RUN ]]; then show "${kubectl[@]}" get jobset "$NAME" '--output=jsonpath={.status.terminalState}'; return; fi
  while :; do
    now=$(try "${kubectl[@]}" get jobset "$NAME" '--output=jsonpath={.status.terminalState} after {.status.restarts} restarts')
    [[ $now == "$before" ]] || say "${now:-running}"
    before=$now
    case $now in
      Completed*) return ;;
      Failed*) fail "the training failed; gke.sh logs --worker all says why" ;;
    esac
    pause "$POLL"
  done
}

needs_tool kubectl "gcloud components install kubectl gke-gcloud-auth-plugin"
[[ $ACTION == train || $ACTION == manifest ]] || no_words
case $ACTION in
  create) create ;;
  manifest) manifest ;;
  train)
    manifest >"$FILES/jobset.yaml"
    cat "$FILES/jobset.yaml"
    # A JobSet cannot be changed in place: the one before it goes first.
    try "${kubectl[@]}" delete jobset "$NAME" --ignore-not-found
    try "${kubectl[@]}" apply -f "$FILES/jobset.yaml" ;;
  logs)
    selector=jobset.sigs.k8s.io/jobset-name=$NAME
    if [[ $WORKER != all ]]; then
      selector+=",jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=$WORKER"
    fi
    try "${kubectl[@]}" logs --follow --prefix --max-log-requests=1000 "--selector=$selector" ;;
  watch) watch ;;
  fetch) "$HERE/fetch.sh" ;;
  stop)
    try "${kubectl[@]}" delete jobset "$NAME" --ignore-not-found
    try "${kubectl[@]}" delete configmap "$NAME-code" --ignore-not-found ;;
  delete) try gcloud container clusters delete "$NAME" "${where[@]}" --quiet || [[ $FAULT == absent ]] || fail "$(last_words)" ;;
esac

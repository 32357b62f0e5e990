#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

usage() {
  cat <<'TEXT'
usage: create.sh [settings] [--no-wait]

Ask for the machines (a queued resource, or with --direct a TPU VM at once) and wait until they are ready.
  create.sh --zone us-west4-a --type v5litepod-16 --spot

  --no-wait       return as soon as the request is made
TEXT
}

SWITCHES+=(no-wait)
NO_WAIT=
parse "$@"
no_words
need PROJECT ZONE NAME TYPE

tier=()
if [[ -n $SPOT ]]; then tier=(--spot); elif [[ -n $RESERVED ]]; then tier=(--reserved); fi

where=("$NAME" "--project=$PROJECT" "--zone=$ZONE" "--accelerator-type=$TYPE")
if [[ -n $DIRECT ]]; then
  request=(gcloud compute tpus tpu-vm create "${where[@]}" "--version=$VERSION")
elif ((SLICES == 1)); then
  request=(gcloud compute tpus queued-resources create "${where[@]}" "--runtime-version=$VERSION" "--node-id=$NAME")
else
  request=(gcloud compute tpus queued-resources create "${where[@]}" "--runtime-version=$VERSION")
  request+=("--node-count=$SLICES" "--node-prefix=$NAME")
fi
# shellcheck disable=SC2206  # words on purpose; set -f leaves them as they are
request+=(${tier[@]+"${tier[@]}"} $CREATE_FLAGS)

status=0
try "${request[@]}" || status=$?
if ((status)); then
  [[ $FAULT == exists ]] || fail "$(last_words)"
  # A try that seemed to fail may have gone through; only an earlier run's machines are a mistake.
  ((TRIES > 1)) || die "$NAME exists already in $ZONE: $(state). watch.sh goes on with it, delete.sh removes it"
fi
[[ -z $NO_WAIT ]] || exit 0
await_ready || { status=$?; say "not ready; watch.sh makes a new request, delete.sh removes this one"; exit "$status"; }
say "$NAME is ready; next: setup.sh"

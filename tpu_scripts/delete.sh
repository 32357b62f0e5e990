#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

usage() {
  cat <<'TEXT'
usage: delete.sh [settings]

Delete the machines and the request for them, however they were made; the runs in the bucket stay.
TEXT
}

parse "$@"
no_words
need PROJECT ZONE NAME

where=("$NAME" "--project=$PROJECT" "--zone=$ZONE" --quiet)
found=

remove() {
  if try "$@"; then found=1; elif [[ $FAULT != absent ]]; then fail "$(last_words)"; fi
}

# Both kinds, whatever --direct says: a machine that is forgotten goes on costing.
if [[ $(look queued-resources "$NAME" 'value(state.state)') != ABSENT ]]; then
  remove gcloud compute tpus queued-resources delete "${where[@]}" --force
fi
if [[ $(look tpu-vm "$NAME" 'value(state)') != ABSENT ]]; then
  remove gcloud compute tpus tpu-vm delete "${where[@]}"
fi
if [[ -n $found || -n $DRY_RUN ]]; then say "$NAME is deleted"; else say "there is no $NAME in $ZONE"; fi

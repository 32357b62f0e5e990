#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

usage() {
  cat <<'TEXT'
usage: fetch.sh [settings] [--from PLACE] [--to DIR]

Copy a run here. What is here already and has not changed is not copied again.
  --from PLACE    gs://... (gs://BUCKET/NAME), or a path on worker 0 of the first slice, e.g. mmjax_run/log
  --to DIR        runs/NAME
TEXT
}

VALUES+=(from to)
FROM='' TO=''
parse "$@"
no_words
need PROJECT
TO=$(as_path "${TO:-runs/$NAME}")
if [[ -z $FROM ]]; then
  [[ -n $BUCKET ]] || die "fetch what? --bucket NAME, or --from PLACE"
  FROM=gs://$BUCKET/$NAME
fi
# Older versions of scp hand the path to a shell there, newer ones do not: no way of writing it is right for both.
[[ $FROM == gs://* || $FROM =~ ^[A-Za-z0-9_.,:=@%+/~-]+$ ]] ||
  die "--from '$FROM': a path of letters, digits and _ . , : = @ % + / ~ -; another name can be given there with ln -s"

run mkdir -p "$TO"
if [[ $FROM == gs://* ]]; then
  try gcloud storage rsync --recursive "$FROM" "$TO" "--project=$PROJECT"
else
  need ZONE
  node=$(nodes | sed -n 1p)
  reach scp "$node" "$node:$FROM" "$TO" --worker=0 --recurse
fi
say "$FROM is in $TO"

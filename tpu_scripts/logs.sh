#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

usage() {
  cat <<'TEXT'
usage: logs.sh [settings] [--worker N|all] [--slice N] [--no-follow]

Follow what the training says, on one worker (0 of slice 0, the one that reports) or on all, each line under its host's name.
TEXT
}

VALUES+=(worker slice)
SWITCHES+=(no-follow)
WORKER=0 SLICE=0 NO_FOLLOW=''
parse "$@"
no_words
[[ $WORKER =~ ^([0-9]+|all)$ ]] || die "--worker '$WORKER': a number, or all"
if ! [[ $SLICE =~ ^[0-9]+$ ]] || ((SLICE >= SLICES)); then die "--slice '$SLICE': there are $SLICES, counted from 0"; fi
need PROJECT ZONE NAME

there="tail -n 100 $([[ -n $NO_FOLLOW ]] || echo -F) ~/mmjax_run/log"
if [[ $WORKER == all ]]; then
  # shellcheck disable=SC2317,SC2329  # called by at_once
  follow() { on_workers "$1" all "$there | sed -u \"s/^/\$(hostname): /\""; }
  at_once follow
else
  on_workers "$(nodes | sed -n "$((SLICE + 1))p")" "$WORKER" "$there"
fi

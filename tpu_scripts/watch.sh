#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

usage() {
  cat <<'TEXT'
usage: watch.sh [settings] [--env NAME=VALUE ...] [--then-delete] CONFIG [--any.field value ...]

See a training through: make the machines, set them up, train, and when they are taken away (PREEMPTED, SUSPENDED, FAILED)
delete them, make new ones and go on with the same command. It starts from what it finds, so it can be ended and run again.
  --then-delete   delete the machines when the training is done
  --restarts N    starts of a training that fails on machines that are well (5)
  --source, --ref, --repository      as in setup.sh; the checkout is packed once, so every machine runs the same code; so is a
                  CONFIG that is a file here, with what it imports from beside it (as in train.sh)
TEXT
}

SWITCHES+=(then-delete)
THEN_DELETE=''
parse "$@"
training
need PROJECT ZONE NAME TYPE
copied
export MMJAX_ARCHIVE=$ARCHIVE MMJAX_CONFIG=$CODE_CONFIG
call() { say "$1"; "$HERE/$1" "${@:2}"; }

if [[ -n $DRY_RUN ]]; then
  for step in create.sh setup.sh; do "$HERE/$step"; done
  "$HERE/train.sh" "${WORDS[@]}"
  "$HERE/train.sh" --progress "${WORDS[@]}"
  [[ -z $THEN_DELETE ]] || "$HERE/delete.sh"
  exit 0
fi

if [[ -z $REF && ! -f $SOURCE ]]; then
  pack "$SOURCE" "$FILES/mmjax_source.tar.gz"
  SOURCE=$FILES/mmjax_source.tar.gz
fi

# ended STATUS: leave with a word about the machines, which are still there.
ended() { say "$NAME is kept and costs until delete.sh"; exit "$1"; }

# tend: one look at the training, and what follows from it. 0 to look again, 3 when the machines are gone.
tend() {
  local doing
  doing=$("$HERE/train.sh" --progress "${WORDS[@]}") || return $?
  [[ $doing == "$before" ]] || say "workers: $doing"
  if [[ $doing == *running* && $doing != running ]]; then mixed=$((mixed + 1)); else mixed=0; fi
  before=$doing
  case " $doing " in
    " 0 ") return 10 ;;
    " running ") return 0 ;;
    *" 2 "*) call logs.sh --no-follow || true; say "mmjax refuses the command"; ended 2 ;;
    *" other "*) say "another training runs there: train.sh --stop ends it"; ended 2 ;;
    *" new "*) call setup.sh || return $?; call train.sh "${WORDS[@]}" || return $? ;;
    " idle ") call train.sh "${WORDS[@]}" || return $? ;;
    *" running "*)  # some are about to end, or have not begun: they get three looks to agree
      ((mixed >= 3)) || return 0
      call train.sh --stop || return $? ;;
    *)
      if ((++starts > RESTARTS)); then
        call logs.sh --no-follow || true
        say "the training failed $starts times on machines that are well"; ended 1
      fi
      call train.sh "${WORDS[@]}" || return $? ;;
  esac
}

starts=0 mixed=0 before='' made=0 wait=$BACKOFF
while :; do
  code=0 && await_ready || code=$?
  if ((code == 0)); then
    made=0 wait=$BACKOFF code=0
    tend || code=$?
    case $code in
      0 | 3) pause "$POLL"; continue ;;  # 3: the next look at the state says what happened
      10) break ;;
      *) ended "$code" ;;
    esac
  fi
  ((++made <= RETRIES)) || fail "$RETRIES requests in a row came to nothing"
  if ((made > 1)); then pause "$wait"; wait=$((wait * 2 < 600 ? wait * 2 : 600)); fi
  starts=0 mixed=0 before=''
  # What does not work now (a request may not be deleted while it is SUSPENDING) may at the next look.
  code=0
  { call delete.sh && call create.sh --no-wait; } || code=$?
  ((code < 2)) || exit "$code"
done
say "the training is done"
if [[ -n $THEN_DELETE ]]; then call delete.sh; else ended 0; fi

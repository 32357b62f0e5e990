#!/usr/bin/env bash
# shellcheck disable=SC2016  # expanded on the workers
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

usage() {
  cat <<'TEXT'
usage: train.sh [settings] [--env NAME=VALUE ...] CONFIG [--any.field value ...]
       train.sh [settings] --stop
       train.sh [settings] --progress [CONFIG ...]

Start the same `mmjax train CONFIG ...` on every worker of every slice, and return; logs.sh shows what it says.
It goes on by itself where the run's folder holds a checkpoint. A CONFIG that is a file here is copied over, with the modules
and packages beside it, or in this folder, that it imports; nothing else is: data belong in a bucket.
  --env NAME=VALUE    a variable for the training, may be given again
  --stop              save and stop, on every worker
  --progress          what the workers do: new (not set up), idle, running, lost (died with its machine), or an
                      exit status; with CONFIG ..., idle or other where what ran last, or runs, is another command
TEXT
}

SWITCHES+=(stop progress)
STOP='' PROGRESS=''
parse "$@"
need PROJECT ZONE NAME

# A pid alone may have been given to another process since.
running='grep -q mmjax "/proc/$(cat pid 2>/dev/null)/cmdline" 2>/dev/null'

progress() {
  on_workers "$1" all "cd ~/mmjax_run 2>/dev/null && [ -e ready ] || { echo mmjax: new; exit 0; }
if [ -e command ] && ! $same; then if $running; then echo mmjax: other; else echo mmjax: idle; fi
elif $running; then echo mmjax: running
elif [ -s status ]; then echo mmjax: \$(cat status)
elif [ -e pid ]; then echo mmjax: lost
else echo mmjax: idle; fi"
}

# The signal goes to the shell around mmjax, which notes it and passes it on.
stop() {
  on_workers "$1" all "cd ~/mmjax_run 2>/dev/null || exit 0; $running || exit 0
kill -TERM \$(cat pid)
for i in \$(seq 300); do $running || exit 0; sleep 1; done
kill -KILL -\$(cat pid); echo 143 >status"
}

start() {
  [[ -z $ARCHIVE ]] || to_workers "$1" "$ARCHIVE" mmjax_code.tar.gz
  on_workers "$1" all "cd ~/mmjax_run 2>/dev/null && [ -e ready ] || { echo 'mmjax is not installed here: setup.sh' >&2; exit 1; }
if $running; then echo 'mmjax trains here already: train.sh --stop ends it' >&2; exit 1; fi
$unpack. ~/mmjax_venv/bin/activate; rm -f status; printf %s $(show "$text") >command
nohup setsid bash -c $(show "$(supervised "${COMMAND[@]}"); echo \$code >status") >>log 2>&1 </dev/null & echo \$! >pid"
}

if [[ -n $PROGRESS ]]; then
  same=true
  if ((${#WORDS[@]})); then
    training
    same="[ \"\$(cat command)\" = $(show "$(show "${COMMAND[@]}")") ]"
  fi
  at_once progress >"$FILES/progress"
  if [[ -n $DRY_RUN ]]; then cat "$FILES/progress"; exit; fi
  sed -n 's/^mmjax: //p' "$FILES/progress" | sort -u | paste -s -d ' ' -
elif [[ -n $STOP ]]; then
  no_words
  at_once stop  # all slices together: mmjax stops at one common step, for which every worker is needed
else
  training
  text=$(show "${COMMAND[@]}")
  copied
  # The code lies beside what is there already, where mmjax finds it as here; what the training before brought is taken away.
  unpack='if [ -e code ]; then while IFS= read -r file; do rm -f "./$file"; done <code; rm code; fi
'
  if [[ -n $ARCHIVE ]]; then
    [[ -z $CODE_CONFIG ]] || COMMAND[2]=$CODE_CONFIG
    unpack+='tar -xzf ~/mmjax_code.tar.gz && tar -tzf ~/mmjax_code.tar.gz >code || exit 1
'
  fi
  at_once start
  say "started: $text"
fi

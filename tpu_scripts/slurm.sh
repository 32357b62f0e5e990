#!/usr/bin/env bash
# shellcheck disable=SC2016  # expanded in the job
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

usage() {
  cat <<'TEXT'
usage: slurm.sh setup|logs|watch|delete [settings]
       slurm.sh train|script [settings] [--env NAME=VALUE ...] CONFIG [--any.field value ...] --workdir DIR

The same training on a SLURM cluster of GPUs; run it where sbatch is. mmjax finds SLURM's variables by itself. A CONFIG that is a
file here, and what lies beside it, is not copied: it must lie on a disk that all nodes see.
  setup       a virtual environment with mmjax and its `gpu` extra, on the disk that all nodes share
  train       submit the job called NAME; it goes on by itself after a preemption or at the end of its time
  script      print what is submitted
  logs        follow it; watch: look until it is over; delete: cancel it

  --nodes N --gpus N  nodes (1), GPUs a node (8)
  --per gpu|node      one process a GPU, or one a node (gpu)
  --time T            the longest that one job may run, after which the next goes on (24:00:00)
  --venv DIR          the virtual environment (~/mmjax_venv)
  --sbatch-flags "..."  more flags for sbatch, e.g. "--partition=gpu --account=me"
TEXT
}

VALUES+=(nodes gpus per time venv sbatch-flags)
: "${NODES:=1}" "${GPUS:=8}" "${PER:=gpu}" "${TIME:=24:00:00}" "${VENV:=$HOME/mmjax_venv}" "${SBATCH_FLAGS:=}"
ACTION=${1:-}
case $ACTION in
  -h | --help) parse --help ;;
  setup | train | script | logs | watch | delete) shift ;;
  *) die "'$ACTION': setup, train, script, logs, watch or delete" ;;
esac
parse "$@"
from_1 NODES GPUS
[[ $TIME =~ ^[A-Za-z0-9:-]+$ ]] || die "--time '$TIME': days-hours:minutes:seconds, or less of it"
VENV=$(as_path "$VENV")
[[ $PER == gpu || $PER == node ]] || die "--per '$PER': gpu or node"

script() {
  training
  in_place
  local tasks=1
  if [[ $PER == gpu ]]; then
    tasks=$GPUS
  else
    # Without this JAX takes as many GPUs as a node has processes: one.
    ENVIRONMENT+=JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((GPUS - 1)))$'\n'
  fi
  cat <<SBATCH
#!/bin/bash
#SBATCH --job-name=$NAME
#SBATCH --nodes=$NODES
#SBATCH --ntasks-per-node=$tasks
#SBATCH --gpus-per-node=$GPUS
#SBATCH --time=$TIME
#SBATCH --output=$NAME.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300
trap : TERM
. $(show "$VENV")/bin/activate
srun $(show bash -c "$(supervised "${COMMAND[@]}"); exit \$code")
code=\$?
# Told to stop, by a preemption or five minutes before its time is over: it has saved, and goes on in a new turn.
# A job that was cancelled is no longer RUNNING, and stays cancelled.
if [ \$code = 143 ] && [ "\$(squeue --noheader --jobs="\$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit \$code
SBATCH
}

# in_place: a config that is a file here is read where it lies, with what it imports from beside it, at every start of the job.
in_place() {
  local status=0 number paths=()
  gather || status=$?
  # What cannot be copied need not be.
  ((status == 0 || ${#CODE[@]})) || die "config ${WORDS[0]}: $(tail -n 1 "$FILES/notes")"
  ((${#CODE[@]})) || return 0
  if [[ -n $CODE_CONFIG ]]; then COMMAND[2]=${PACK[1]}/$CODE_CONFIG; fi
  for ((number = 0; number < ${#CODE[@]}; number++)); do paths+=("${PACK[number * 3 + 1]}/${CODE[number]}"); done
  printf '%s: every node reads %s\n' "$SCRIPT" "$(show "${paths[@]}")" >&2
}

states() { squeue --noheader "--name=$NAME" --me --format=%T | sort -u | paste -s -d ' ' -; }

watch() {
  local now before=''
  if [[ -n $DRY_RUN ]]; then show squeue --noheader "--name=$NAME" --me --format=%T; return; fi
  while now=$(states) && [[ -n $now ]]; do
    [[ $now == "$before" ]] || say "$now"
    before=$now
    pause "$POLL"
  done
  now=$(sacct --noheader --allocations --parsable2 "--name=$NAME" --format=State | tail -n 1)
  [[ $now == COMPLETED ]] || fail "the job ended ${now:-without a record}; $NAME.log says why, the same train goes on"
  say "$now"
}

[[ $ACTION == train || $ACTION == script ]] || no_words
case $ACTION in
  setup)
    run python3 -m venv "$VENV"
    run "$VENV/bin/pip" install --quiet "${SOURCE}[gpu]" ;;
  script) script ;;
  train)
    needs_tool sbatch "run this on a login node of the cluster"
    script >"$FILES/job.sbatch"
    [[ -z $DRY_RUN ]] || cat "$FILES/job.sbatch"
    # shellcheck disable=SC2206  # words on purpose; set -f leaves them as they are
    submit=(sbatch $SBATCH_FLAGS "$FILES/job.sbatch")
    run "${submit[@]}" ;;
  logs) run tail -n 100 -F "$NAME.log" ;;
  watch) needs_tool squeue "run this on a login node of the cluster"; watch ;;
  delete) needs_tool scancel "run this on a login node of the cluster"; run scancel --me "--name=$NAME" ;;
esac

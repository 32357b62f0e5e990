# shellcheck shell=bash disable=SC2016
# What every script here shares: settings, flags, calls to gcloud that outlive its passing faults. Sourced, never run.
# Works in bash 3.2 (macOS): no empty arrays, no associative ones.

# Words of a setting are split at spaces, and nothing else is done to them: no file's name takes the place of a star.
set -f
export COPYFILE_DISABLE=1  # no files of macOS's own in archives

SCRIPT=$(basename "$0")
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

: "${PROJECT:=}" "${ZONE:=}" "${NAME:=mmjax}" "${TYPE:=}" "${TOPOLOGY:=}" "${VERSION:=}" "${SLICES:=1}" "${BUCKET:=}"
: "${SPOT:=}" "${RESERVED:=}" "${DIRECT:=}" "${DRY_RUN:=}" "${CREATE_FLAGS:=}" "${SSH_FLAGS:=}" "${ENVIRONMENT:=}"
: "${SOURCE:=$(dirname "$HERE")}" "${REF:=}" "${REPOSITORY:=}"
: "${RETRIES:=20}" "${BACKOFF:=30}" "${POLL:=60}" "${QUEUE_POLLS:=0}" "${PROVISION_POLLS:=60}" "${RESTARTS:=5}"

VALUES=(project zone name type topology version slices bucket create-flags ssh-flags env source ref repository)
VALUES+=(retries backoff poll queue-polls provision-polls restarts)
SWITCHES=(spot reserved direct dry-run)

SETTINGS_TEXT='Settings: a flag, or the variable of that name in capitals (--queue-polls is QUEUE_POLLS).
  --project ID --zone ZONE    where the machines are (both needed)
  --name NAME                 what they are called (mmjax)
  --type TYPE                 v5litepod-16, v6e-64, v5p-32 ...; or --topology v5e:4x4, as `mmjax plan` calls it
  --version VERSION           runtime version (chosen from the type)
  --slices N                  slices joined over the data centre network (1)
  --spot | --reserved         cheaper but may be taken away | from your reservation; on demand without either
  --direct                    one TPU VM at once, without the queue
  --bucket NAME               runs are kept in gs://NAME
  --create-flags "..."        more flags for gcloud create, e.g. "--service-account=me@project.iam.gserviceaccount.com"
  --ssh-flags "..."           more flags for gcloud ssh and scp, e.g. "--internal-ip" or "--tunnel-through-iap"
  --retries N --backoff S     tries when gcloud is out of capacity or busy (20), seconds before the second (30; doubles to 600)
  --poll S                    seconds between looks at a state (60)
  --queue-polls N             looks at a request that waits for machines before giving up (0: never)
  --provision-polls N         looks at a request in PROVISIONING before it counts as stuck (60)
  --dry-run                   print every command, run none
Exit status: 0 done, 1 failed, 2 a mistake or a quota to raise, 3 the machines are gone (watch.sh makes new ones).'

die() { ends 2 "$*"; }
fail() { ends 1 "$*"; }
ends() { printf '%s: %s\n' "$SCRIPT" "${2//$'\n'/ }" >&2; exit "$1"; }
say() { [[ -n $DRY_RUN ]] || printf '%s: %s\n' "$SCRIPT" "$*" >&2; }

# parse "$@": flags become variables, up to the first word that is none; that word and the rest become WORDS.
parse() {
  local name value flags
  [[ -z $ENVIRONMENT || $ENVIRONMENT == *$'\n' ]] || ENVIRONMENT+=$'\n'
  flags=$(printf ' --%s' "${VALUES[@]}" "${SWITCHES[@]}")
  while (($#)); do
    case $1 in
      -h | --help) usage; printf '\n%s\n' "$SETTINGS_TEXT"; exit 0 ;;
      --) shift; break ;;
      --*) ;;
      *) break ;;
    esac
    name=${1%%=*}; name=${name#--}
    [[ $name =~ ^[a-z-]+$ ]] || die "unknown flag $1; the flags are$flags"
    if [[ " ${VALUES[*]} " == *" $name "* ]]; then
      if [[ $1 == *=* ]]; then value=${1#*=}; else shift; (($#)) || die "--$name: a value is missing"; value=$1; fi
      if [[ $name == env ]]; then
        [[ $value != *$'\n'* ]] || die "--env '${value%%$'\n'*}': NAME=VALUE, on one line"
        ENVIRONMENT+=$value$'\n'
      else
        assign "$name" "$value"
      fi
    elif [[ " ${SWITCHES[*]} " == *" $name "* && $1 != *=* ]]; then
      assign "$name" 1
    else
      die "unknown flag $1; the flags are$flags"
    fi
    shift
  done
  WORDS=("$@")
  check
}

assign() { printf -v "$(tr 'a-z-' 'A-Z_' <<<"$1")" '%s' "$2"; }

no_words() { ((${#WORDS[@]} == 0)) || die "unexpected word '${WORDS[0]}': $SCRIPT takes flags only"; }

check() {
  local name line
  from_1 SLICES RETRIES PROVISION_POLLS
  for name in BACKOFF POLL QUEUE_POLLS RESTARTS; do
    [[ ${!name} =~ ^(0|[1-9][0-9]{0,8})$ ]] || die "$name is '${!name}': a whole number"
  done
  while IFS= read -r line; do
    [[ -z $line || $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "--env '$line': NAME=VALUE, on one line"
  done <<<"$ENVIRONMENT"
  for name in REF REPOSITORY; do [[ ${!name} != -* ]] || die "$name is '${!name}', which git would take for a flag"; done
  SOURCE=$(as_path "$SOURCE")
  for name in SPOT RESERVED DIRECT DRY_RUN; do [[ ${!name} =~ ^[01]?$ ]] || die "$name is '${!name}': 1, or empty"; done
  for name in SPOT RESERVED DIRECT DRY_RUN; do [[ ${!name} == 0 ]] && printf -v "$name" '%s' ''; done
  [[ $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name '$NAME': lower-case letters, digits and '-', a letter first, at most 40"
  [[ -z $SPOT || -z $RESERVED ]] || die "--spot and --reserved exclude each other"
  [[ -z $DIRECT || $SLICES == 1 ]] || die "--direct makes one slice, and --slices is $SLICES: leave --direct out"
  BUCKET=${BUCKET#gs://}; BUCKET=${BUCKET%/}
  [[ -z $TOPOLOGY ]] || topology
  [[ -n $VERSION || -z $TYPE ]] || VERSION=$(runtime)
  export PROJECT ZONE NAME TYPE TOPOLOGY VERSION SLICES BUCKET SPOT RESERVED DIRECT DRY_RUN CREATE_FLAGS SSH_FLAGS
  export ENVIRONMENT SOURCE REF REPOSITORY RETRIES BACKOFF POLL QUEUE_POLLS PROVISION_POLLS RESTARTS
}

# from_1 NAME ...: those settings are whole numbers.
from_1() {
  local name
  for name in "$@"; do [[ ${!name} =~ ^[1-9][0-9]{0,8}$ ]] || die "$name is '${!name}': a whole number from 1"; done
}

# as_path PATH: the same path, which no command takes for a flag, and scp for no place on another machine.
as_path() { case $1 in -* | *:*) [[ $1 == /* ]] || printf './' ;; esac; printf '%s\n' "$1"; }

# topology: KIND, SHAPE and CHIPS of TOPOLOGY (v5e:4x4), and TYPE where it is not set.
topology() {
  [[ $TOPOLOGY =~ ^(v4|v5e|v5p|v6e):([1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){1,2})$ ]] ||
    die "--topology '$TOPOLOGY': v4, v5e, v5p or v6e, ':' and a shape, e.g. v5e:4x4"
  KIND=${BASH_REMATCH[1]} SHAPE=${BASH_REMATCH[2]} CHIPS=$((${SHAPE//x/*}))
  if [[ -z $TYPE ]]; then
    case $KIND in
      v5e) TYPE=v5litepod-$CHIPS ;;
      v6e) TYPE=v6e-$CHIPS ;;
      *) TYPE=$KIND-$((2 * CHIPS)) ;;  # these are counted in cores, two a chip
    esac
  fi
}

runtime() {
  case $TYPE in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

# need PROJECT ZONE ...: those settings are set, and gcloud is here.
need() {
  local name
  for name in "$@"; do
    [[ -n ${!name} ]] || die "$name is not set: give --$(tr 'A-Z_' 'a-z-' <<<"$name") or export $name"
  done
  needs_tool gcloud "install the Google Cloud CLI, then gcloud auth login"
}

needs_tool() { [[ -n $DRY_RUN ]] || command -v "$1" >/dev/null || die "$1 is not on PATH: $2"; }

show() { local text; text=$(printf '%q ' "$@"); printf '%s\n' "${text% }"; }

run() { if [[ -n $DRY_RUN ]]; then show "$@"; else "$@"; fi; }

pause() { if [[ -z $DRY_RUN ]]; then sleep "$1"; fi; }

exec 4>&1  # where a dry run prints what is asked for inside $(...)
FILES=$(mktemp -d)
trap 'rm -rf "$FILES"' EXIT

# try COMMAND...: run it, its stderr shown and kept; wait and try again while the fault is one that passes.
# Returns 0, 3 when the machine is gone, else the command's own status with FAULT saying what is wrong.
try() {
  local wait=$BACKOFF status
  FAULT=''
  if [[ -n $DRY_RUN ]]; then show "$@"; return; fi
  for ((TRIES = 1; ; TRIES++)); do
    : >"$FILES/status"
    # A pipe, and not >(tee): it is waited for, so that the words are there when they are looked at.
    { { "$@" 2>&1 >&3 || echo $? >"$FILES/status"; } | listen; } 3>&1
    status=$(<"$FILES/status")
    if [[ -z $status ]]; then FAULT='' && return 0; fi
    FAULT=$(fault)
    case $FAULT in
      capacity | passing) ((TRIES < RETRIES)) || fail "still failing after $RETRIES tries: $(last_words)" ;;
      gone) return 3 ;;
      exists | absent | other) return "$status" ;;
      *) die "$(advice)" ;;
    esac
    say "$([[ $FAULT == capacity ]] && echo "no capacity in $ZONE" || echo "a fault that passes"): $(last_words)"
    say "try $((TRIES + 1)) of $RETRIES in $wait s"
    pause "$wait"
    # What looks like a broken connection may be a machine that was taken away.
    if [[ -n ${NODE:-} && $(look tpu-vm "$NODE" 'value(state)') != READY ]]; then return 3; fi
    wait=$((wait * 2 < 600 ? wait * 2 : 600))
  done
}

listen() { if [[ -n ${QUIET:-} ]]; then cat >"$FILES/errors"; else tee "$FILES/errors" >&2; fi; }

# quietly COMMAND...: the same, with its stderr kept to itself.
quietly() { NODE='' QUIET=1 try "$@"; }

last_words() { grep -E 'ERROR|rror:|denied|xceeded|xhausted' "$FILES/errors" | tail -n 1 || tail -n 1 "$FILES/errors"; }

# fault: one word for what gcloud (or its ssh) said. The order matters: several texts say RESOURCE_EXHAUSTED or denied.
fault() {
  local word pattern
  while IFS='=' read -r word pattern; do
    if grep -Eqi -e "$pattern" "$FILES/errors"; then echo "$word"; return; fi
  done <<'PATTERNS'
key=not present in the SSH agent
gone=has terminal state|has state "(STOPPED|STOPPING|DELETING|HIDDEN)"
passing=requests per (minute|second)|rate.?limit
capacity=no more capacity|insufficient (reserved )?capacity|stockout|resource_pool_exhausted
capacity=not enough (resources|capacity)|does not have enough resources
quota=quota[^a-z].*(exceeded|exhausted|limit)|quota_exceeded|exceeds? (the )?quota
exists=already.?exists
disabled=SERVICE_DISABLED|accessNotConfigured|API .*(has not been used|is disabled|not enabled)
login=active account|gcloud auth login|reauthentication|invalid_grant
passing=permission denied \((publickey|password)
permission=PERMISSION_DENIED|does not have permission|permission .* denied|required .* permission
absent=NOT_FOUND|resource '.*' was not found
invalid=INVALID_ARGUMENT|unrecognized arguments|invalid value|not (found|available) in (location|zone)
passing=return code \[?255|port 22|connection (refused|timed out|closed|reset)|kex_exchange|broken pipe
passing=UNAVAILABLE|internal error|code.*INTERNAL|ABORTED|DEADLINE_EXCEEDED|try again (later|in)
passing=(http|error|status|code)[^0-9]*(429|50[0-9])
PATTERNS
  echo other
}

# advice: one line for a fault that waiting does not mend.
advice() {
  local quota
  case $FAULT in
    quota)
      quota=$(sed -En "s/.*[Qq]uota (limit |metric )?'([^']+)'.*/\2/p" "$FILES/errors" | head -n 1)
      echo "the quota ${quota:-named above} is too small: raise it (IAM & Admin > Quotas, $PROJECT, $ZONE)," \
        "delete what holds it, or ask for fewer chips: $(last_words)" ;;
    disabled)
      echo "an API is off in $PROJECT: gcloud services enable tpu.googleapis.com container.googleapis.com --project=$PROJECT" ;;
    login) echo "gcloud has no valid login: gcloud auth login" ;;
    key) echo "gcloud's SSH key is not in the agent: ssh-add ~/.ssh/google_compute_engine" ;;
    invalid) echo "gcloud refuses the request: $(last_words)" ;;
    permission) echo "not allowed in $PROJECT (roles/tpu.admin and roles/iam.serviceAccountUser are needed): $(last_words)" ;;
  esac
}

# nodes: the TPU VMs' names, one a slice.
nodes() {
  local slice
  if ((SLICES == 1)); then echo "$NAME"; return; fi
  for ((slice = 0; slice < SLICES; slice++)); do echo "$NAME-$slice"; done
}

# look KIND NAME FORMAT: one field of a queued-resources or tpu-vm, ABSENT where there is none.
look() {
  local words
  words=(gcloud compute tpus "$1" describe "$2" "--project=$PROJECT" "--zone=$ZONE" "--format=$3")
  if [[ -n $DRY_RUN ]]; then show "${words[@]}" >&4; return; fi
  quietly "${words[@]}" && return
  if [[ $FAULT == absent ]]; then echo ABSENT; else fail "$(last_words)"; fi
}

# state: READY, PREEMPTED (a machine is gone), ABSENT, or what the request or a machine says of itself.
state() {
  local answer node
  if [[ -z $DIRECT ]]; then
    answer=$(look queued-resources "$NAME" 'value(state.state)') || exit $?
    if [[ $answer != ACTIVE && -z $DRY_RUN ]]; then echo "$answer"; return; fi
  fi
  # A request stays ACTIVE for a while after its machines were taken away: ask each of them.
  for node in $(nodes); do
    answer=$(look tpu-vm "$node" 'value(state)') || exit $?
    case $answer in
      READY) ;;
      ABSENT) if [[ -n $DIRECT ]]; then echo ABSENT; else echo PREEMPTED; fi; return ;;
      PREEMPTED | TERMINATED | STOPPED) echo PREEMPTED; return ;;
      *) [[ -n $DRY_RUN ]] || { echo "$answer"; return; } ;;
    esac
  done
  echo READY
}

# await_ready: look until the machines are READY. 3 when the request is over, 1 when it is stuck.
await_ready() {
  local now before='' looks=0
  while :; do
    now=$(state) || exit $?  # said here, because set -e is off in a function whose status is asked for
    # READY at the first look is no news.
    if [[ $now != "$before" ]]; then looks=0 && [[ $now == READY && -z $before ]] || say "$NAME: $now"; fi
    before=$now
    looks=$((looks + 1))
    case $now in
      READY) return 0 ;;
      FAILED) failed_request; return 3 ;;
      PREEMPTED | SUSPENDED | ABSENT) return 3 ;;
      PROVISIONING)
        ((looks < PROVISION_POLLS)) || { say "stuck in PROVISIONING after $looks looks"; return 1; } ;;
      WAITING_FOR_RESOURCES | ACCEPTED)
        ((QUEUE_POLLS == 0 || looks < QUEUE_POLLS)) ||
          fail "still $now after $looks looks: try another --zone, a smaller --type or --spot; delete.sh leaves the queue"
        ((looks % 10)) || say "still $now after $looks looks: $ZONE has no free $TYPE; the place in the queue is kept" ;;
    esac
    pause "$POLL"
  done
}

# failed_request: why the request FAILED; exits with 2 where a new one would fail as well.
failed_request() {
  local reason
  reason=$(look queued-resources "$NAME" 'value(state.failedData.error.message)')
  say "the request failed: $reason"
  printf '%s\n' "$reason" >"$FILES/errors"
  FAULT=$(fault)
  case $FAULT in quota | permission | disabled) die "$(advice)" ;; esac
}

# reach ssh|scp NODE WORDS...: try it, where a machine that is not there is one that was taken away.
reach() {
  local track='' words status=0
  [[ $SSH_FLAGS != *--tunnel-through-iap* ]] || track=alpha  # the only track that knows this flag
  # shellcheck disable=SC2206  # words on purpose; set -f leaves them as they are
  words=(gcloud $track compute tpus tpu-vm "$1" "${@:3}" "--project=$PROJECT" "--zone=$ZONE" --quiet $SSH_FLAGS)
  NODE=$2 try "${words[@]}" || status=$?
  if [[ $FAULT == absent ]]; then return 3; else return "$status"; fi
}

# on_workers NODE WORKER COMMAND: run COMMAND there (WORKER: a number, or all).
on_workers() { reach ssh "$1" "$1" "--worker=$2" "--command=$3"; }

# to_workers NODE FILE NAME: copy FILE to NAME in the home folder of every worker.
to_workers() { reach scp "$1" "$2" "$1:$3" --worker=all; }

# at_once FUNCTION: call it with every node's name, all at the same time; the highest exit status.
at_once() {
  local node job jobs=() status=0 code
  for node in $(nodes); do
    if [[ -n $DRY_RUN ]]; then "$1" "$node"; continue; fi
    (FILES=$(mktemp -d "$FILES/node.XXXXXX") "$1" "$node") & jobs+=($!)
  done
  for job in ${jobs[@]+"${jobs[@]}"}; do
    code=0
    wait "$job" || code=$?
    status=$((code > status ? code : status))
  done
  return "$status"
}

# pack DIR FILE: the checkout as a .tar.gz, uncommitted work included, what git ignores left out.
pack() {
  [[ -f $1/pyproject.toml ]] || die "--source '$1': a checkout of mmjax (it holds pyproject.toml), or a .tar.gz of one"
  if [[ -n $DRY_RUN ]]; then show tar -czf "$2" -C "$1" .; return; fi
  if git -C "$1" rev-parse --git-dir >/dev/null 2>&1; then
    (cd "$1" && git ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do if [[ -e $file ]]; then printf '%s\0' "$file"; fi; done |
      tar -czf "$2" --null -T -)
  else
    tar -czf "$2" -C "$1" .
  fi
}

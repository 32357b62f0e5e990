# shellcheck shell=bash disable=SC2016,SC2034,SC2153  # settings.sh sets what is used here, and the scripts use what is set
# What the scripts share that start a training: its command, and the code that goes with it. Sourced after settings.sh, never run.

# training: the `mmjax train` words of WORDS, with --workdir from BUCKET where they have none, in COMMAND.
training() {
  local word
  ((${#WORDS[@]})) && [[ ${WORDS[0]} != -* ]] || die "which config? $SCRIPT [settings] CONFIG [--any.field value ...]"
  COMMAND=(mmjax train "${WORDS[@]}")
  for word in "${WORDS[@]}"; do
    case $word in --workdir | --workdir=*) return ;; esac
  done
  [[ -n $BUCKET ]] ||
    die "no place for the run: --bucket NAME before CONFIG, or --workdir DIR after it (the machines' own disks go with them)"
  COMMAND+=(--workdir "gs://$BUCKET/$NAME")
}

# supervised COMMAND...: shell text that runs COMMAND and leaves its exit status in $code, 143 when it was told to stop.
# mmjax saves and exits with 0 on SIGTERM, as it does when all is done: only who hears the signal can tell the two apart.
supervised() {
  local exports='' line
  while IFS= read -r line; do [[ -z $line ]] || exports+="export $(show "$line"); "; done <<<"$ENVIRONMENT"
  # 1: told before there was a child to tell.
  printf '%s' "${exports}stopped=; child=; trap 'stopped=1; [ -z \"\$child\" ] || { stopped=2; kill -TERM \$child 2>/dev/null; }' TERM; "
  printf '%s' "$(show "$@") & child=\$!; [ \"\$stopped\" != 1 ] || kill -TERM \$child 2>/dev/null; "
  printf '%s' "wait \$child; code=\$?; if [ -n \"\$stopped\" ]; then wait \$child; code=143; fi"
}

# gather: CODE, the files in FOLDER that a config needs which is a file here: itself first, then what it imports from beside it.
# Empty for a shipped config. Fails where that cannot be copied; $FILES/notes says why, or what else is here and not in CODE.
gather() {
  local config=${WORDS[0]} file
  CODE=() FOLDER=''
  : >"$FILES/notes"
  if [[ $config == *.py && $config != /* && ! -f $config && $SCRIPT != gke.sh ]]; then
    echo "no such file here" >"$FILES/notes"  # and so not there; an image of GKE's may hold it
    return 2
  fi
  if [[ ! -f $config ]] || [[ $config != */* && -f $HERE/../configs/$config.py ]]; then return; fi
  FOLDER=$(cd -- "$(dirname -- "$config")" && pwd)
  CODE=("$(basename -- "$config")")
  if ! command -v python3 >/dev/null; then beside "$config"; return; fi
  python3 "$HERE/imports.py" "$config" "${WORDS[@]:1}" >"$FILES/code" 2>"$FILES/notes" || return
  FOLDER='' CODE=()
  while IFS= read -r -d '' file; do
    if [[ -z $FOLDER ]]; then FOLDER=$file; else CODE+=("$file"); fi
  done <"$FILES/code"
}

# beside CONFIG: without Python, whether nothing that lies beside CONFIG is spoken of where it imports.
beside() (
  set +f
  for file in "$FOLDER"/*; do
    name=$(basename -- "$file"); name=${name%%.*}
    if [[ $name != "$(basename -- "$1" .py)" ]] && grep -E '^[[:space:]]*(import|from)[[:space:]]' -- "$1" | grep -qwF -e "$name"; then
      echo "it may import $file, and without python3 on PATH nobody can tell what else it needs" >"$FILES/notes"
      exit 1
    fi
  done
)

# copied: what goes to the machines with a config that is a file here, in ARCHIVE, where it is called code/CODE_CONFIG; or the end,
# before anything is done. watch.sh does it once, so every machine that it makes runs the same code.
copied() {
  local line config=${WORDS[0]}
  ARCHIVE=${MMJAX_ARCHIVE:-} CODE_CONFIG=${MMJAX_CONFIG:-}
  [[ -z $ARCHIVE ]] || return 0
  gather || die "config $config: $(tail -n 1 "$FILES/notes")"
  while IFS= read -r line; do printf '%s: %s\n' "$SCRIPT" "$line" >&2; done <"$FILES/notes"
  ((${#CODE[@]})) || return 0
  ARCHIVE=$FILES/mmjax_code.tar.gz CODE_CONFIG=${CODE[0]}
  tar -czhf "$ARCHIVE" -C "$FOLDER" -- "${CODE[@]/#/./}"
  [[ -z $DRY_RUN || $SCRIPT == gke.sh ]] || show tar -czhf "$ARCHIVE" -C "$FOLDER" -- "${CODE[@]/#/./}"
  ((${#CODE[@]} == 1)) || printf '%s: with %s go %s\n' "$SCRIPT" "$config" "$(show "${CODE[@]:1}")" >&2
}

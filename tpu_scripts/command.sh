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

# gather: what a machine needs of a config that is a file here, and of what it and the words import from beside it or from the
# current folder: CODE, its places below one folder, and PACK, the words that name it to tar; CODE_CONFIG, the config's place, empty
# for a shipped one. Fails where that cannot be copied; $FILES/notes says why, or what else is here and not in CODE.
gather() {
  local config=${WORDS[0]} folder place
  CODE=() PACK=() CODE_CONFIG=''
  : >"$FILES/notes"
  if [[ $config == *.py && $config != /* && ! -f $config && $SCRIPT != gke.sh ]]; then
    echo "no such file here" >"$FILES/notes"  # and so not there; an image of GKE's may hold it
    return 2
  fi
  if [[ ! -f $config ]] || [[ $config != */* && -f $HERE/../configs/$config.py ]]; then config=''; fi
  if [[ -n $config ]]; then
    CODE_CONFIG=$(basename -- "$config")
    CODE=("$CODE_CONFIG") PACK=(-C "$(cd -- "$(dirname -- "$config")" && pwd)" "./$CODE_CONFIG")
  fi
  if ! command -v python3 >/dev/null; then alone "$config"; return; fi
  python3 "$HERE/imports.py" "$config" "${WORDS[@]:1}" >"$FILES/code" 2>"$FILES/notes" || return
  CODE=() PACK=()
  while IFS= read -r -d '' folder && IFS= read -r -d '' place; do CODE+=("$place") PACK+=(-C "$folder" "./$place"); done <"$FILES/code"
  [[ -z $config ]] || CODE_CONFIG=${CODE[0]}
}

# alone CONFIG: without Python, whether nothing that lies beside CONFIG is spoken of where it imports, or here in the words.
alone() (
  set +f
  folder=.
  said=$(printf '%s\n' "${WORDS[@]:1}" | grep -E '(^|=)[[:alpha:]_][[:alnum:]_.]*:[[:alpha:]_]') || true
  if [[ -n $1 ]]; then
    folder=$(dirname -- "$1")
    said+=$'\n'$(grep -E '^[[:space:]]*(import|from)[[:space:]]' -- "$1") || true
  fi
  for file in "$folder"/* ./*; do
    name=$(basename -- "$file"); name=${name%%.*}
    if [[ -z $1 || $name != "$(basename -- "$1" .py)" ]] && grep -qwF -e "$name" <<<"$said"; then
      echo "it may import $file, and without python3 on PATH nobody can tell what else it needs" >"$FILES/notes"
      exit 1
    fi
  done
)

# copied: CODE in ARCHIVE, for the machines; or the end, before anything is done. watch.sh does it once, so every machine that it
# makes runs the same code.
copied() {
  local line config=${WORDS[0]} name
  ARCHIVE=${MMJAX_ARCHIVE:-}
  if [[ -n $ARCHIVE ]]; then CODE_CONFIG=${MMJAX_CONFIG:-}; return; fi
  gather || die "config $config: $(tail -n 1 "$FILES/notes")"
  while IFS= read -r line; do printf '%s: %s\n' "$SCRIPT" "$line" >&2; done <"$FILES/notes"
  ((${#CODE[@]})) || return 0
  for name in "${CODE[@]%%/*}"; do
    case $name in code | command | log | pid | ready | status)
      die "config $config: it comes with '$name', and the machines keep something of their own under that name: rename it" ;;
    esac
  done
  ARCHIVE=$FILES/mmjax_code.tar.gz
  tar -czhf "$ARCHIVE" "${PACK[@]}"
  [[ -z $DRY_RUN || $SCRIPT == gke.sh ]] || show tar -czhf "$ARCHIVE" "${PACK[@]}"
  [[ -n $CODE_CONFIG && ${#CODE[@]} == 1 ]] ||
    printf '%s: with %s go %s\n' "$SCRIPT" "$config" "$(show "${CODE[@]:$((${#CODE_CONFIG} ? 1 : 0))}")" >&2
}

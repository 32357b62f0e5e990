#!/usr/bin/env bash
# shellcheck disable=SC2016  # expanded on the workers
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

usage() {
  cat <<'TEXT'
usage: setup.sh [settings] [--source DIR | --ref REF --repository URL]

Install mmjax with its `tpu` extra on every worker of every slice.
  --source DIR        the checkout to copy over, uncommitted work included (the one that holds this script)
  --ref REF --repository URL
                      a branch, tag or commit to clone there instead
TEXT
}

parse "$@"
no_words
need PROJECT ZONE NAME

here='if grep -q mmjax "/proc/$(cat ~/mmjax_run/pid 2>/dev/null)/cmdline" 2>/dev/null; then
  echo "mmjax trains here: train.sh --stop ends it" >&2; exit 1
fi
set -eu; rm -rf ~/mmjax_source ~/mmjax_venv; mkdir -p ~/mmjax_source ~/mmjax_run'
if [[ -n $REF ]]; then
  [[ -n $REPOSITORY ]] || die "--ref $REF needs --repository URL"
  here+="
git -C ~/mmjax_source init --quiet
git -C ~/mmjax_source fetch --quiet --depth=1 $(show "$REPOSITORY" "$REF")
git -C ~/mmjax_source checkout --quiet FETCH_HEAD"
else
  archive=$SOURCE
  if [[ ! -f $SOURCE ]]; then archive=$FILES/mmjax_source.tar.gz && pack "$SOURCE" "$archive"; fi
  here+='
tar -xzf ~/mmjax_source.tar.gz -C ~/mmjax_source'
fi
# The images' own Python is 3.10: uv brings a newer one where none is there.
here+='
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --seed --python ">=3.11,<3.14" ~/mmjax_venv
~/mmjax_venv/bin/python -m pip install --quiet ~/"mmjax_source[tpu]"
~/mmjax_venv/bin/mmjax --help >/dev/null
touch ~/mmjax_run/ready'

set_up() {
  [[ -n $REF ]] || to_workers "$1" "$archive" mmjax_source.tar.gz
  on_workers "$1" all "$here"
  say "$1 is set up"
}
at_once set_up

#!/bin/sh
# Install legion-peer, legion-bootstrap, legion-ctl and legion-demo for this user, with uv or pipx, into an environment of their own.
#
#   sh deploy/install.sh [--cpu | --cuda] [--extras hf,wandb] [--dry-run]
#
# --cpu      the small build of torch, without CUDA. Default where nvidia-smi is not found.
# --extras   further parts, as in pip install "legion_p2p[hf,wandb]".
# --dry-run  print the command, and run nothing.
#
# From a checkout, that is installed; otherwise, or with LEGION_SOURCE, what pip finds under that name or address.
set -eu

fail() {
  echo "install.sh: $*" >&2
  exit 1
}

extras='' dry_run=no
if command -v nvidia-smi > /dev/null 2>&1; then build=cuda; else build=cpu; fi
while [ $# -gt 0 ]; do
  case $1 in
    --cpu) build=cpu ;;
    --cuda) build=cuda ;;
    --extras)
      [ $# -gt 1 ] || fail '--extras needs a list, such as hf,wandb'
      extras=$2
      shift
      ;;
    --dry-run) dry_run=yes ;;
    -h | --help)
      sed -n 's/^# \{0,1\}//p' "$0" | head -10
      exit 0
      ;;
    *) fail "$1 is no option: --cpu, --cuda, --extras LIST, --dry-run" ;;
  esac
  shift
done

here=$(dirname "$0")/..
if [ -n "${LEGION_SOURCE:-}" ]; then
  source=$LEGION_SOURCE
elif [ -f "$here/pyproject.toml" ]; then
  source=$(cd "$here" && pwd)
  [ "$dry_run" = yes ] || ! command -v python3 > /dev/null 2>&1 || python3 "$source/tools/check_system.py" || exit 1
else
  source=legion_p2p
fi
[ -z "$extras" ] || source="${source}[$extras]"

if [ "$build" = cpu ]; then
  export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu UV_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
  export UV_INDEX_STRATEGY=unsafe-best-match # as pip does: torch from there, everything else from PyPI
fi
if command -v uv > /dev/null 2>&1; then
  set -- uv tool install --python '>=3.11,<3.14' "$source"
elif command -v pipx > /dev/null 2>&1; then
  set -- pipx install "$source"
else
  fail 'neither uv nor pipx is here: https://docs.astral.sh/uv/getting-started/installation/ or apt-get install pipx'
fi
echo "+ $* (torch for $build)"
[ "$dry_run" = yes ] || exec "$@"

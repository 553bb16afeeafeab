#!/bin/sh
# The command of the container. It installs the bundle of the image into the volume and runs it. An installation that is there already is
# only checked. With arguments it is the installed edge-effdet, as in:
# docker compose exec detector sh /bundle/containers/entrypoint.sh status
set -eu

bundle=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
root=${EDGE_EFFDET_ROOT:-/data}

# The image is read-only, and what pip unpacks can be larger than the memory that /tmp is in.
export HOME="$root" XDG_CACHE_HOME="$root/.cache" CUDA_CACHE_PATH="$root/.cache/nv" TMPDIR="$root/.tmp"

if [ "$#" -gt 0 ]; then
  exec "$root/@NAME@/edge-effdet" "$@"
fi
mkdir -p "$TMPDIR"
set -- --root "$root" --service none
if [ -n "${EDGE_EFFDET_SOURCE:-}" ]; then
  set -- "$@" --source "$EDGE_EFFDET_SOURCE"
fi
# Several flags in one variable: they are meant to be split.
# shellcheck disable=SC2086
"$bundle/edge-effdet" install "$@" ${EDGE_EFFDET_INSTALL_FLAGS:-}
exec "$root/@NAME@/edge-effdet" run

#!/usr/bin/env bash
# Checks everything: style, types, shell scripts, then the tests. Arguments go to pytest.
# It makes an environment of its own first and leaves yours alone.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=slurm/common.sh
source slurm/common.sh

heading() { printf '\n== %s\n' "$*"; }

heading environment
read_site
VENV=$PROJECT/.venv-test
HARNESS_CONTAINER=()
ensure_venv requirements-test.lock
export PATH="$VENV/bin:$PATH"
unset PYTHONPATH PYTHONHOME

heading ruff check
ruff check .
heading ruff format
ruff format --check .
heading mypy
mypy
heading shellcheck
shellcheck --external-sources ./*/*.sh .ci/run
heading pytest
exec python -m pytest "$@"

# shellcheck shell=bash
# The Python environment of the job scripts: found or made, complete or absent, once for all jobs.
# Sourced by common.sh, whose PROJECT, VENV, say and inside it uses.

# Sets PYTHON to the first interpreter that can make the environment.
find_python() {
    local found='' version
    local -a candidates=(python3 python3.13 python3.12 python3.11)
    # With HARNESS_PYTHON set, no other interpreter will do.
    [[ -z ${HARNESS_PYTHON:-} ]] || candidates=("$HARNESS_PYTHON")
    local probe='import ensurepip, venv, sys
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
    for PYTHON in "${candidates[@]}"; do
        ! inside "$PYTHON" -c "$probe" 2>/dev/null || return 0
        ! version=$(inside "$PYTHON" --version 2>/dev/null) || found+=", $PYTHON is $version"
    done
    found=${found:-, ${candidates[0]} does not run}
    complain "Python 3.11, 3.12 or 3.13 with venv (python3-venv on Debian) is needed, but" \
        "${found#, }; load a module or set HARNESS_PYTHON in slurm/site.sh"
    exit 2
}

# Sets LOCKS to the lock files that suit this machine, the one to install first. The gpu lock only
# adds packages, so nodes with and without a GPU can share one environment.
# shellcheck disable=SC2034 # common.sh reads LOCKS
choose_locks() {
    LOCKS=(requirements-gpu.lock)
    case ${HARNESS_EXTRA:-} in
    gpu) return ;;
    none) ;;
    '') ! has_gpus || return 0 ;;
    *)
        complain "HARNESS_EXTRA is '$HARNESS_EXTRA'; it must be gpu, none or unset"
        exit 2
        ;;
    esac
    LOCKS=(requirements.lock requirements-gpu.lock)
}

# Whether this machine has a GPU or, on a login node before the first install, its cluster has.
has_gpus() {
    nvidia-smi -L >/dev/null 2>&1 || [[ -e /proc/driver/nvidia ]] ||
        { [[ ! -e $VENV/harness-lock.sha256 && -z ${SLURM_JOB_ID:-} ]] &&
            sinfo --noheader --format=%G 2>/dev/null | grep gpu >/dev/null; }
}

# Prints the stamp of a complete environment: a checksum of its path and of what it was made from.
stamp_of() {
    local sum=sha256sum
    command -v $sum >/dev/null || sum='shasum -a 256'
    (cd "$PROJECT" && echo "$1" "$VENV" && cat "$1" pyproject.toml) | $sum
}

# Whether the interpreter that the environment links to is there; a container may have its own.
has_interpreter() { [[ ${#HARNESS_CONTAINER[@]} -gt 0 || -x $VENV/bin/python ]]; }

# Whether the environment is complete and was made from one of the locks given.
is_ready() {
    local lock stamp
    stamp=$(cat "$VENV/harness-lock.sha256" 2>/dev/null) || return 1
    has_interpreter || return 1
    for lock; do
        [[ $stamp != "$(stamp_of "$lock")" ]] || return 0
    done
    return 1
}

# Runs the command given under a lock that holds on all nodes.
with_lock() (
    local lock=$PROJECT/.setup.lock
    exec 9>"$lock"
    if command -v flock >/dev/null; then
        flock --nonblock 9 || say "waiting for another process, which may be installing"
        flock 9 && { "$@"; exit; }
    fi
    # Without flock, or on a file system without it, a folder is the lock: only one process can
    # make it. An install that is half an hour old is taken for dead.
    until mkdir "$lock.d" 2>/dev/null; do
        sleep 2
        [[ -z $(find "$lock.d" -maxdepth 0 -mmin +30 2>/dev/null) ]] || rmdir "$lock.d" || true
    done
    trap 'rmdir "$lock.d"' EXIT
    "$@"
)

# An interrupted install can look complete to pip, so it is removed first. A complete one is
# changed in place, which keeps unchanged packages usable for running jobs.
install() {
    local lock=$1 log=$VENV/setup.log extra=''
    ! is_ready "$@" || return 0 # another process has installed it meanwhile
    if [[ ! -e $log && -n $(ls -A "$VENV" 2>/dev/null) ]]; then
        complain "$VENV: this script did not make it, and it has no bin/harness; install harness there" \
            "(pip install -e $PROJECT), or let HARNESS_VENV name a folder that does not exist"
        return 2
    fi
    # The log is left: without it the next try would take the rest for the user's own.
    [[ ! -e $log || ! -e $VENV/pyvenv.cfg || -e $VENV/harness-lock.sha256 ]] ||
        find "$VENV" -mindepth 1 -maxdepth 1 ! -name "${log##*/}" -exec rm -rf {} +
    mkdir -p "$VENV"
    rm -f "$VENV/harness-lock.sha256"
    say "installing $lock into $VENV: a minute or two (log: $log)"
    if ! install_steps "$lock" >"$log" 2>&1; then
        tail -n 8 "$log" >&2
        [[ $lock != requirements-gpu.lock ]] || extra='HARNESS_EXTRA=gpu '
        complain "the installation failed (log: $log); if this node is offline, run" \
            "\`${extra}bash slurm/common.sh --setup\` on the login node first"
        return 1
    fi
    stamp_of "$lock" >"$VENV/stamp.new"
    mv "$VENV/stamp.new" "$VENV/harness-lock.sha256"
}

# Chained by &&, since `set -e` is off inside a condition.
install_steps() {
    local again=()
    local -a pip=("$VENV/bin/python" -m pip --no-input --disable-pip-version-check)
    # An sdist would fetch its build requirements without checking hashes.
    local -a locked=(--require-hashes --only-binary :all:)
    # Many sites' modules export these for their own interpreters.
    unset PYTHONPATH PYTHONHOME
    export PIP_USER=0
    { inside test -x "$VENV/bin/python" || inside "$PYTHON" -m venv "$VENV"; } &&
        { install_by_uv "$PROJECT/$1" || install_by_pip "$PROJECT/$1"; } &&
        # setuptools is in the lock.
        inside "${pip[@]}" install --no-index --no-deps --no-build-isolation -e "$PROJECT"
}

# uv takes a third of pip's time. It reads none of pip's settings, so it is not used where they name
# an index or a proxy of the site.
install_by_uv() {
    local status=0 cache=$VENV/uv-cache # on the environment's disk, so that nothing is copied
    ! inside "${pip[@]}" config list |
        grep -E '\.(index-url|extra-index-url|no-index|proxy|client-cert|trusted-host)=' >/dev/null &&
        inside "${pip[@]}" install --progress-bar off --retries 1 "${locked[@]}" \
            -r "$PROJECT/requirements-uv.lock" || return 1
    again=(--force-reinstall) # what uv leaves half done can look complete to pip
    inside "$VENV/bin/uv" pip install --no-progress --python "$VENV/bin/python" \
        --cache-dir "$cache" --compile-bytecode "${locked[@]}" -r "$1" || status=1
    rm -rf "$cache"
    return $status
}

install_by_pip() {
    inside "${pip[@]}" install --progress-bar off ${again[@]+"${again[@]}"} "${locked[@]}" \
        --no-compile -r "$1" &&
        # Four at a time, where pip compiles one by one, and without the packages' tests. Packages
        # hold files that are no Python 3.
        { inside "$VENV/bin/python" -m compileall -qq -j 4 -x 'site-packages/.*/tests?/' \
            "$VENV/lib" || true; }
}

# Installs the environment from the first lock given, unless it is complete from any of them.
ensure_venv() {
    local why=''
    ! is_ready "$@" || return 0
    if inside test -x "$VENV/bin/harness"; then
        if [[ ! -e $VENV/setup.log ]]; then
            why='this script did not make it'
        elif [[ ! -w $VENV ]]; then
            why='it is read-only'
        elif is_of_another_lock; then
            why="it was made from other lock files; \`bash slurm/common.sh --setup\` installs these"
        fi
        [[ -z $why ]] || { say "using $VENV as it is: $why"; return; }
    fi
    find_python
    with_lock install "$@"
}

# Whether a complete environment, of this project in another state or of another checkout, serves
# now. Only `--setup` changes one for a job, or one that HARNESS_VENV names: others may be using it.
is_of_another_lock() {
    [[ -z ${SETS_UP:-} && -e $VENV/harness-lock.sha256 ]] &&
        ! is_ready requirements.lock requirements-gpu.lock &&
        { [[ -n ${HARNESS_VENV:-} ]] || is_batch; }
}

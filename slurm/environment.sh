# shellcheck shell=bash
# Creates and checks the Python environment that all jobs share. common.sh sources this file, and
# defines PROJECT, VENV, say, warn, complain and inside.

# Sets PYTHON to the first interpreter that can create the environment.
find_python() {
    local -a candidates=(python3 python3.13 python3.12 python3.11)
    local probe='import ensurepip, venv, sys
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
    [[ -z ${HARNESS_PYTHON:-} ]] || candidates=("$HARNESS_PYTHON")
    for PYTHON in "${candidates[@]}"; do
        ! inside "$PYTHON" -c "$probe" 2>/dev/null || return 0
    done
    PYTHON=${candidates[0]}
    complain "Python 3.11, 3.12 or 3.13 with venv (python3-venv on Debian) is needed, but $PYTHON is" \
        "$(inside "$PYTHON" --version 2>/dev/null || echo missing);" \
        "load a module or set HARNESS_PYTHON in slurm/site.sh"
    exit 2
}

# Sets LOCKS to the lock files that suit this machine; `install` uses the first. The GPU lock
# file only adds packages, so its environment also suits machines without a GPU.
# shellcheck disable=SC2034 # common.sh reads LOCKS
choose_locks() {
    case ${HARNESS_EXTRA:-} in
    '') ! has_gpus || local HARNESS_EXTRA=gpu ;;
    gpu | none) ;;
    *)
        complain "HARNESS_EXTRA is '$HARNESS_EXTRA'; it must be gpu, none or unset"
        exit 2
        ;;
    esac
    LOCKS=(requirements-gpu.lock)
    [[ ${HARNESS_EXTRA:-} == gpu ]] || LOCKS=(requirements.lock requirements-gpu.lock)
}

# True if this machine has a GPU. Before an installation outside of a job, also true if the cluster
# has a GPU.
has_gpus() {
    nvidia-smi -L >/dev/null 2>&1 || [[ -e /proc/driver/nvidia ]] ||
        { [[ -z ${SLURM_JOB_ID:-} && (-n ${SETS_UP:-} || ! -e $VENV/harness-lock.sha256) ]] &&
            sinfo --noheader --format=%G 2>/dev/null | grep gpu >/dev/null; }
}

# Prints the stamp of a complete environment: a checksum of its path, lock file and project file.
stamp_of() {
    (cd "$PROJECT" && echo "$1" "$VENV" && cat "$1" pyproject.toml) | sha256sum
}

# True if the environment's interpreter exists. With a container always true, because the image of
# the container may contain the interpreter.
has_interpreter() { [[ ${#HARNESS_CONTAINER[@]} -gt 0 || -x $VENV/bin/python ]]; }

# True if the environment is complete and was installed from one of the lock files in the arguments.
is_ready() {
    local lock stamp
    stamp=$(cat "$VENV/harness-lock.sha256" 2>/dev/null) && has_interpreter || return 1
    for lock; do
        [[ $stamp != "$(stamp_of "$lock")" ]] || return 0
    done
    return 1
}

# Installs the first of the lock files in the arguments, if the environment was installed from none
# of them. Only `--setup` changes a complete environment, because other jobs may be using it.
ensure_venv() {
    local found="it was not installed from this project's lock files" remedy=''
    local setup='bash slurm/common.sh --setup'
    unset PYTHONPATH PYTHONHOME # many sites' modules export them for other interpreters
    ! is_ready "$@" || return 0
    [[ $1 != requirements-gpu.lock ]] || setup="HARNESS_EXTRA=gpu $setup"
    if [[ -n ${HARNESS_SNAPSHOT:-} || (-z ${SETS_UP:-} && -e $VENV/harness-lock.sha256) ]] ||
        { [[ ! -e $VENV/setup.log ]] && inside test -x "$VENV/bin/harness"; }; then
        if [[ -L $VENV/bin/python ]] && ! has_interpreter; then
            warn "$VENV/bin/python links to $(readlink -f "$VENV/bin/python" || true), which is not" \
                "on this node; load its module in slurm/site.sh"
        elif [[ ${#HARNESS_CONTAINER[@]} == 0 && ! -x $VENV/bin/harness ]]; then
            # The disk of the environment may be missing on this node only, so requeue the job.
            warn "$VENV/bin/harness is missing, and a submitted job installs nothing; if it is" \
                "missing on the login node too, run \`$setup\`, and submit the job again"
        else
            ! is_ready requirements.lock || found='it has no CUDA libraries'
            # If setup.log is missing, the user made the environment; `--setup` does not change it.
            [[ ! -e $VENV/setup.log ]] || remedy=", which \`$setup\` installs"
            say "using $VENV unchanged; $found$remedy"
        fi
        return
    fi
    find_python
    with_lock install "$@"
}

# Runs a command under a lock that is valid on all nodes. If flock is missing or the disk does not
# support locks (some Lustre), the lock is a folder. After half an hour any process may remove this
# folder.
with_lock() (
    lock=$PROJECT/.setup.lock
    { exec 9>"$lock"; } 2>/dev/null || {
        complain "$lock: can't be opened, but an installation needs it; copy the project into a" \
            "folder of your own, or set HARNESS_VENV to an environment that contains harness"
        exit 2
    }
    if command -v flock >/dev/null; then
        flock --nonblock 9 2>/dev/null || say "waiting for another process, which may be installing"
        ! flock 9 2>/dev/null || { "$@"; exit; }
    fi
    until mkdir "$lock.d" 2>/dev/null; do
        sleep 2
        find "$lock.d" -maxdepth 0 -mmin +30 -exec rmdir {} + 2>/dev/null || true
    done
    trap 'rmdir "$lock.d"' EXIT
    "$@"
)

# Installs lock file $1 for ensure_venv. First removes an incomplete environment, which could look
# complete to pip. Changes a complete environment in place, so running jobs keep the packages that do
# not change.
install() {
    local lock=$1 log=$VENV/setup.log
    ! is_ready "$@" || return 0 # another process has installed it meanwhile
    if [[ ! -e $log && -n $(ls -A "$VENV" 2>/dev/null) ]]; then
        complain "$VENV: was not made by this script and has no bin/harness; install harness there" \
            "(pip install -e $PROJECT), or set HARNESS_VENV to a new folder"
        return 2
    fi
    # Keep the log, because it shows that this script made the folder. VENV may be a link; with the
    # slash, find enters the link.
    [[ ! -e $VENV/pyvenv.cfg || -e $VENV/harness-lock.sha256 ]] ||
        find "$VENV/" -mindepth 1 -maxdepth 1 ! -name "${log##*/}" -exec rm -rf {} +
    mkdir -p "$VENV"
    rm -f "$VENV/harness-lock.sha256"
    say "installing $lock into $VENV: a minute or two (log: $log)"
    if ! install_steps "$lock" >"$log" 2>&1; then
        tail -n 8 "$log" >&2
        complain "the installation failed (log: $log); if this node is offline, run \`$setup\`" \
            "on the login node first"
        return 1
    fi
    stamp_of "$lock" >"$VENV/stamp.new"
    mv "$VENV/stamp.new" "$VENV/harness-lock.sha256"
}

# && joins the steps, because bash ignores `set -e` inside a condition.
install_steps() {
    local again=()
    local -a pip=("$VENV/bin/python" -m pip --no-input --disable-pip-version-check)
    # Install only wheels: for an sdist, pip would fetch build tools without checking hashes.
    local -a locked=(--require-hashes --only-binary :all:)
    # Build with the installed setuptools, which the lock file contains.
    local -a editable=(--no-index --no-deps --no-build-isolation -e "$PROJECT")
    export PIP_USER=0
    local folder=$VENV
    # venv refuses a link, such as a link from .venv to a large disk.
    [[ ! -L $VENV ]] || folder=$(readlink -f "$VENV")
    { inside test -x "$VENV/bin/python" || inside "$PYTHON" -m venv "$folder"; } &&
        { install_by_uv "$PROJECT/$1" || install_by_pip "$PROJECT/$1"; } &&
        # Compile here, because uv and pip would also compile the packages' tests, and pip would
        # compile one file at a time.
        { inside "$VENV/bin/python" -m compileall -qq -j 4 -x 'site-packages/.*/tests?/' \
            "$VENV/lib" || true; } # some files of packages are not Python 3
}

# uv takes a third of pip's time, but ignores pip's settings. So this function fails if pip's
# settings name an index or a proxy of the site, and pip then installs the packages.
install_by_uv() {
    local status=0 cache=$VENV/uv-cache # uv makes hard links, which need one disk
    local -a uv=("$VENV/bin/uv" pip install --no-progress --cache-dir "$cache"
        --python "$VENV/bin/python")
    ! inside "${pip[@]}" config list |
        grep -E '\.(index-url|extra-index-url|no-index|proxy|client-cert|trusted-host)=' >/dev/null &&
        inside "${pip[@]}" install --progress-bar off --retries 1 "${locked[@]}" \
            -r "$PROJECT/requirements-uv.lock" || return 1
    again=(--force-reinstall) # packages that uv left incomplete can look complete to pip
    inside "${uv[@]}" "${locked[@]}" -r "$1" && inside "${uv[@]}" "${editable[@]}" || status=1
    rm -rf "$cache"
    return $status
}

install_by_pip() {
    inside "${pip[@]}" install --progress-bar off "${again[@]}" "${locked[@]}" \
        --no-compile -r "$1" && inside "${pip[@]}" install "${editable[@]}"
}

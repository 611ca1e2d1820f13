#!/usr/bin/env bash
# Writes requirements.lock: the versions that a fresh environment gets from the pins in pyproject.toml
# and the zoo's list. Local version labels (torch's `+cpu`) are left out, so that any build fits.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
touch "$work/none"
VENV=$work/venv LOCK=$work/none tools/setup.sh --packages-only
{
    echo "# Every version of a fresh environment. Written by tools/lock.sh (make lock); do not edit."
    "$work/venv/bin/python" -m pip freeze --disable-pip-version-check --all --exclude-editable |
        sed -E 's/\+[A-Za-z0-9.]+$//' | grep -v -E '^(-e|modelyard|pip=)' | LC_ALL=C sort -f
} >"$work/lock"
cp "$work/lock" requirements.lock
echo "requirements.lock: $(grep -c == requirements.lock) packages"

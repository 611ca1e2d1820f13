#!/usr/bin/env bash
# Makes .venv-clients: third-party clients that need an older protobuf than modelyard, pinned.
# Does nothing where it is already as wanted. Prints the path of its Python.
set -euo pipefail
cd "$(dirname "$0")/.."
# Change a pin and the folder is made anew.
pins=(
    "tritonclient[grpc]==2.73.0"
    "grpcio==1.85.1"
    "numpy==2.4.6"
    "protobuf==6.33.6"
)
wanted=$(printf '%s\n' "${pins[@]}")
python=.venv-clients/bin/python
if [ "$(cat .venv-clients/pins 2>/dev/null)" != "$wanted" ]; then
    rm -rf .venv-clients
    "${PYTHON:-python3}" -m venv .venv-clients >&2
    "$python" -m pip install --quiet "${pins[@]}" >&2
    printf '%s\n' "$wanted" > .venv-clients/pins
fi
echo "$PWD/$python"

#!/usr/bin/env bash
# Generates gen/ from protos/: messages, stubs, and typed stubs for both. Run by `make proto`.
# With --check: writes nothing, fails if gen/ is not what would be generated.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
mapfile -t files < <(cd protos && find modelyard -name '*.proto' | LC_ALL=C sort)
"$bin/python" -m grpc_tools.protoc -I protos \
    --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" \
    --plugin=protoc-gen-mypy_grpc="$bin/protoc-gen-mypy_grpc" \
    --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
    "${files[@]}"
# Files without a service need no stubs of one.
for file in "${files[@]}"; do
    stem=$out/${file%.proto}
    grep -q '^service ' "protos/$file" || rm -f "${stem}_pb2_grpc.py" "${stem}_pb2_grpc.pyi"
done
find "$out" -mindepth 1 -type d -exec touch {}/__init__.py \;
if [ "${1:-}" = --check ]; then
    diff -r --brief -x __pycache__ "$out/modelyard" gen/modelyard || {
        echo "gen/ is stale: run 'make proto' and commit it" >&2
        exit 1
    }
    exit 0
fi
rm -rf gen/modelyard
mkdir -p gen
cp -r "$out/modelyard" gen/modelyard

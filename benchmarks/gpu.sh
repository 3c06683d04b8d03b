#!/usr/bin/env bash
# Everything that wants a GPU, in under 9 minutes: build, the tests marked gpu, the suites on cuda.
# Results go to $OUT (default benchmarks/results/cuda). Needs torch, triton and a compiler; no network.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results/cuda}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1

timeout 80 python3 -m pip install --quiet --no-build-isolation --no-deps . || exit 1
python3 -c 'import gossamer as gs; print(gs.doctor.text(gs.doctor.report()))' | tee "$OUT/doctor.txt"
# Most of the tests' time is Triton compiling, one kernel per tile and dtype: several processes where pytest-xdist is.
workers=$(python3 -c 'import xdist; print("-n 6")' 2>/dev/null || true)
# Only files that hold such tests are collected, by every process; the laws of tests/laws mark theirs in one place.
timeout 200 python3 -m pytest -q -m gpu $workers tests/laws $(grep -rl --include='test_*.py' mark.gpu tests) 2>&1 |
    tee "$OUT/tests.txt"
tests=${PIPESTATUS[0]}

# Called from Python, not through the command line: a GPU machine need not have the extra that parses flags.
# The digits runs are a CPU story; on a GPU their networks are too small to say anything.
bench() { # suite, seconds, the parts of it (all)
    timeout "$2" python3 -c "
from gossamer import bench
bench.run('$1', bench.Settings(device='cuda', reps=9, only=(${3:-})), '$OUT/$1.json')" 2>&1 | tee "$OUT/$1.txt"
}
bench matmul 80
bench detect 30
bench conv 40 "'gemv'"
bench compile 70 "'padding', 'moe'"
bench compact 40 "'throughput', 'overhead', 'shrinking'"
exit "$tests"

#!/usr/bin/env bash
# Everything that wants a GPU, in under 9 minutes: build, the tests marked gpu, the suites on cuda.
# Results go to $OUT (default benchmarks/results/cuda). Needs torch, triton and a compiler; no network.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results/cuda}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1

timeout 120 python3 -m pip install --quiet --no-build-isolation --no-deps . || exit 1
python3 -m gossamer.cli doctor | tee "$OUT/doctor.txt"
timeout 180 python3 -m pytest -q -m gpu tests 2>&1 | tee "$OUT/tests.txt"
tests=${PIPESTATUS[0]}
for suite in detect compact; do
    only=()
    # The digits runs are a CPU story; on a GPU their networks are too small to say anything.
    [ "$suite" = compact ] && only=(--only throughput overhead shrinking)
    timeout 110 python3 -m gossamer.cli bench "$suite" --device cuda --reps 9 "${only[@]}" \
        --json "$OUT/$suite.json" 2>&1 | tee "$OUT/$suite.txt"
done
exit "$tests"

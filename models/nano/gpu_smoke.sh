#!/bin/sh
# Ten minutes at most on a new GPU machine: is everything there, how quick is it, does it train?
#     sh models/nano/gpu_smoke.sh WHEELS CORPUS
# Needs the wheels of models/nano/README.md in WHEELS. Leaves small files in $OUT.
set -eu
wheels=$1
corpus=$2
out=${OUT:-/tmp/nano-out}
run=/tmp/nano-smoke
mkdir -p "$out"
python3 -m pip install --quiet --no-deps --no-index "$wheels"/*.whl
export PYTHONPATH="$PWD:$PWD/daemon:$PWD/runtime"
export TORCHINDUCTOR_CACHE_DIR=/tmp/inductor
rm -rf "$run" "$run-parent"
timeout 60 python3 models/nano/data/stream.py --corpus "$corpus" --workers 12 || echo "stream: rc $?"
rc=0
timeout 440 python3 models/nano/train.py --data "$corpus" --out "$run" --smoke || rc=$?
echo "train: rc $rc"
cp "$run/log.jsonl" "$run/smoke.json" "$out/" || true
last=$(ls -d "$run"/step-* | sort -t- -k3 -n | tail -1)
timeout 60 python3 models/nano/export.py "$last" "$run-parent"
exit "$rc"

#!/usr/bin/env bash
# The script of the GPU table on tiny models without a GPU: every row leaves a rate, no model stays.
#   run_gpu_test.sh RUN_GPU BIN
set -euo pipefail
script="$1" bin="$2"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$script" --dry-run --bin "$bin" --out "$work/out.jsonl" --dir "$work/models" --threads 1
rows="$(sed -nE 's/^ *row ([a-z0-9-]+) .*/\1/p' "$script")"
[ "$(wc -w <<<"$rows")" -ge 10 ] || { echo "found these rows only: $rows" >&2; exit 1; }
for row in $rows; do
  grep -E "\"name\": ?\"$row\"" "$work/out.jsonl" |
    grep -qE '"tokens_per_second": ?\{.*"median": ?[0-9]*[1-9]' ||
    { echo "row $row left no rate" >&2; exit 1; }
done
left="$(find "$work/models" -type f)"
[ -z "$left" ] || { echo "left behind: $left" >&2; exit 1; }
# What cannot be run is said.
if "$script" --dry-run --bin "$work/nowhere" --out "$work/none.jsonl" --dir "$work/models"; then
  echo "programs that are not there were taken for ones that ran" >&2
  exit 1
fi

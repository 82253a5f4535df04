# Functions that ./quickstart and ./check share. Sourced from the repository root.

# A second clone, at another path, finds what the first one compiled.
export CCACHE_BASEDIR="$PWD" CCACHE_NOHASHDIR=1

# step 2 4 "build": a headline with the time since the script began.
step() {
  printf '\n[%d/%d] %s  (after %d min %02d s)\n' "$1" "$2" "$3" $((SECONDS / 60)) $((SECONDS % 60))
}

# Compilers of gRPC code take up to 1.5 GB each: as many at once as cores and memory allow.
num_jobs() {
  local cores memory
  cores="$(nproc)"
  memory="$(awk '/^MemAvailable:/ { print int($2 / 1500000) }' /proc/meminfo)"
  [ "$memory" -ge 1 ] || memory=1
  [ "$memory" -lt "$cores" ] && echo "$memory" || echo "$cores"
}

# configure DIR [cmake options]: quiet unless it fails.
configure() {
  local dir="$1" log
  shift
  log="$(mktemp)"
  if ! cmake -S . -B "$dir" -G Ninja "$@" >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}

# build DIR [targets]: one line of progress on a terminal, none otherwise; errors in full.
build() {
  local dir="$1" quiet=(--quiet)
  shift
  [ -t 1 ] && quiet=()
  # `serve` and these scripts are used on machines that do other work, too.
  nice -n 5 ninja "${quiet[@]}" -C "$dir" -j "$(num_jobs)" "$@"
  echo "built in $dir/"
}

# run_tests DIR [ctest options]: ends with ctest's own summary.
run_tests() {
  local dir="$1"
  shift
  ctest --test-dir "$dir" --output-on-failure --no-tests=error -j "$(nproc)" "$@"
}

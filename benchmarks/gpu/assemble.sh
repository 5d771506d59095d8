#!/bin/bash
# Unpack a part:  bash p1/assemble.sh p1
# Clips are encoded in the background as soon as part 1 is there (50 s on 16 cores), and bytecode is
# written, so that 17 processes do not each compile vLLM at once. Part 1 is unpacked in the
# background, too: the next part can be on its way meanwhile. Part 2 waits for it.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
part=$(cd "${1:?which part?}" && pwd) || exit 1
mkdir -p "$BENCH_ROOT/done" "$SITE" "$BENCH_CLIPS" "$OUT"
say() { echo "[$(date +%T)] $*"; }
unpack() { # name folder
    [ -e "$part/$1.tar.xz" ] && [ ! -e "$BENCH_ROOT/done/$1" ] || return 0
    mkdir -p "$2"
    if command -v xz >/dev/null; then tar -xJf "$part/$1.tar.xz" -C "$2"
    else "$PY" -c 'import sys, tarfile
tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="fully_trusted")' "$part/$1.tar.xz" "$2"
    fi && touch "$BENCH_ROOT/done/$1"
}
unpack_all() {
    local name
    for name in av site vllm ext fa3 nvdec; do unpack $name "$SITE" & done
    unpack project "$BENCH_PROJECT" &
    unpack models "$BENCH_ROOT/models" &
    unpack caches / &
    wait
    say "unpacked: $(ls "$BENCH_ROOT/done" | tr '\n' ' ')"
}
compile() { "$PY" -m compileall -qq -j "${1:-0}" "${@:2}" >/dev/null 2>&1; }
background() {
    unpack_all
    cd "$BENCH_PROJECT" || exit 1
    # the clips first: they take longest
    nice -n 10 "$PY" -m benchmarks.gpu.make_clips "$BENCH_CLIPS" "${CLIP_PROCESSES:-$(nproc)}" \
        >"$BENCH_CLIPS/log.txt" 2>&1 &
    compile 0 "$SITE" "$BENCH_PROJECT/workflow" "$BENCH_PROJECT/benchmarks"
    touch "$BENCH_ROOT/done/part1"
    wait
}
if [ -e "$part/site.tar.xz" ]; then
    # a copy, since the next transfer may change the folder of this one
    cp -r "$part" "$BENCH_ROOT/part1" && part=$BENCH_ROOT/part1
    export -f unpack unpack_all compile background say
    export part PY
    setsid nohup bash -c background >"$BENCH_ROOT/part1.log" 2>&1 </dev/null &
    say "part 1 is being unpacked"
    exit 0
fi
unpack_all
for _ in $(seq 600); do
    [ -e "$BENCH_ROOT/done/part1" ] && break
    sleep 0.1
done
cat "$BENCH_ROOT/part1.log"
missing=0
for name in av site vllm ext fa3 project models; do
    [ -e "$BENCH_ROOT/done/$name" ] || { say "missing: $name"; missing=1; }
done
[ $missing = 0 ] || exit 1
if ! "$PY" -c "import numba" 2>"$BENCH_ROOT/numba.txt"; then
    tail -1 "$BENCH_ROOT/numba.txt"
    cp -r "$BENCH_PROJECT/benchmarks/gpu/fallback/numba" "$SITE/"
    say "numba replaced by a stub"
fi
say "assembled"

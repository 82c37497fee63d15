#!/usr/bin/env bash
# The benchmarks on a GPU machine that has LibTorch (in its Python), nvcc, CMake and Ninja, and cannot install anything.
#   bench/carry.sh             beforehand, where Debian's packages are: packs the rest into build/carry
#   bench/gpu.sh [OUT]         builds for the GPU at hand, runs the CUDA tests, then the benchmarks; JSON into OUT
#   bench/gpu.sh --dry-run     without a GPU: builds the same for sm_90, runs the CUDA list's cases at small sizes on the CPU
# Environment: PYTHON (python3), ARCH (90), JOBS (all cores), PARTS ("tests kernels peers model").
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
build=build/gpu
dry=
[ "${1:-}" = --dry-run ] && { dry=1; shift; }
out=${1:-bench/results}
say() { printf '== %s  (%s s)\n' "$*" "$SECONDS"; }

command -v nvcc >/dev/null || export PATH=$PATH:/usr/local/cuda/bin
torch=$("$python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
launcher=()
command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
# LIBVAR_WERROR=OFF: another compiler's new warnings should not cost a lease.
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLIBVAR_KERNELS_ONLY=ON -DLIBVAR_WERROR=OFF -DLIBVAR_CUDA=ON \
  -DCMAKE_CUDA_ARCHITECTURES="${ARCH:-90}" -DLibTorch_ROOT="$torch" -DLIBVAR_PYTHON="$(command -v "$python")" \
  -DCMAKE_PREFIX_PATH="$PWD/build/carry/usr" "${launcher[@]}" >"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
cmake --build "$build" ${JOBS:+-j "$JOBS"} --target libvar_ops test_cuda bench_kernels bench_model
say built
commit=$(cat build/carry/COMMIT 2>/dev/null || git rev-parse HEAD)
context=--benchmark_context=commit=$commit

if [ -n "$dry" ]; then
  "$build/bin/bench_kernels" --device=cpu --grid=cuda --benchmark_list_tests
  "$build/bin/bench_kernels" --device=cpu --grid=cuda --tiny --rounds=1 "$context" --benchmark_out="$build/dry_run.json" >"$build/dry_run.txt" ||
    { cat "$build/dry_run.txt"; exit 1; }
  grep -E 'note:' "$build/dry_run.txt" || say "all outputs right: $(grep -c 'A/A spread' "$build/dry_run.txt") cases"
  "$python" bench/kernels/peers.py --device cpu --grid cuda --tiny --ops "$build/lib/libvar_ops.so" --out "$build/dry_run_peers.json" --commit "$commit"
  "$python" bench/model/bench_model.py --module "$build/lib/bench_model.so" --device cpu --dtype fp32 --quick || true  # SKIPPED without transformers
  say "dry run done: nothing was measured"
  exit 0
fi

nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu --format=csv,noheader
mkdir -p "$out"
name=$(date +%F)-$("$python" -c 'import torch; print(torch.cuda.get_device_name(0).lower().replace(" ", "-"))')
for part in ${PARTS:-tests kernels peers model}; do
  case $part in
    tests) LIBVAR_REQUIRE_CUDA=1 "$build/bin/test_cuda" || echo "TESTS FAILED: what follows is not to be trusted" ;;
    kernels)
      "$build/bin/bench_kernels" --device=cuda "$context" --benchmark_out="$out/$name-kernels.json" ||
        echo "some cases failed: see FAILED above" ;;
    peers)
      "$python" bench/kernels/peers.py --device cuda --ops "$build/lib/libvar_ops.so" --out "$out/$name-peers.json" --commit "$commit" ||
        echo "peers failed" ;;
    model)  # needs transformers in that Python
      "$python" bench/model/bench_model.py --module "$build/lib/bench_model.so" --device cuda --commit "$commit" \
        --out "$out/$name-model.json" || echo "model failed"
      "$python" bench/model/bench_model.py --module "$build/lib/bench_model.so" --device cuda --commit "$commit" \
        --keys 640 --sequences 1 2 4 8 --out "$out/$name-model-sequences.json" || echo "sequences failed" ;;
  esac
  say "$part done"
done

#!/usr/bin/env bash
# Packs what a machine without Debian's packages needs beside LibTorch, CUDA and CMake into build/carry:
# Catch2 (headers) and Google Benchmark (a small library). Their CMake packages work from any folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
carry=build/carry
rm -rf "$carry"
mkdir -p "$carry"
for package in catch2 libbenchmark-dev libbenchmark1debian; do
  dpkg -L "$package" | grep -E '^/usr/(include|lib|share/cmake)/.' | while read -r file; do
    [ -d "$file" ] || printf '%s\n' "${file#/}"
  done
done | tar -C / -c -T - | tar -C "$carry" -x
git rev-parse HEAD >"$carry/COMMIT"
git diff --quiet HEAD || echo "$(cat "$carry/COMMIT")-dirty" >"$carry/COMMIT"
du -sh "$carry"

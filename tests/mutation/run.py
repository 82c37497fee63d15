#!/usr/bin/env python3
"""Seeds the faults of mutants.py into the CUDA kernels, one at a time, and demands that the SIMT tests catch each.

A copy of the kernels and of tests/simt is changed, never the tree itself. Needs g++ and Catch2; no LibTorch, no GPU.

    run.py                 every mutant; fails where one survives
    run.py --only norms    those whose file or fault contains the text
    run.py --write-table   every mutant, and docs/mutations.md
    run.py --check         nothing is built: each fault's place still exists exactly once
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.sax.saxutils

sys.dont_write_bytecode = True
from mutants import MUTANTS  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "mutations.md"
TREES = ["kernels", "tests/simt", "tests/reference"]
FLAGS = ["-std=c++20", "-O1", "-fsanitize=alignment", "-fno-sanitize-recover=alignment", "-w", "-Ikernels",
         "-Ikernels/include", "-Itests", "-Itests/simt", "-Itests/simt/emulator", "-Itests/simt/emulator/include"]


@dataclasses.dataclass
class Verdict:
    caught: bool
    by: str = ""  # the test case that failed
    how: str = ""


def place_problems():
    """Mutants whose place is gone, or there more than once."""
    problems = []
    for mutant in MUTANTS:
        count = (ROOT / mutant.file).read_text().count(mutant.old)
        if count != 1:
            problems.append(f"{mutant.file}: {mutant.fault}: its text occurs {count} times")
        if mutant.old == mutant.new:
            problems.append(f"{mutant.file}: {mutant.fault}: changes nothing")
    return problems


class Bench:
    """A copy of the tree with everything built that no mutant touches."""

    def __init__(self, folder, seconds):
        self.folder = pathlib.Path(folder)
        self.seconds = seconds
        for tree in TREES:
            shutil.copytree(ROOT / tree, self.folder / tree)
        (self.folder / "objects").mkdir()
        (self.folder / "main.cpp").write_text("#define CATCH_CONFIG_MAIN\n#include <catch2/catch.hpp>\n")
        fixed = ["main.cpp", *sorted((self.folder / "tests/simt/emulator").glob("*.cpp"))]
        self.fixed_objects = [self.compile(source) for source in fixed]

    def execute(self, command, **options):
        return subprocess.run(command, cwd=self.folder, text=True, capture_output=True, **options)

    def compile(self, source):
        output = self.folder / "objects" / (pathlib.Path(source).stem + ".o")
        done = self.execute(["g++", *FLAGS, "-c", str(source), "-o", str(output)])
        if done.returncode != 0:
            raise RuntimeError(f"{source} does not compile:\n{done.stderr}")
        return output

    def test(self, name):
        """Builds and runs the SIMT tests of one name until the first failure."""
        sources = sorted((self.folder / "tests/simt").glob(f"{name}*_test.cpp"))
        objects = [self.compile(source) for source in sources]
        program = self.folder / f"test_{name}"
        done = self.execute(["g++", "-fsanitize=alignment", "-o", str(program), *map(str, self.fixed_objects + objects)])
        if done.returncode != 0:
            raise RuntimeError(f"test_{name} does not link:\n{done.stderr}")
        try:
            done = self.execute([str(program), "--abort", "-r", "xml"], timeout=self.seconds)
        except subprocess.TimeoutExpired as expired:
            output = expired.stdout or b""
            text = output.decode(errors="replace") if isinstance(output, bytes) else output
            return Verdict(True, last_case(text), f"runs for more than {self.seconds} s")
        if done.returncode == 0:
            return Verdict(False)
        return Verdict(True, last_case(done.stdout), how_it_failed(done))


def last_case(xml_text):
    names = re.findall(r'<TestCase name="([^"]*)"', xml_text)
    return xml.sax.saxutils.unescape(names[-1], {"&quot;": '"'}) if names else "?"


def how_it_failed(done):
    if "<FatalErrorCondition" in done.stdout or done.returncode < 0:
        return "memory fault"
    if "misaligned address" in done.stderr:
        return "misaligned vector"
    match = re.search(r"(divergence|mismatch|write past the dynamic shared memory|outside the mask)", done.stdout)
    return f"emulator: {match.group(1)}" if match else "wrong result"


def run(mutants, seconds):
    """[(mutant, verdict)]"""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, seconds)
        for name in sorted({mutant.test for mutant in mutants}):
            verdict = bench.test(name)
            if verdict.caught:
                sys.exit(f"run.py: the {name} tests fail without any mutant: {verdict.by}, {verdict.how}")
        for number, mutant in enumerate(mutants, 1):
            path = bench.folder / mutant.file
            original = path.read_text()
            path.write_text(original.replace(mutant.old, mutant.new))
            start = time.monotonic()
            verdict = bench.test(mutant.test)
            path.write_text(original)
            results.append((mutant, verdict))
            print(f"{number}/{len(mutants)} {'caught' if verdict.caught else 'SURVIVED'} {mutant.file}: {mutant.fault}"
                  f" [{verdict.by}: {verdict.how}] {time.monotonic() - start:.0f} s", flush=True)
    return results


def write_table(results):
    rows = [f"| {mutant.fault} | `{mutant.file.removeprefix('kernels/')}` | {verdict.by} | {verdict.how} |"
            for mutant, verdict in results]
    TABLE.write_text(f"""# Mutants of the kernels

Written by `./dev mutants --write-table`. {len(results)} faults, seeded one at a time into the kernels, and the SIMT test
case that caught each first. The faults are in `tests/mutation/mutants.py`; ctest checks that their places still exist.

| fault | in `kernels/` | caught by | as |
|---|---|---|---|
""" + "\n".join(rows) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--write-table", action="store_true")
    parser.add_argument("--seconds", type=int, default=120, help="a test that runs longer has caught its mutant")
    args = parser.parse_args()
    problems = place_problems()
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(1)
    if args.check:
        print(f"{len(MUTANTS)} mutants, each has its place")
        return
    if args.write_table and args.only:
        parser.error("the table holds every mutant")
    mutants = [m for m in MUTANTS if args.only in m.file or args.only in m.fault]
    results = run(mutants, args.seconds)
    survivors = [mutant for mutant, verdict in results if not verdict.caught]
    print(f"{len(results) - len(survivors)} of {len(results)} mutants caught")
    if args.write_table and not survivors:
        write_table(results)
    sys.exit(1 if survivors or not results else 0)


if __name__ == "__main__":
    os.nice(5)
    main()

#!/usr/bin/env python3
"""Checks that the Debian packages of debian-packages.txt are installed in the versions that were tested."""
import pathlib
import subprocess
import sys


def installed_version(package):
    result = subprocess.run(["dpkg-query", "-W", "-f=${Version}", package], capture_output=True, text=True)
    return result.stdout if result.returncode == 0 else None


def main():
    table = pathlib.Path(__file__).with_name("debian-packages.txt").read_text().splitlines()
    failures = 0
    for line in table:
        if not line.strip() or line.startswith("#"):
            continue
        package, pinned = line.split()
        found = installed_version(package)
        if found is None or not found.split(":")[-1].startswith(pinned.split(":")[-1]):
            print(f"check_pins: {package}: expected {pinned}, found {found}")
            failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

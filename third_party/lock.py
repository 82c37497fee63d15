#!/usr/bin/env python3
"""Writes a requirements file: the exact wheels of the private Python environment, with hashes.

usage: python3 third_party/lock.py FILE > third_party/FILE   (pip 23 or newer; downloads nothing but metadata)
"""
import json
import subprocess
import sys
import tempfile

DIRECT = {
    "requirements.txt": ["torch==2.11.0", "numpy==2.3.5"],
    "requirements-nvcc.txt": ["nvidia-cuda-nvcc==13.0.88", "nvidia-cuda-crt==13.0.88", "nvidia-nvvm==13.0.88",
                              "nvidia-cuda-cccl==13.0.85"],
    "requirements-bench.txt": ["transformers==5.17.0",  # and what torch has already
                               "numpy==2.3.5", "filelock==4.2.11", "fsspec==2026.9.0", "typing-extensions==4.16.0"],
}
PYTHON_VERSIONS = ["3.11", "3.12"]  # Debian 12, Ubuntu 24.04


def resolve(requirements, python_version, with_dependencies):
    with tempfile.NamedTemporaryFile() as report, tempfile.TemporaryDirectory() as target:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
                        "--only-binary=:all:", "--python-version", python_version, "--target", target,
                        "--report", report.name, *([] if with_dependencies else ["--no-deps"]), *requirements], check=True)
        installed = json.load(open(report.name))["install"]
    return {(item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]):
            item["download_info"]["archive_info"]["hashes"]["sha256"] for item in installed}


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "requirements.txt"
    requirements = DIRECT[name]
    with_dependencies = name != "requirements-nvcc.txt"  # nvcc runs beside the CUDA runtime that torch pins
    hashes = {}
    pinned = requirements
    for python_version in PYTHON_VERSIONS:  # the versions found for the first hold for the others
        wheels = resolve(pinned, python_version, with_dependencies)
        pinned = [f"{name}=={version}" for name, version in wheels]
        for package, digest in wheels.items():
            hashes.setdefault(package, set()).add(digest)
    print("# Made by third_party/lock.py from: " + " ".join(requirements))
    for (name, version), digests in sorted(hashes.items()):
        print(f"{name}=={version} \\\n" + " \\\n".join(f"    --hash=sha256:{digest}" for digest in sorted(digests)))


if __name__ == "__main__":
    main()

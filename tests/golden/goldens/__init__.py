"""The parts of make_goldens.py; see tests/golden/README.md."""

"""Parts of make_random_checkpoint.py; the Python standard library alone."""

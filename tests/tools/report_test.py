"""bench/report.py on results made up here: verdicts, shares, the check for a page that says something else."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
import report  # noqa: E402

NAME = "attention/cpu/bf16/heads:32/kv_heads:32/rows:1/keys:640/sinks:8/cold"
CONTEXT = {"date": "2026-01-02T03:04:05+00:00", "device": "cpu", "cpu": "A Processor", "sizes": "full",
           "load_avg": [0.5]}


def times(**medians):
    return {f"us/{name}/median": us for name, us in medians.items()}


def kernels(ratio=1.01, spread=0.01):
    return {"context": CONTEXT, "benchmarks": [
        {"name": "ceiling/cpu/read/iterations:3/manual_time", "bytes": 2e6, **times(read=100.0)},
        {"name": NAME + "/iterations:3/manual_time", "bytes": 1e6, "aa_spread": spread,
         **times(libvar=100.0, libvar_plain=99.0, sdpa=700.0),
         "ratio/libvar/libvar_plain": ratio, "ratio_low/libvar/libvar_plain": 1.0,
         "ratio_high/libvar/libvar_plain": 1.02, "at_most/libvar/libvar_plain": 1.03,
         "ratio/sdpa/libvar": 7.0, "ratio_low/sdpa/libvar": 6.9, "ratio_high/sdpa/libvar": 7.1,
         "at_least/sdpa/libvar": 4.0},
        {"name": "rms_norm/cpu/bf16/rows:1/hidden:64/iterations:3/manual_time", "error_occurred": True,
         "error_message": "libvar: output off"}]}


class Report(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.results = pathlib.Path(self.temporary.name, "results")
        self.results.mkdir()
        self.docs = pathlib.Path(self.temporary.name, "docs")

    def write(self, name, data):
        (self.results / name).write_text(json.dumps(data))

    def page(self):
        return report.render(self.results)[0]

    def run_report(self, *flags):
        script = str(ROOT / "bench/report.py")
        command = [sys.executable, script, "--results", self.results, "--docs", self.docs, *flags]
        return subprocess.run(command, capture_output=True, text=True).returncode

    def test_verdict_allows_the_spread_and_no_more(self):
        self.assertEqual(report.verdict(1.039, 1.03, None, 0.01), "holds")
        self.assertEqual(report.verdict(1.041, 1.03, None, 0.01), "**missed**")
        self.assertEqual(report.verdict(3.97, None, 4.0, 0.01), "holds")
        self.assertEqual(report.verdict(3.95, None, 4.0, 0.01), "**missed**")
        self.assertEqual(report.verdict(1.0, 1.03, None, 0.11), "not decided")
        self.assertEqual(report.verdict(float("nan"), 1.03, None, 0.01), "**missed**")

    def test_page_holds_times_shares_bars_and_failures(self):
        self.write("a-kernels.json", kernels())
        page = self.page()
        for part in ("| 1.0 % | 50 % | 100 µs | 99.0 µs (0.99×) | 700 µs (7.00×) |",
                     "| 1.010 [1.000, 1.020] | 1.0 % | at most 1.03 | holds |",
                     "| at least 4.00 | holds |", "libvar: output off", "Nothing has been measured on a GPU"):
            self.assertIn(part, page)
        self.write("a-kernels.json", kernels(ratio=1.2))
        self.assertIn("at most 1.03 | **missed**", self.page())

    def test_peers_are_scaled_by_their_ratio(self):
        self.write("a-kernels.json", kernels())
        self.write("a-peers.json", {"context": CONTEXT, "benchmarks": [
            {"name": NAME, **times(libvar=10.0, per_head_loop=120.0), "ratio/per_head_loop/libvar": 12.0}]})
        self.assertIn("1200 µs (12.00×)", self.page())

    def test_loading_stands_beside_reads_of_the_file(self):
        self.write("a-kernels.json", kernels())
        ratio = {f"ratio{kind}/read/map": 1.25 for kind in ("", "_low", "_high")}
        self.write("a-load.json", {"context": {**CONTEXT, "threads": "1"}, "benchmarks": [
            {"name": "load/cpu/page_cache", "bytes": 2e9, "aa_spread": 0.01, **times(map=4e5, read=5e5), **ratio,
             "at_least/read/map": 0.8}]})
        page = self.page()
        for part in ("| an archive of 2.0 GB, from the page cache | 1 | 400 ms, 5.00 GB/s | 500 ms, 4.00 GB/s |",
                     "| 1.250 [1.250, 1.250] | 1.0 % | at least 0.80 | holds |"):
            self.assertIn(part, page)

    def test_a_whole_model_has_its_first_token_and_memory(self):
        self.write("a-kernels.json", kernels())
        self.write("a-ask.json", {"context": {**CONTEXT, "threads": "default", "model": "m-7b"}, "benchmarks": [
            {"name": "ask/cpu/int8/map", "runs": 3, "archive_bytes": 8e9, "load_ms": 500, "vision_ms": 1500, "prefill_ms": 2500,
             "first_token_ms": 4000, "token_ms": 200, "token_ms_min": 190, "token_ms_max": 210, "peak_bytes": 9e9,
             "prompt_tokens": 593}]})
        page = self.page()
        self.assertIn("| int8, map | 8.0 GB | 0.50 s | 1.50 s | 2.50 s | 4.00 s | 200.0 (190.0 to 210.0) | 5.0 | 9.0 GB |", page)
        self.assertIn("m-7b at full depth", page)

    def test_the_first_token_is_behind_picture_and_prompt(self):
        self.write("a-kernels.json", kernels())
        sizes = "cpu/bf16/m/heads:32/kv_heads:32/layers"
        self.write("a-model.json", {"context": {**CONTEXT, "threads": "1"}, "benchmarks": [
            {"name": f"vision/{sizes}:24/tokens:576", **times(libvar=1e6, transformers_sdpa=2e6)},
            {"name": f"prefill/{sizes}:4/keys:640", **times(libvar=3e6, transformers_sdpa=4e6)}]})
        self.assertIn("| 1 | 4000.0 | 6000.0 (1.50×) |", self.page())

    def test_the_share_of_the_bound_is_that_of_the_bars(self):
        self.write("a-kernels.json", kernels())
        ratio = {f"ratio{kind}/bound/libvar": 0.84 for kind in ("", "_low", "_high")}
        case = {"name": "decode/cpu/bf16/m/heads:32/kv_heads:32/layers:4/keys:640", **times(libvar=1e5, bound=8e4)}
        context = {**CONTEXT, "threads": "1"}
        for extra, share in ((ratio, "84 %"), ({}, "80 %")):
            self.write("a-model.json", {"context": context, "benchmarks": [{**case, **extra}]})
            self.assertIn(f"| 1 | 10.0 | {share} | 100.0 | 80.0 (0.80×) |", self.page())

    def test_a_bar_that_the_bound_misses_says_so(self):
        self.write("a-kernels.json", kernels())
        ratio = {f"ratio{kind}/transformers_sdpa/libvar": 2.3 for kind in ("", "_low", "_high")}
        for sdpa, said in ((2.4e5, "**missed**; the bound itself: 2.40 |"), (2.6e5, "**missed** |")):
            self.write("a-model.json", {"context": {**CONTEXT, "threads": "1"}, "benchmarks": [
                {"name": "decode/cpu/bf16/m/heads:28/kv_heads:4/layers:4/keys:640", "aa_spread": 0.01, **ratio,
                 "at_least/transformers_sdpa/libvar": 2.5, **times(libvar=1.1e5, bound=1e5, transformers_sdpa=sdpa)}]})
            self.assertIn(said, self.page())

    def test_every_file_has_its_commit(self):
        for kind, commit in (("kernels", "0123456789abcdef"), ("peers", "fedcba9-dirty")):
            self.write(f"a-{kind}.json", {**kernels(), "context": {**CONTEXT, "commit": commit}})
        self.assertIn("`bench/results/a-kernels.json` 0123456789ab, `bench/results/a-peers.json` fedcba9-dirty |", self.page())

    def test_the_newest_run_of_a_machine_counts(self):
        self.write("a-kernels.json", kernels(ratio=1.2))
        newer = kernels()
        newer["context"] = {**CONTEXT, "date": "2026-02-02T03:04:05+00:00"}
        self.write("b-kernels.json", newer)
        self.assertNotIn("missed", self.page())

    def test_tiny_runs_are_refused(self):
        data = kernels()
        data["context"] = {**CONTEXT, "sizes": "tiny"}
        self.write("a-kernels.json", data)
        with self.assertRaisesRegex(ValueError, "no measurement"):
            self.page()

    def test_check_finds_a_page_that_says_something_else(self):
        self.write("a-kernels.json", kernels())
        self.assertEqual(self.run_report("--check"), 1)
        self.assertEqual(self.run_report(), 0)
        self.assertEqual(self.run_report("--check"), 0)
        for path in (self.docs / "benchmarks.md", self.docs / "images/bench_cpu_decode.svg"):
            content = path.read_text()
            path.write_text(content.replace("100 µs", "90 µs"))
            self.assertEqual(self.run_report("--check"), 1)
            path.write_text(content)
        (self.docs / "images/bench_old.svg").write_text("")
        self.assertEqual(self.run_report("--check"), 1)


if __name__ == "__main__":
    unittest.main()

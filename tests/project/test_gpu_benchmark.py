"""`benchmarks/gpu.py --tiny` runs on the CPU, so that the script does not fail on a GPU that is lent for minutes."""

import json
from pathlib import Path

from conftest import benchmark_script


def test_every_case_of_the_gpu_benchmark_runs_on_a_tiny_model(tmp_path: Path) -> None:
    script, out = benchmark_script("gpu"), tmp_path / "gpu.json"
    script.main(sizes="small", device="cpu", dtype="auto", minutes=5.0, out=out, tiny=True)
    found = json.loads(out.read_text())
    assert found["device"].startswith("cpu ")
    assert (found["dtype"], found["left_out"]) == ("float32", [])
    by_case = {line["case"]: line for line in found["lines"]}
    assert list(by_case) == ["1 rows", "2 rows", "sweep", "grid", "memory"]
    for rows in ("1 rows", "2 rows"):
        assert {"lens / bare", "steered / hooked", "fast / bare", "fast steered / hooked"} <= by_case[rows].keys()
    assert {"exact sweep / single", "fast sweep / single"} <= by_case["sweep"].keys()
    assert by_case["grid"]["largest relative difference"] < 1e-5
    assert not any("error" in line for line in found["lines"])

"""The command for a GPU machine, as far as it goes without one: parts, resuming, and peers that compute something else."""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import gpu
import meta_hypergrad
import meta_times
import numpy as np
import pretended
import pytest
from kernel_times import dims_of, family_of, operations, shapes_of
from meta_problems import Sizes
from meta_worker import GPU_ONLY, VARIANTS
from rich.console import Console

from hypergrad.backends.cuda import CUDA
from hypergrad.backends.host import HOST

ROOT = Path(__file__).resolve().parents[2]


def run(out, *more):
    return gpu.main(["--out", str(out), "--device", "cpu", "--sizes", "tiny", "--block", "0.01", "--variants", "hypergrad host", *more])


def test_parts_are_done_once(tmp_path, capsys):
    parts = ("ceilings", "kernels", "training", "maml-float32")
    assert run(tmp_path, "--only", *parts) == 0
    capsys.readouterr()
    assert run(tmp_path, "--only", *parts) == 0
    printed = capsys.readouterr().out
    assert printed.count("done before") == 4 and "conv_bn_relu_pool_first_vjp_jvp" in printed
    head, *lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert head["kind"] == "environment" and {"device", "versions", "commit", "platform"} <= head.keys()
    assert [line["part"] for line in lines if line["kind"] == "part"] == list(parts)
    rows = [line for line in lines if line["kind"] == "row"]
    kernels = [row for row in rows if row["part"] == "kernels"]
    assert {row["kernel"] for row in kernels} == set(HOST.kernels())
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in kernels)
    (training,) = [row for row in rows if row["part"] == "training"]
    assert training["iterations"] == 30 and training["test_accuracy"] > training["baseline_accuracy"] / 2
    (step,) = [row for row in rows if row["part"] == "maml-float32"]
    assert step["status"] == "timed" and step["seconds"] > 0 and step["peak_bytes"] > 0 and len(step["all_seconds"]) == gpu.ROUNDS
    assert step["float64_difference"] == 0.0 and 0 < step["difference"] < 1e-3


def test_failed_parts_and_other_sources_run_again(tmp_path, monkeypatch, capsys):
    (tmp_path / "test_red.py").write_text("def test_red():\n    assert False\n")
    red = ("--only", "tests", "--tests", str(tmp_path / "test_red.py"))
    assert run(tmp_path, *red) == 1
    assert "tests are not green" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "test_red.py").write_text("def test_green():\n    pass\n")
    assert run(tmp_path, *red) == 0  # what failed runs again
    assert "done before" not in capsys.readouterr().out
    assert run(tmp_path, *red) == 0
    assert "done before" in capsys.readouterr().out
    monkeypatch.setattr(gpu, "sources", lambda: "others")
    assert run(tmp_path, *red) == 0
    assert "done before" not in capsys.readouterr().out


def test_unknown_parts_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="unknown parts nonsense, expected some of ceilings, gpu-tests"):
        run(tmp_path, "--only", "nonsense")


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "output", lambda command, default: default)
    monkeypatch.setattr(gpu.shutil, "which", lambda tool: tool)
    with pytest.raises(SystemExit, match="nvidia-smi lists no GPU"):
        gpu.main(["--out", str(tmp_path)])


def test_floors():
    """Operations of every kernel of a block, counted by hand; the signatures give its arrays."""
    assert HOST.kernels()["conv_bn_relu_pool_jvp"][0]["w_dot"] == "PE33CK"
    assert family_of("conv_bn_relu_pool_first_vjp_jvp") == "conv_bn_relu_pool_first" and family_of("patch_cov") == "patch_cov"
    first, *others = dims_of("conv2d_fprop", Sizes())
    assert operations("conv2d_fprop", first) == 300 * 84 * 84 * 9 * 3 * 32 * 2
    assert [d["H"] for d in others] == [42, 21, 10]
    block = dims_of("conv_bn_relu_pool", Sizes())[0]
    assert operations("conv_bn_relu_pool_value", block) == 300 * 42 * 42 * 9 * 32 * 32 * 2
    assert operations("conv_bn_relu_pool_vjp_jvp", block) == 4 * operations("conv_bn_relu_pool_value", block)
    (block,) = dims_of("conv_bn_relu_pool_first", Sizes())
    assert operations("conv_bn_relu_pool_first_vjp", block) * 4 == operations("conv_bn_relu_pool_first_value", block)
    (step,) = dims_of("adam_step", Sizes())
    assert step["n"] == 14 and HOST.kernels()["adam_step_jvp"][0]["w_dot"] == "*P~" and HOST.kernels()["adam_step_vjp"][1]["lr_bar"] == "n"
    assert shapes_of("*P~", step)[:2] == [(1, 3, 3, 3, 32), (1, 32)] and shapes_of("*P", step) == [None] * 14
    assert {"E", "N", "K", "M", "D", "P"} <= dims_of("unheard_of", Sizes())[0].keys() and operations("unheard_of", step) == 0


def test_peak_of_a_step_on_the_gpu(monkeypatch):
    """What was held before counts as well, as the peers count it; so it does where a step allocates nothing."""
    with pretended.gpu(monkeypatch) as machine:
        held = machine.pool.malloc(2048)
        assert meta_hypergrad._OnGpu(lambda: lambda params: machine.pool.malloc(5000), {}, CUDA.xp).peak_bytes() == 2048 + 5120
        assert meta_hypergrad._OnGpu(lambda: lambda params: None, {}, CUDA.xp).peak_bytes() == 2048 == held.size


def test_differences():
    differences = meta_times.differences
    exact = {"a": np.array([3.0, 4.0]), "b": np.array(1.0)}
    assert differences(exact, exact) == (0.0, 0.0)
    leaf, whole = differences({"a": np.array([3.0, 4.0]), "b": np.array(1.5)}, exact)
    assert leaf == 0.5 and whole == pytest.approx(0.5 / np.sqrt(26))
    assert np.isnan(differences({"a": np.array([3.0, np.nan]), "b": np.array(1.0)}, exact)[0])
    assert np.isnan(differences({"a": exact["a"]}, exact)[0])
    assert np.isnan(differences({"a": exact["a"][:1], "b": exact["b"]}, exact)[0])


@pytest.mark.parametrize(
    ("exact", "timed", "status"),
    [(1.0, 1.0, "right"), (1 + 1e-5, 1.0, "wrong"), (1.0, 1.5, "wrong"), (float("nan"), 1.0, "wrong"), (1.0, float("nan"), "wrong")],
)
def test_a_peer_that_computes_something_else_is_not_timed(tmp_path, monkeypatch, exact, timed, status):
    """A factor on the gradient in float64, and on that in float32."""
    compared = meta_times.Comparison("maml", meta_times.Sizes(), "cpu", False, tmp_path, {}, 10.0, print)
    reference = ({"loss": 1.0}, {"w": np.arange(4.0)})

    def result(process, dtype, tf32):
        factor = exact if dtype == "float64" else timed
        return {"loss": 1.0, "first_seconds": 0.1}, {"w": factor * np.arange(4.0).astype(dtype)}

    monkeypatch.setattr(compared, "_result", result)
    assert compared.check(None, reference)["status"] == status


def test_a_worker_that_fails_is_a_result(tmp_path):
    """Errors, endings and silence of the other process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = meta_times.Process("hypergrad", "maml", "cpu", tmp_path / "log", environment)
    try:
        with pytest.raises(meta_times.WorkerFailed, match="GPU only"):
            process.ask(60.0, "prepare", sizes={"steps": 1}, dtype="float64", tf32=False)
        with pytest.raises(meta_times.WorkerFailed, match="no step is prepared"):
            process.ask(60.0, "time", seconds=0.1)
        process.process.send_signal(signal.SIGSTOP)
        with pytest.raises(meta_times.WorkerFailed, match="time: no answer within 0 s"):
            process.ask(0.1, "time", seconds=0.1)
        process.process.kill()
        with pytest.raises(meta_times.WorkerFailed, match="peak: the process ended with status -9; see .*log"):
            process.ask(10.0, "peak")
    finally:
        process.close()


def test_every_variant_has_one_module():
    """The names that the driver knows are those that the modules define; modules of frameworks that are missing are not read."""
    assert tuple(meta_hypergrad.VARIANTS) == VARIANTS["meta_hypergrad"]
    for module in VARIANTS.keys() - {"meta_hypergrad"}:
        text = (ROOT / "bench" / f"{module}.py").read_text()
        assert all(f'"{name}": _variant(' in text for name in VARIANTS[module])
    assert set(GPU_ONLY) <= set(meta_times.MODULE) and meta_times.REFERENCE not in GPU_ONLY


def test_another_machine_goes_on_from_the_archive(tmp_path, capsys):
    """What is done on one machine is not done again on the next, which has nothing but the archive; without time no part begins."""
    archive, red = tmp_path / "carried" / "gpu.tgz", ("--only", "ceilings", "profile")
    assert run(tmp_path / "one", *red, "--archive", str(archive)) == 0
    capsys.readouterr()
    assert run(tmp_path / "two", *red, "--archive", str(archive)) == 0
    assert capsys.readouterr().out.count("done before") == 2
    assert run(tmp_path / "three", "--only", "ceilings", "--minutes", "-1") == 1
    assert "left to do, time is up" in capsys.readouterr().out and not (tmp_path / "three" / "ceilings.json").exists()


def test_two_selections_of_variants_keep_their_records(tmp_path):
    def path(part, variants):
        options = argparse.Namespace(device="cpu", out=tmp_path, sizes="tiny", minutes=1.0, archive=None, variants=variants)
        return gpu.Run(options, Console()).path_of(part)

    selections = (None, ["torch"], ["torch", "hypergrad host"])
    paths = {path("maml-float32", variants) for variants in selections}
    assert len(paths) == 3 and path("maml-float32", selections[2][::-1]) in paths
    assert path("ceilings", ["torch"]) == path("ceilings", None)
    for i, own in enumerate(sorted(paths)):
        own.write_text(json.dumps({"kind": "part", "part": "maml-float32", "number": i, "rows": []}))
    gpu.gpu_report.write(tmp_path, ["maml-float32"], {"kind": "environment"})
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == 1 + 3


def test_missing_packages_are_named_with_the_command_that_carries_them(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "output", lambda command, default: "NVIDIA H200, 1, 1, 9.0, 1, 1" if command[0] == "nvidia-smi" else default)
    monkeypatch.setattr(gpu.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name in ("optree", "PIL") else object())
    assert gpu.main(["--out", str(tmp_path), "--only", "build"]) == 1
    reason = json.loads((tmp_path / "build.json").read_text())["reason"]
    assert "missing Python packages: optree, PIL;" in reason and "pip download" in reason and "optree pillow" in reason
    assert gpu.gpu_report.predictions("NVIDIA H200")["maml"]["seconds"] > 0 and gpu.gpu_report.predictions("another") == {}

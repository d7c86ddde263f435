"""The comparison on the CPU with hypergrad alone: rows, files, what is skipped, and that a wrong gradient is not timed."""

import json
from dataclasses import replace
from pathlib import Path

import meta_hypergrad
import numpy as np
import peers
import pytest
import run_problems
from meta_times import Comparison
from meta_worker import GPU_ONLY, MODULE, PROBLEMS_OF, VARIANTS, variants_of
from run_problems import PROBLEMS, TINY_RUN

OURS = ("hypergrad host", "hypergrad host sqrt", "hypergrad host reversible", "hypergrad host forward")


def run(out, *more, variants=OURS):
    return peers.main(["--quick", "--rounds", "3", "--out", str(out), *more, "--variants", *variants])


def read(out):
    return [json.loads(line) for line in (out / "peers-quick-cpu.jsonl").read_text().splitlines()]


def rows_of(lines, case):
    return {line["variant"]: line for line in lines if line["case"] == case and line["kind"] == "row"}


def test_rows_table_and_plot(tmp_path, capsys):
    assert run(tmp_path, "--only", "W1", "W4-200") == 0
    printed = capsys.readouterr().out
    assert "W4-200: one hypergradient" in printed and "resident MB" in printed and "hypergrad host forward" in printed
    lines = read(tmp_path)
    heads = {line["case"]: line for line in lines if line["kind"] == "case"}
    assert list(heads) == ["W1", "W4-200"] and heads["W4-200"]["sizes"]["steps"] == TINY_RUN.steps
    assert {"device", "commit", "versions"} <= heads["W1"].keys() and heads["W1"]["threads"]["HYPERGRAD_NUM_THREADS"] == "2"
    assert set(rows_of(lines, "W1")) == {"hypergrad host"} and set(rows_of(lines, "W4-200")) == set(OURS)
    for row in rows_of(lines, "W4-200").values():
        assert row["status"] == "timed" and row["seconds"] > 0 and len(row["all_seconds"]) == 3
        assert row["resident_bytes"] > 0 and row["peak_bytes"] > 0
        assert row["float64_difference"] < 1e-9 and 0 < row["difference"] < 1e-4
    assert (tmp_path / "peers-quick-cpu.png").stat().st_size > 10_000


def test_a_case_that_runs_again_replaces_its_own_lines(tmp_path):
    assert run(tmp_path, "--only", "W3-100", "W4-200", variants=OURS[:2]) == 0
    before = read(tmp_path)
    assert run(tmp_path, "--only", "W3-100", variants=OURS[1:2]) == 0
    after = read(tmp_path)
    assert list(rows_of(after, "W3-100")) == ["hypergrad host sqrt"]
    assert [line for line in after if line["case"] == "W4-200"] == [line for line in before if line["case"] == "W4-200"]


@pytest.mark.parametrize(("factors", "said"), [((1.0001, 1.0), "float64 gradient differs by 1.0e-04"), ((1.0, 1.5), "from float64's")])
def test_a_wrong_gradient_is_not_timed(tmp_path, monkeypatch, capsys, factors, said):
    """One variant's process gets a fault: a factor on the gradient in float64, and on that in float32."""
    (tmp_path / "sitecustomize.py").write_text(
        f"""import sys
sys.path.insert(0, {str(Path(peers.__file__).parent)!r})
import runs_hypergrad
right = runs_hypergrad.value_and_grad
def value_and_grad(problem, sizes, data, mode):
    run = right(problem, sizes, data, mode)
    factor = {factors}[data["x"].dtype == "float32"]
    def wrong(params):
        value, grad = run(params)
        return value, {{name: factor * g for name, g in grad.items()}}
    return wrong
runs_hypergrad.value_and_grad = value_and_grad
"""
    )
    own = peers.Libraries.own

    def planted(self, variant):
        more = {"PYTHONPATH": f"{tmp_path}:{self.path}"} if variant == "hypergrad host" else {}
        return own(self, variant) | more

    monkeypatch.setattr(peers.Libraries, "own", planted)
    assert run(tmp_path, "--only", "W3-100", variants=OURS[:2]) == 1
    rows = rows_of(read(tmp_path), "W3-100")
    assert rows["hypergrad host"]["status"] == "wrong" and said in rows["hypergrad host"]["reason"]
    assert "seconds" not in rows["hypergrad host"] and rows["hypergrad host sqrt"]["status"] == "timed"
    assert "wrong: " in capsys.readouterr().out


def test_fewer_steps_suffice_in_float64(tmp_path):
    """The comparison of the code in float64 takes a short run, that of the timed gradient the long one."""
    libraries = peers.Libraries({"hypertorch": None, "learn2learn": None}, 2)
    sizes = replace(TINY_RUN, steps=12)
    compared = Comparison("three-scalars", sizes, "cpu", False, tmp_path, libraries.environment, 60.0, print, exact=TINY_RUN)
    (row,) = compared.measure(["hypergrad host forward"], 1, 0.01)
    assert row["status"] == "timed" and row["float64_difference"] < 1e-9 and row["difference"] < 1e-4
    compared.exact = replace(TINY_RUN, steps=5)
    short, long = compared.reference(compared.exact), compared.reference(sizes)
    assert short[0]["loss"] != long[0]["loss"]


def test_missing_libraries_are_skipped_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert run(tmp_path, "--only", "W3-100", variants=("hypergrad host", "torch", "hypertorch", "higher")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "torch is not installed" in printed and "pass the folder of a clone by --hypertorch" in printed and "jax" not in printed
    lines = read(tmp_path)
    assert {line["module"] for line in lines if line["kind"] == "skipped"} == set(VARIANTS) - {"meta_hypergrad"}
    assert set(rows_of(lines, "W3-100")) == {"hypergrad host"}


def test_a_folder_that_is_no_clone_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="has no folder hypergrad, expected a clone of hypertorch"):
        run(tmp_path, "--hypertorch", str(tmp_path))


def test_variants_of_a_problem():
    """Those that are made for the problem and the device, and no others."""
    assert not set(variants_of("maml", "cpu")) & {*GPU_ONLY, "hypertorch", "torch.func jacfwd", "hypergrad host forward"}
    assert {"hypertorch", "hypergrad host sqrt", "jax scan remat"} <= set(variants_of("hyper-cleaning", "cpu"))
    assert set(variants_of("maml", "cuda")) == {
        *GPU_ONLY,
        *("torch", "torch channels-last", "torch.func vmap", "torch.compile", "jax jit vmap", "jax jit vmap reduce_window"),
    }
    assert set(PROBLEMS_OF) <= set(MODULE) and {case.problem for case in peers.CASES.values() if case.quick} == {
        "maml",
        *PROBLEMS_OF["torch"],
    }


def test_the_tuned_allocator_is_in_the_environment_of_its_variants_only():
    libraries = peers.Libraries({"hypertorch": None, "learn2learn": None}, 3)
    assert libraries.own("torch tuned allocator") == peers.ALLOCATOR and libraries.own("torch") == {}
    assert libraries.environment["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_long_run_is_the_derivative(problem):
    """The hypergradient in a random direction against central differences of the loss."""
    data, params = run_problems.make_data(problem, TINY_RUN, "float64"), run_problems.make_params(problem, TINY_RUN, "float64")
    rng = np.random.default_rng(0)
    along = {name: rng.standard_normal(a.shape) for name, a in params.items()}

    def at(t):
        moved = {name: a + t * along[name] for name, a in params.items()}
        step = meta_hypergrad.VARIANTS["hypergrad host"](problem, TINY_RUN, "float64", data, moved, "cpu", False)
        return step.result(step.run())

    slope = sum(np.sum(g * along[name]) for name, g in at(0.0)[1].items())
    assert abs((at(1e-5)[0] - at(-1e-5)[0]) / 2e-5 - slope) <= 1e-6 * abs(slope)

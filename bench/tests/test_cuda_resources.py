"""The gate on registers, spills and machine code reads what the compiler prints, and finds planted regressions."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import cuda_resources as gate
import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "bench" / "results" / "cuda_resources.json"
BLOCK = "_ZN2hg4cuda46_GLOBAL__N__102d12df_9_conv2d_cu_28f1f2a3_179711plain_wgradIfEEvPKT_iPS3_"
CONV = "_ZN2hg4cuda7conv3x3IfNS0_6ImagesIfEENS0_5StoreIfEEEEvNS0_11ConvolutionIT_T0_EET1_"

PTXAS = f"""\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{CONV}' for 'sm_90'
ptxas info    : Function properties for {CONV}
    56 bytes stack frame, 64 bytes spill stores, 104 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 56 bytes cumulative stack size, 1040 bytes smem
ptxas info    : Compile time = 53.878 ms
ptxas info    : Compiling entry function '{BLOCK}' for 'sm_80'
ptxas info    : Function properties for {BLOCK}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, 16+0 bytes smem, 400 bytes cmem[0], 8 bytes cmem[2]
ptxas info    : Function properties for __internal_trig_reduction_slowpathd
    40 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""

SASS = """\
	code for sm_90
		Function : _Z6kernelPf
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                               /* 0x00000a00ff017b82 */
                                                                                       /* 0x000fe20000000800 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;                     /* 0x0000000402047981 */
        /*0020*/                   FFMA R8, R4, R5, R8 ;                                /* 0x0000000504087223 */
        /*0030*/                   LDS.128 R12, [R10] ;                                 /* 0x000000000a0c7984 */
        /*0040*/                   FFMA R8, R12, R5, R8 ;                               /* 0x000000050c087223 */
        /*0050*/                   FFMA.FTZ R9, R12.reuse, R5, R9 ;                     /* 0x000000050c097223 */
        /*0060*/              @!P0 BRA 0x30 ;                                           /* 0xfffffffc00f48947 */
        /*0070*/                   STL.64 [R1], R8 ;                                    /* 0x0000000801007387 */
        /*0080*/               @P1 BRA 0x20 ;                                           /* 0xfffffff800e81947 */
        /*0090*/                   LDL.LU.64 R2, [R1] ;                                 /* 0x0000000001027983 */
        /*00a0*/                   LDG.E R4, desc[UR4][R2.64] ;                         /* 0x0000000402047981 */
        /*00b0*/                   EXIT ;                                               /* 0x000000000000794d */
        /*00c0*/                   BRA 0xc0;                                            /* 0xfffffffc00fc7947 */
		Function : _Z5emptyv
        /*0000*/                   EXIT ;                                               /* 0x000000000000794d */
        /*0010*/                   BRA 0x10;                                            /* 0xfffffffc00fc7947 */
"""


def figures(**changes):
    return {
        "stack": 0,
        "spill_stores": 0,
        "spill_loads": 0,
        "registers": 64,
        "constant": 400,
        "shared": 0,
        "unit": "FFMA",
        "share": 0.9,
        "wide_loads": 2,
        "local": 0,
        **changes,
    }


def test_figures_of_every_kernel():
    found = gate.parse_ptxas(PTXAS)
    assert found == {
        CONV: {"stack": 56, "spill_stores": 64, "spill_loads": 104, "registers": 128, "constant": None, "shared": 1040},
        BLOCK: {"stack": 0, "spill_stores": 0, "spill_loads": 0, "registers": 40, "constant": 408, "shared": 16},
    }
    with pytest.raises(ValueError, match="no figures for .*plain_wgrad"):
        gate.parse_ptxas(PTXAS[: PTXAS.index("    0 bytes stack frame")])
    assert gate.parse_ptxas("ptxas info    : 0 bytes gmem\n") == {}


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt on the PATH")
def test_names_are_readable():
    assert gate.readable([BLOCK, CONV]) == {BLOCK: "plain_wgrad<float>", CONV: "conv3x3<float, Images<float>, Store<float>>"}
    assert gate.readable([]) == {}


def test_short_names():
    assert gate._short("void hg::cuda::(anonymous namespace)::gather<float, (int)3>(hg::cuda::Block, int)") == "gather<float, 3>"
    assert gate._short("plain(float*, int)") == "plain"
    assert gate._short("void hg::cuda::mma3x3<(hg::cuda::Precision)1, hg::cuda::Images<float> >(int)") == "mma3x3<1, Images<float>>"


def test_machine_code():
    code = gate.sass.read(SASS)
    kernel = code["_Z6kernelPf"]
    # The loop 0x30..0x60 lies within 0x20..0x80: the inner one counts, 2 of its 4 instructions.
    assert (kernel.loop_math, kernel.loop_size, kernel.unit, kernel.share) == (2, 4, "FFMA", 0.5)
    assert kernel.wide_loads == 1 and kernel.local == 2
    assert code["_Z5emptyv"] == gate.sass.Code(0, 0, "", 0, 0) and code["_Z5emptyv"].share == 0.0


def test_tensor_cores_go_before_a_larger_loop_without_them():
    """An epilogue may hold more multiply-adds than the loop of products."""
    lines = ["FFMA R8, R4, R5, R8 ;", "HMMA.1688.F32.TF32 R4, R8, R12, R4 ;", "MOV R8, R9 ;", "@P0 BRA 0x10 ;",
             *["FFMA R8, R4, R5, R8 ;"] * 3, "@P0 BRA 0x40 ;", "EXIT ;"]  # fmt: skip
    text = "\t\tFunction : products\n" + "".join(f"        /*{16 * i:04x}*/   {line}\n" for i, line in enumerate(lines))
    assert gate.sass.read(text)["products"] == gate.sass.Code(1, 3, "HMMA", 0, 0)


NAME = "conv2d: conv3x3<float, Images<float>, Store<float>>"
REGRESSIONS = [
    ({"registers": 73}, "73 registers, expected at most 64 [+] 8"),
    ({"spill_stores": 4}, "4 bytes of spill stores, expected at most 0"),
    ({"spill_loads": 8}, "8 bytes of spill loads, expected at most 0"),
    ({"stack": 16}, "16 bytes of stack, expected at most 0"),
    ({"shared": 1024}, "1024 bytes of static shared memory, expected at most 0"),
    ({"constant": 408}, "408 bytes of constant memory, expected at most 400"),
    ({"local": 1}, "1 accesses to local memory, expected at most 0"),
    ({"share": 0.86}, "86% of the inner loop are multiply-adds, expected 90% - 3%"),
    ({"wide_loads": 0}, "no 16-byte global loads, expected some as before"),
]


@pytest.mark.parametrize(("change", "message"), REGRESSIONS, ids=[next(iter(change)) for change, _ in REGRESSIONS])
def test_regressions_are_told_by_the_kernels_name(change, message):
    why = {NAME: "planted"}
    lines = gate.compare({NAME: figures(**change)}, {NAME: figures()}, why, "sm_90")
    assert len([line for line in lines if line.startswith(f"{NAME}: ")]) == len(lines) >= 1
    assert any(re.search(message, line) for line in lines), lines
    assert gate.compare({NAME: figures()}, {NAME: figures(**change)}, why, "sm_90") == []  # the other way round it is an improvement


def test_what_is_no_regression():
    better = figures(registers=72, share=0.88, wide_loads=1)
    assert gate.compare({NAME: better}, {NAME: figures()}, {}, "sm_90") == []
    assert gate.compare({NAME: figures(constant=None)}, {NAME: figures()}, {}, "sm_90") == []
    without_tools = {key: value for key, value in figures().items() if key not in ("unit", "share", "wide_loads", "local")}
    assert gate.compare({NAME: without_tools}, {NAME: figures()}, {}, "sm_90") == []


def test_kernels_on_one_side_only():
    lines = gate.compare({"a: new": figures()}, {"b: old": figures()}, {}, "sm_90")
    assert len(lines) == 2 and lines[0].startswith("a: new: new, not in the table") and lines[1].startswith("b: old: in the table, but not")


def test_spills_need_a_reason_and_inner_loops_a_share():
    spilling = {"a: kernel": figures(stack=8, spill_stores=8)}
    assert "no reason" in gate.compare(spilling, spilling, {}, "sm_90")[0]
    assert gate.compare(spilling, spilling, {"a: kernel": "once per block, 8 bytes"}, "sm_90") == []
    poor = {NAME: figures(share=0.8, wide_loads=0)}
    lines = gate.compare(poor, poor, {}, "sm_90")
    assert len(lines) == 2 and "at least 85%" in lines[0] and "16-byte" in lines[1]
    assert gate.compare({"a: other": figures(share=0.1, wide_loads=0)}, {"a: other": figures(share=0.1, wide_loads=0)}, {}, "sm_90") == []


@pytest.mark.parametrize("kernel", ["mma3x3<1, Images<float>, Store<float>>", "mma_wgrad3x3<2, Images<float>>"])
def test_products_need_tensor_cores_where_there_are_some(kernel):
    name = f"conv2d: {kernel}"
    good, without = {name: figures(unit="HMMA", share=0.35)}, {name: figures(unit="FFMA", share=0.9)}
    assert gate.compare(good, good, {}, "sm_80") == []
    assert "30%" in gate.compare({name: figures(unit="HMMA", share=0.29)}, {name: figures(unit="HMMA", share=0.3)}, {}, "sm_80")[0]
    assert "made of FFMA, expected HMMA" in gate.compare(without, without, {}, "sm_80")[0]
    nothing = {name: figures(unit="", share=0.0)}
    assert "made of no multiply-adds, expected HMMA" in gate.compare(nothing, nothing, {}, "sm_80")[0]
    assert gate.compare(nothing, nothing, {}, "sm_75") == []


def test_the_table_is_whole():
    """Every architecture has the same kernels, and every spill a reason."""
    table = json.loads(TABLE.read_text())
    assert set(table["kernels"]) == {f"sm_{arch}" for arch in gate.ARCHITECTURES}
    names = [set(kernels) for kernels in table["kernels"].values()]
    assert all(of_arch == names[0] for of_arch in names) and names[0]
    assert set(table["why"]) <= names[0]
    sources = {name.partition(":")[0] for name in names[0]}
    assert sources <= {path.stem for path in (ROOT / "csrc" / "cuda").glob("*.cu")}
    for arch, kernels in table["kernels"].items():
        assert gate.unexplained(kernels, table["why"], arch) == []


def test_the_tables_text_is_the_table():
    table = {"nvcc": "13.0", "why": {}, "kernels": {"sm_90": {NAME: figures(), "a: b": figures(constant=None)}, "sm_80": {NAME: figures()}}}
    text = gate.text_of(table)
    assert json.loads(text) == table and text.count("\n") == 15
    assert gate.text_of(json.loads(TABLE.read_text())) == TABLE.read_text()


def test_without_a_compiler_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gate.shutil, "which", lambda tool: None)
    assert gate.main(["--arch", "90"]) == 2
    assert "nvcc and c++filt not found" in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(shutil.which("nvcc") is None or shutil.which("c++filt") is None, reason="needs nvcc and c++filt on the PATH")
def test_kernels_hold_the_table(capsys):
    """The gate itself, for one architecture; with another release of nvcc it compiles and says why it does not compare."""
    status = gate.main(["--arch", "90"])
    printed = capsys.readouterr().out
    assert status == 0, "\n".join(line for line in printed.splitlines() if "WORSE" in line)
    assert "no regressions" in printed and "conv3x3<float" in printed


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on the PATH")
def test_a_source_that_does_not_compile_is_named(tmp_path):
    source = tmp_path / "broken.cu"
    source.write_text("__global__ void kernel() { undeclared(); }\n")
    with pytest.raises(SystemExit, match="broken.cu does not compile for sm_90"):
        gate.measure(source, "90", None)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on the PATH")
def test_the_ceilings_compile_without_a_warning(tmp_path):
    for arch in ("75", "90"):
        command = [
            "nvcc",
            "-std=c++17",
            f"-arch=sm_{arch}",
            "-Werror",
            "all-warnings",
            "-cubin",
            str(ROOT / "bench" / "ceilings.cu"),
            "-o",
            str(tmp_path / "ceilings.cubin"),
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

"""check_ptxas.py on logs and sources made up here."""

import contextlib
import io
import pathlib
import tempfile
import unittest

import check_ptxas

SOURCES = {
    "rows.cu": """
template <bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(256, 1) Rows(RowsArgs p) {}
PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) Lists(const PHX_PARAMETER ListsArgs p) {}
""",
    "gemm.cuh": """
template <class Shape, bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(Shape::kThreads, 1)
    Gemm(GemmArgs p) {}
""",
    "gemm_wide.cu": """
#include "kernels/cuda/hopper_device.h"
template <class Shape, bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(Shape::kThreads, 1) Wide(WideArgs p) {}
""",
}
BOTH = ("sm_80", "sm_90a")
MANGLED = {
    "Lists": "_ZN7phalanx4cuda5ListsE4Args",
    "Rows<false>": "_ZN7phalanx4cuda12_GLOBAL__N_14RowsILb0EEEv4Args",
    "Rows<true>": "_ZN7phalanx4cuda12_GLOBAL__N_14RowsILb1EEEv4Args",
    "Gemm<Shape<1, 8>, false>": "_ZN7phalanx4cuda4GemmINS0_5ShapeILi1ELi8EEELb0EEEv4Args",
    "Gemm<Shape<1, 8>, true>": "_ZN7phalanx4cuda4GemmINS0_5ShapeILi1ELi8EEELb1EEEv4Args",
    "Wide<Shape<2, 4>, false>": "_ZN7phalanx4cuda4WideINS0_5ShapeILi2ELi4EEELb0EEEv4Args",
    "Wide<Shape<2, 4>, true>": "_ZN7phalanx4cuda4WideINS0_5ShapeILi2ELi4EEELb1EEEv4Args",
}
WHOLE = [(name, of) for name in MANGLED for of in BOTH if of == "sm_90a" or not name.startswith("Wide")]


def entry(name, architecture, numbers="0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"):
    mangled = MANGLED.get(name, name)
    return (f"ptxas info    : Compiling entry function '{mangled}' for '{architecture}'\n"
            f"ptxas info    : Function properties for {mangled}\n    {numbers}\n"
            "ptxas info    : Used 32 registers, used 1 barriers\n")


class CheckPtxas(unittest.TestCase):
    def check(self, log):
        """Returns the exit status and what was printed."""
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
            for name, text in SOURCES.items():
                pathlib.Path(folder, name).write_text(text, encoding="utf-8")
            pathlib.Path(folder, "log").write_text(log, encoding="utf-8")
            status = check_ptxas.main([str(pathlib.Path(folder, "log"))], pathlib.Path(folder))
        return status, printed.getvalue()

    def whole(self, without=()):
        return "".join(entry(*kernel) for kernel in WHOLE if kernel not in without)

    def test_a_whole_log_passes(self):
        status, printed = self.check(self.whole())
        self.assertEqual((status, printed), (0, "12 kernels, 0 with a stack or spills, at most 32 registers\n"))

    def test_a_kernel_that_is_not_there_is_named(self):
        for kernel in ("Lists", "Rows", "Gemm", "Wide"):
            for architecture in BOTH if kernel != "Wide" else ("sm_90a",):
                gone = [(n, of) for n, of in WHOLE if n.partition("<")[0] == kernel and of == architecture]
                status, printed = self.check(self.whole(gone))
                self.assertEqual(status, 1)
                self.assertEqual(printed.splitlines()[:-1], [f"{kernel} for {architecture} is missing"])

    def test_an_instance_that_is_not_there_is_named(self):
        for gone in WHOLE:
            status, printed = self.check(self.whole([gone]))
            self.assertEqual(status, 1)
            self.assertIn(f"{gone[0]} for {gone[1]} is missing", printed)

    def test_an_empty_log_has_no_kernel(self):
        status, printed = self.check("ninja: no work to do.\n")
        self.assertEqual((status, printed.count("is missing\n")), (1, 7))

    def test_a_kernel_that_the_sources_lack(self):
        status, printed = self.check(self.whole() + entry("_ZN7phalanx4cuda3NewE4Args", "sm_80"))
        self.assertEqual((status, printed.splitlines()[0]), (1, "New is in the log and not in the sources"))

    def test_stacks_spills_and_losses(self):
        for numbers in ("8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads",
                        "0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads"):
            status, printed = self.check(self.whole([WHOLE[0]]) + entry(*WHOLE[0], numbers))
            self.assertEqual((status, printed.splitlines()[0].split(":")[0]), (1, "Lists sm_80"))
        loss = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized"
        self.assertEqual(self.check(self.whole() + loss)[0], 1)

    def test_the_kernels_of_the_project_are_understood(self):
        kernels = check_ptxas.expected(check_ptxas.SOURCES)
        hopper = {name for name, (architectures, _) in kernels.items() if architectures == {"sm_90a"}}
        self.assertEqual(hopper, {"AttentionWgmma", "GemmWgmma"})
        self.assertTrue({"Attention", "GemmSplit", "GemmWhole", "FastGemm", "Fp8Gemm", "RmsNorm"} < kernels.keys())

    def test_a_declaration_that_is_not_understood_is_an_error(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "odd.cu")
            path.write_text("PHX_GLOBAL void Odd(OddArgs p) {}\n", encoding="utf-8")
            with self.assertRaisesRegex(ValueError, "odd.cu: 1 kernels, of which only 0"):
                check_ptxas.expected(pathlib.Path(folder))


if __name__ == "__main__":
    unittest.main()

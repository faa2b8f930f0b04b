r"""The ratios of another benchmark on the processor that is here, and on one that has AVX2 alone, side by side.

    python benchmarks/processors.py train.py --sizes demo tiny small --dtypes float32
    python benchmarks/processors.py sample.py --sizes demo tiny small --dtypes float32
    python benchmarks/processors.py pair.py join --docs 100000

The benchmark runs once for each kind of processor, as a process in an environment that holds torch, oneDNN, MKL, OpenBLAS and
our loops to that kind. A machine without AVX-512 gives one column. Every ratio of the benchmark's tables becomes a row: compare
within a column, since the two were not measured in turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from synthboot.kernels import library

AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "SYNTHBOOT_KERNELS": "avx2",
}
"""What holds the libraries to AVX2."""

FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
RATIOS = ("times", "of the limit")
"""What the heads of columns that hold ratios begin with."""

Cells = dict[tuple[str, str], str]
"""The ratios of a benchmark's tables, by the words of the row and the head of the column."""


def flags() -> str:
    """The processor, and those of its extensions that matter here."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    has = set(fields.get("flags", "").split())
    return f"{fields.get('model name', 'unknown')}: {' '.join(flag for flag in FLAGS if flag in has)}"


def kinds() -> list[str]:
    """The machine's own kind, and AVX2 where that is a lesser one."""
    own = library.kind()
    return [own, "avx2"] if own == "avx512" else [own]


def ran(script: str, arguments: list[str], environment: dict[str, str]) -> str:
    """What the benchmark printed; it is shown while it runs."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        print(line, end="", flush=True)
        said.append(line)
    if process.wait():
        raise SystemExit(process.returncode)
    return "".join(said)


def ratios(said: str) -> Cells:
    """The ratios in the tables of a text."""
    found: Cells = {}
    head: list[str] = []
    for line in said.splitlines():
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not head:
            head = cells
        elif set(line) - set("|-: "):
            # a row is known by what stands before its first number
            number = next((i for i, cell in enumerate(cells) if cell[:1].isdigit()), len(cells))
            row = ", ".join(cells[:number])
            found |= {(row, name): cell for name, cell in zip(head, cells, strict=True) if name.startswith(RATIOS) and cell}
    return found


def main() -> None:
    """Run the benchmark for each kind, then print the table."""
    script, *arguments = sys.argv[1:] or ["--help"]
    if script in ("-h", "--help"):
        print(__doc__)
        return
    columns: dict[str, Cells] = {}
    for kind in kinds():
        held = {} if kind == library.kind() else AVX2
        print(f"\n{kind}, {flags()}; {' '.join(f'{k}={v}' for k, v in held.items()) or 'nothing held'}\n", flush=True)
        columns[kind] = ratios(ran(script, arguments, held))
    print(f"\n{flags()}\n\n| what | ratio | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for row, name in dict.fromkeys(key for cells in columns.values() for key in cells):
        print(f"| {row} | {name} | {' | '.join(cells.get((row, name), '') for cells in columns.values())} |")


if __name__ == "__main__":
    main()

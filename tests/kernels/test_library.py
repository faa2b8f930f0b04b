"""Whether the compiled loops are there, and what may go over to them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from synthboot.kernels import library


def test_without_the_loops_it_is_said_once(tmp_path: Path) -> None:
    package = Path(library.__file__).parent.parent
    shutil.copytree(package, tmp_path / "synthboot", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    program = "from synthboot.kernels import library; print(library.available(), library.available())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "False False\n"
    assert ran.stderr.count("installed without its compiled loops") == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="makes a library")
def test_a_library_of_older_sources_is_none(tmp_path: Path) -> None:
    package = Path(library.__file__).parent.parent
    shutil.copytree(package, tmp_path / "synthboot", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    loops = "".join(f"void {name}_baseline() {{}}" for name in library.LOOPS if name != "containments")
    source = f'extern "C" {{ const char* processor() {{ return "baseline"; }} {loops} }}'
    built = tmp_path / "synthboot" / "kernels" / "_loops.abi3.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", built], input=source, text=True, check=True)
    program = "from synthboot.kernels import library; print(library.available())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
    assert "undefined symbol: containments_baseline" in ran.stderr


def test_the_loops_are_those_of_the_headers() -> None:
    headers = Path(library.__file__).parent.glob("*.h")
    exported = {name for header in headers for name in re.findall(r"EXPORT\((\w+)\)", header.read_text())}
    assert sorted(exported) == sorted(library.LOOPS)


def test_the_loops_are_left_aside_and_for_cpus_alone(without_kernels: Callable[[], None]) -> None:
    assert not library.available("cuda")
    without_kernels()
    assert not library.available()


@pytest.mark.skipif(not library.available(), reason="the package was installed without a compiler")
def test_a_lesser_kind_of_processor_can_be_asked_for_and_a_better_one_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYNTHBOOT_KERNELS", raising=False)
    best = library.KINDS.index(library.kind())
    for number, kind in enumerate(library.KINDS):
        monkeypatch.setenv("SYNTHBOOT_KERNELS", kind)
        assert library.kind() == library.KINDS[min(number, best)]


def test_arrays_are_what_a_loop_takes_them_for() -> None:
    tensor = torch.zeros(3, 4)
    assert library.array("x", tensor, (3, 4), torch.float32).value == tensor.data_ptr()
    with pytest.raises(ValueError, match=r"x is \(3, 4\) torch.float32, expected \(4, 3\)"):
        library.array("x", tensor, (4, 3), torch.float32)
    with pytest.raises(ValueError, match=r"expected .* torch.float64"):
        library.array("x", tensor, (3, 4), torch.float64)
    with pytest.raises(ValueError, match="in one piece"):
        library.array("x", tensor.T, (4, 3), torch.float32)


def test_the_source_distribution_has_every_header() -> None:
    root = Path(__file__).parents[2]
    [loops] = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    headers = (root / "src/synthboot/kernels").glob("*.h")
    assert sorted(loops["depends"]) == sorted(header.relative_to(root).as_posix() for header in headers)

"""How dense the lines of Python code are: the figures by which this project compares itself with others.

    python benchmarks/texture.py [FILE_OR_FOLDER ...] [--each] [--json out.json]

Blank lines, comments and docstrings are not code. A token is what `tokenize` yields, without
comments, line ends and indentation. What is counted `per 100` or `per 1,000` lines is counted over
all lines that are not blank, docstrings included. Prints a row for everything named (`src` if nothing is),
or a row per file with `--each`, densest last.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import statistics
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

COLUMNS = 100
LONG_LINE_TOKENS = 20

LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Texture:
    """Counts over one file or many; files add up by `+`."""

    lines: int = 0
    wide_lines: int = 0
    comments: int = 0
    parallel: int = 0
    comprehensions: int = 0
    any_types: int = 0
    line_tokens: list[int] = field(default_factory=list)
    function_lines: list[int] = field(default_factory=list)

    def __add__(self, other: Texture) -> Texture:
        names = self.__dataclass_fields__
        return Texture(*(getattr(self, name) + getattr(other, name) for name in names))

    def figures(self) -> dict[str, float]:
        """The figures of the table: counts by their lines, percentages as such."""
        code = max(1, len(self.line_tokens))
        lines = max(1, self.lines)
        long_lines = sum(tokens > LONG_LINE_TOKENS for tokens in self.line_tokens)
        lengths = sorted(self.function_lines) or [0]

        return {
            "code lines": len(self.line_tokens),
            "tokens per code line": sum(self.line_tokens) / code,
            f"% over {LONG_LINE_TOKENS} tokens": 100 * long_lines / code,
            f"% over {COLUMNS} columns": 100 * self.wide_lines / lines,
            "comments per 100": 100 * self.comments / lines,
            "parallel per 1,000": 1_000 * self.parallel / lines,
            "comprehensions per 1,000": 1_000 * self.comprehensions / lines,
            "Any per 1,000": 1_000 * self.any_types / lines,
            "function median": statistics.median(lengths),
            "function 90 %": lengths[round(0.9 * (len(lengths) - 1))],
        }


def texture(source: str) -> Texture:
    """The counts of one file's text."""
    tree = ast.parse(source)
    docstrings = set(docstring_lines(tree))
    tokens_of_line: Counter[int] = Counter()
    comments = 0

    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        comments += token.type == tokenize.COMMENT
        if token.type not in LAYOUT and token.start[0] not in docstrings:
            tokens_of_line[token.start[0]] += 1

    lines = source.splitlines()
    nodes = list(ast.walk(tree))
    return Texture(
        # Blank lines would flatter every rate.
        lines=sum(bool(line.strip()) for line in lines),
        wide_lines=sum(len(line) > COLUMNS for line in lines),
        comments=comments,
        parallel=sum(map(is_parallel, nodes)),
        comprehensions=sum(isinstance(node, COMPREHENSIONS) for node in nodes),
        any_types=sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes),
        line_tokens=list(tokens_of_line.values()),
        function_lines=[node.end_lineno - node.lineno + 1 for node in nodes if isinstance(node, FUNCTIONS) and node.end_lineno],
    )


def docstring_lines(tree: ast.Module) -> Iterator[int]:
    """Lines of docstrings, those below attributes included (a string that stands alone)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


def is_parallel(node: ast.AST) -> bool:
    """Whether this is `a, b = x, y`: values side by side, not one value taken apart."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    return any(isinstance(target, ast.Tuple) for target in node.targets)


def python_files(places: Iterable[Path]) -> Iterator[Path]:
    """The files that are named, and all Python files of the folders that are."""
    for place in places:
        if place.is_dir():
            yield from sorted(place.rglob("*.py"))
        else:
            yield place


def table(rows: dict[str, Texture]) -> str:
    """A Markdown table with a row for every name."""
    heads = list(Texture().figures())
    printed = ["| | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]

    for name, counts in rows.items():
        figures = [f"{value:,.1f}".removesuffix(".0") for value in counts.figures().values()]
        printed.append(f"| {name} | " + " | ".join(figures) + " |")

    return "\n".join(printed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", type=Path, nargs="*", default=[Path("src")])
    parser.add_argument("--each", action="store_true", help="a row per file")
    parser.add_argument("--json", type=Path, help="write the figures of all rows here")
    arguments = parser.parse_args()

    rows = {}
    total = Texture()
    for path in python_files(arguments.places):
        counts = texture(path.read_text("utf-8"))
        rows[str(path)] = counts
        total += counts

    if arguments.each:
        density = "tokens per code line"
        rows = dict(sorted(rows.items(), key=lambda row: row[1].figures()[density]))
    else:
        rows = {}
    rows["all"] = total

    print(table(rows))
    if arguments.json:
        figures = {name: counts.figures() for name, counts in rows.items()}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Write what runs/articles printed into the README beside this, and all that follows from it.

make articles && python experiments/2026-11-25-demo/fill.py
"""

import re
import runpy
from pathlib import Path

from click.testing import CliRunner

from synthboot import loading, show
from synthboot.artifacts.evaluation import Evaluation
from synthboot.cli import main
from synthboot.recipes import folder_of

ROOT = Path(__file__).parent.parent.parent
PAGE = Path(__file__).with_name("README.md")


def printed(*arguments: str) -> str:
    """What a command prints that makes nothing anew."""
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False).stdout.rstrip()


if __name__ == "__main__":
    config = ROOT / "configs" / "articles.yaml"
    run = loading.load(config).folder
    said = {row.unit.partition("-")[2]: row.account for row in show.status(run)}
    verdict = Evaluation.open(folder_of(run, "evaluate")).verdict
    answer = f"What it reads: {said['tune/related']}. What that bought: {verdict}"
    result = f"```text\n{printed('status', str(run))}\n```\n\n```text\n{printed('evaluate', str(config))}\n```"

    page = PAGE.read_text("utf-8")
    page = re.sub(r"^\*\*Answer\.\*\* .*$", lambda _: f"**Answer.** {answer}", page, flags=re.M)
    page = re.sub(r"(?s)(<!-- result -->\n).*(<!-- /result -->)", lambda found: f"{found[1]}{result}\n{found[2]}", page)
    PAGE.write_text(page, "utf-8")
    runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="__main__")

"""mkdocs' view of the repository: every page at its place, and every file that a page links to.

Called by mkdocs (`hooks` of mkdocs.yml).
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = ("*.md", "docs/*.md", "experiments/*.md", "experiments/*/*.md")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages and what they link to, in place of what lies in docs/; the theme's files stay."""
    of_theme = [file for file in files if file.src_dir != config.docs_dir]
    pages = [path for pattern in PAGES for path in ROOT.glob(pattern)]
    linked = {target for page in pages for target in _linked(page) if target.is_file()}
    added = []
    for path in sorted({*pages, *linked}):
        place = path.relative_to(ROOT).as_posix()
        added.append(File.generated(config, place, abs_src_path=str(path)))
    return Files([*of_theme, *added])


def _linked(page: Path) -> list[Path]:
    return [(page.parent / target).resolve() for target in LINK.findall(page.read_text("utf-8"))]

"""What the site has besides the pages in docs/: the README, generated reference, and what pages link to elsewhere.

Pages are written for the repository, so links to other folders are right there. Here each file that is linked gets a
place below `source/`, and the links are led to it.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")
SHIM = "assets/iframe-worker.js"
SHIM_ADDRESS = "https://unpkg.com/iframe-worker/shim"
FIELDS = """# Fields

Every endpoint with its input, generated from the schemas that validate it. A running server has the same at `/docs`,
and at `/openapi.json` for programs.

"""
COMMANDS = """# Commands

Generated from the commands themselves: what `fluxserve COMMAND --help` prints.

"""
DECISIONS = """# Decisions

One page a choice that others could have made differently: context, decision, consequences, and what would change our
mind.

"""


def placed(file: Path) -> str:
    """Where a file of the repository stands in the site."""
    path = file.relative_to(ROOT)
    if path == Path("README.md"):
        return "index.md"
    return posixpath.join(*path.parts[1:]) if path.parts[0] == "docs" else f"source/{path.as_posix()}"


def target(link: str, of: Path) -> Path | None:
    """The file that a link of a page means: of a folder its README, of decisions their list; None if there is none."""
    found = (of.parent / link).resolve()
    if not found.is_relative_to(ROOT) or not found.exists():
        return None
    if found == ROOT / "docs" / "decisions":
        return found / "index.md"
    if found.is_dir():
        return found / "README.md" if (found / "README.md").is_file() else None
    return found


def elsewhere(pages: list[Path]) -> dict[str, Path]:
    """Every file outside docs/ that a page links to, and what those link to, by its place."""
    waiting, seen = list(pages), {}
    while waiting:
        page = waiting.pop()
        for link in LINK.findall(page.read_text()):
            file = target(link, page)
            if file is None or file.is_relative_to(ROOT / "docs") or placed(file) in seen:
                continue
            seen[placed(file)] = file
            waiting += [file] if file.suffix == ".md" else []
    return seen


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files that docs/ does not hold."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "CHANGELOG.md"]
    added = elsewhere(pages) | {placed(ROOT / name): ROOT / name for name in ("README.md", "CHANGELOG.md")}
    for place, file in added.items():
        files.append(File.generated(config, place, abs_src_path=str(file)))
    sys.path.insert(0, str(ROOT))
    generated = {
        "reference/fields.md": fields(),
        "reference/commands.md": commands(),
        "decisions/index.md": decisions(),
        SHIM: (Path(__file__).parent / "iframe-worker.js").read_text(),
    }
    for place, text in generated.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The theme has the search of pages opened from a folder load a script from the internet: it gets ours."""
    return output.replace(SHIM_ADDRESS, posixpath.relpath(SHIM, posixpath.dirname(page.url) or "."))


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """The same for the page of what is not there, which is served from anywhere."""
    return output.replace(SHIM_ADDRESS, f"/{SHIM}")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead the page's links to where their files stand here; a link to a folder without a page becomes plain text."""
    place = page.file.src_uri
    home = next((file for file in _sources(place) if file.is_file()), None)
    if home is None:
        return markdown

    def led(match: re.Match[str]) -> str:
        file = target(match[1], home)
        return match[1] if file is None else posixpath.relpath(placed(file), posixpath.dirname(place) or ".")

    text = re.sub(r"\[([^\]]+)\]\(([^)#\s:]+/)\)", lambda m: m[0] if target(m[2], home) else m[1], markdown)
    return LINK.sub(led, text)


def _sources(place: str) -> list[Path]:
    if place == "index.md":
        return [ROOT / "README.md"]
    return [ROOT / place.removeprefix("source/") if place.startswith("source/") else ROOT / "docs" / place]


def fields() -> str:
    """Every endpoint's input as tables."""
    from server.api import catalogue
    from server.routes.system.docs_page import section

    return FIELDS + "\n\n".join(section(row) for row in catalogue.all_endpoints()) + "\n"


def commands() -> str:
    """Every command's help."""
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from server.cli.main import app

    command = get_command(app)
    with command.make_context("fluxserve", [], resilient_parsing=True) as context:
        text = get_docs_for_click(obj=command, ctx=context, name="fluxserve")
    return COMMANDS + text.partition("\n")[2]


def decisions() -> str:
    """A list of the decisions by number."""
    lines = []
    for file in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        title = re.sub(r"^#+\s*\d*\.?\s*", "", file.read_text().partition("\n")[0])
        lines.append(f"- [{file.name[:4]}]({file.name}) {title}")
    return DECISIONS + "\n".join(lines) + "\n"

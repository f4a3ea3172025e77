"""Hooks of the site (``mkdocs.yml``): the repository's own files are its pages, under the addresses that they have in it.

So links between pages, tables and pictures hold in the site as they do in the repository, and nothing is copied. Notebooks
are pages with the outputs that they hold. A link to any other file of the repository leads to a page that shows it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CHANGELOG.md", "benchmarks/**/*.md", "bundles/*/docs/*.md")
PICTURES = ("benchmarks/**/*.png", "bundles/*/docs/*.png")
#: What the reference shows: the public names of a package, all of a module.
REFERENCE = ("convert", "data", "evaluation", "layers", "nets", "ops", "symmetry")
REFERENCE_MODULES = ("check", "description", "options", "training")
_LINK = re.compile(r"(?<=\]\()(?!\w+:|[#/])([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, the pictures, what they link to, and the reference."""
    for file in list(files):
        if file.abs_src_path and Path(file.abs_src_path).is_relative_to(ROOT / "docs"):
            files.remove(file)
            files.append(_file(config, Path(file.abs_src_path)))
    for path in sorted(ROOT.glob("docs/tutorials/*.ipynb")):
        for name, content in _notebook(path).items():
            files.append(File.generated(config, f"docs/tutorials/{name}", content=content))
    for path in sorted(path for pattern in (*PAGES, *PICTURES) for path in ROOT.glob(pattern)):
        files.append(_file(config, path))
    pages = [file for file in files if file.src_uri.endswith(".md")]
    for page in pages:  # grows, as a page that shows a folder has links too
        for link in _LINK.findall(page.content_string):
            path = (ROOT / page.src_uri).parent / link
            uri = _page_of(path)
            if uri and files.get_file_from_path(uri) is None:
                level = InclusionLevel.NOT_IN_NAV
                pages.append(File.generated(config, uri, content=_shown(path.resolve()), inclusion=level))
                files.append(pages[-1])
    for name in ("monai_sre", *REFERENCE, *REFERENCE_MODULES):
        files.append(File.generated(config, f"docs/reference/{name}.md", content=_reference(name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to folders, and to files that are neither pages nor pictures, to the pages that show them."""
    folder = (ROOT / page.file.src_uri).parent

    def point(match: re.Match[str]) -> str:
        shown = _page_of(folder / match[1])
        return match[1] if shown is None else os.path.relpath(ROOT / shown, folder)

    return _LINK.sub(point, markdown)


def _file(config: MkDocsConfig, path: Path) -> File:
    return File.generated(config, _uri(path), abs_src_path=str(path))


def _uri(path: Path) -> str:
    return path.resolve().relative_to(ROOT).as_posix()


def _page_of(path: Path) -> str | None:
    """Address of the page that shows a folder or file; ``None`` for pages, pictures, and what is not in the repository."""
    if not path.exists() or not path.resolve().is_relative_to(ROOT):
        return None
    if path.is_dir():
        return f"{_uri(path)}/README.md"
    if path.suffix == ".ipynb":
        return _uri(path.with_suffix(".md"))
    return None if path.suffix in (".md", ".png") else f"{_uri(path)}.md"


def _shown(path: Path) -> str:
    if path.is_dir():
        lines = [f"* [{item.name}]({item.name})" for item in sorted(path.iterdir()) if item.suffix in (".md", ".py")]
        return f"# {_uri(path)}\n\n" + "\n".join(lines)
    return f"# {_uri(path)}\n\n```{path.suffix[1:]}\n{path.read_text(encoding='utf-8')}\n```\n"


def _notebook(path: Path) -> dict[str, str | bytes]:
    """The page of a notebook, and its pictures by name."""
    names = {"unique_key": path.stem, "output_files_dir": path.stem}
    body, resources = MarkdownExporter().from_filename(str(path), resources=names)
    title, text = body.lstrip().replace("![png]", "![Output of the code above]").split("\n", 1)
    link = f'<a href="../{path.name}" download>The notebook of this page</a>'
    return {f"{path.stem}.md": f"{title}\n\n{link}\n{text}", **resources["outputs"]}


def _reference(name: str) -> str:
    if name == "monai_sre":  # its names are those of its packages, which have pages of their own
        return f"# monai_sre\n\n::: monai_sre\n    options:\n      members: false\n\n{_contents()}"
    inherited = "" if name in REFERENCE_MODULES else "    options:\n      show_submodules: false\n"
    return f"# monai_sre.{name}\n\n::: monai_sre.{name}\n{inherited}"


def _contents() -> str:
    package = griffe.load("monai_sre", search_paths=[str(ROOT)], resolve_aliases=True)
    rows = [f"| `{name}` | [{_room(package[name])}]({_room(package[name])}.md) |" for name in package.exports or ()]
    return "| name | page |\n| --- | --- |\n" + "\n".join(map(str, rows))


def _room(member: Any) -> str:
    parts: list[str] = member.canonical_path.split(".")
    return parts[1]


class Roles(griffe.Extension):
    """Roles of reStructuredText in docstrings become links and formulas."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object; examples under one name that the reader of docstrings knows."""
        if obj.docstring is None:
            return
        module = obj.path if obj.is_module else obj.module.path

        def link(match: re.Match[str]) -> str:
            name = match[1] if match[1].startswith(("monai_sre", "torch", "monai")) else f"{module}.{match[1]}"
            return f'<autoref optional identifier="{name}"><code>{match[1].removeprefix("monai_sre.")}</code></autoref>'

        text = re.sub(r"\.\. math:: (.+(?:\n +.+)*)", lambda match: _formula(match[1], "block"), obj.docstring.value)
        text = re.sub(r":math:`([^`]+)`", lambda match: _formula(match[1]), text)
        text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
        obj.docstring.value = re.sub(r":(?:func|class|mod|meth|data):`~?([^`]+)`", link, text)


def _formula(latex: str, display: str = "inline") -> str:
    """As MathML, in which Markdown finds no emphasis."""
    text: str = convert(" ".join(latex.split()), display=display)
    return text.replace("*", "&#42;").replace("_", "&#95;")

"""What the documentation site does beyond mkdocs: pages from outside docs/, equations, options.

The README, the pages of the studies under results/ and their pictures belong to the site and stay
where they are in the repository. Links are written for the repository, so that they also work
where its files are read; here they are turned into links of the site.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from peft import PeftConfig

from harness import reference
from mixlora import MixLoraConfig

ROOT = Path(__file__).resolve().parents[1]
#: Files outside docs/ that belong to the site, under the names that they have in the repository.
OUTSIDE = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "results/README.md",
    "results/*/README.md",
    "results/*/tables/*.md",
    "results/*/figures/*.svg",
    "results/*/report.html",
)
#: The page of which this folder has a stand-in only.
COMMAND_LINE = "reproduce/command-line.md"
#: Stands where the settings of the adapter are to be listed.
SETTINGS = "<!-- settings -->"
#: A relative link of Markdown: its text with the bracket, its target and what follows a "#".
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)((?:#[^)\s]*)?\))")
#: An equation as pymdownx.arithmatex leaves it.
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the repository's links into the site's, and fill in settings and options."""
    source = Path(page.file.abs_src_path).parent

    def link(match: re.Match[str]) -> str:
        target = os.path.relpath(source / match[2], ROOT).removeprefix("docs/")
        return match[1] + posixpath.relpath(target, posixpath.dirname(page.file.src_uri)) + match[3]

    if page.file.src_uri == COMMAND_LINE:
        return reference.page()
    markdown = LINK.sub(link, markdown)
    return markdown.replace(SETTINGS, settings()) if SETTINGS in markdown else markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write equations as MathML, which browsers show without a script."""

    def equation(match: re.Match[str]) -> str:
        tex = match[2].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        return convert(tex, display="block" if match[1] == "div" else "inline")

    return EQUATION.sub(equation, html)


def settings() -> str:
    """The fields of `MixLoraConfig` that PEFT's own configs do not have, as a table of Markdown."""
    common = {field.name for field in dataclasses.fields(PeftConfig)}
    rows = [
        f"| `{field.name}` | `{field.default!r}` | {field.metadata.get('help', '')} |"
        for field in dataclasses.fields(MixLoraConfig)
        if field.name not in common
    ]
    return "\n".join(["| setting | default | |", "|:--|:--|:--|", *rows])

"""Make a page of each notebook, which is run for it while the documentation is built."""

from __future__ import annotations

import re
import tempfile
from base64 import b64decode
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

from tools.notebooks import NOTEBOOKS, executed

INLINE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")
NOTE = (
    "*This page is a notebook that was run when this documentation was built: "
    "[download it]({name}.ipynb), and run it yourself.*"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and their pictures as files of their own."""
    with tempfile.TemporaryDirectory() as folder:
        contents = executed(sorted(NOTEBOOKS.glob("*.ipynb")), Path(folder))
    for stem, content in contents.items():
        named = {"unique_key": stem}
        page, resources = MarkdownExporter().from_notebook_node(content, named)
        # Of outputs in several forms the page shows one only.
        pictures = {name: data for name, data in resources["outputs"].items() if name in page}

        def apart(match: re.Match[str], stem: str = stem, into: dict = pictures) -> str:
            name = f"{stem}-{len(into)}.png"
            into[name] = b64decode(match[1])
            return f"../{name}"  # from the page's own folder

        page = INLINE.sub(apart, page)
        for name, data in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
        page = page.replace(".ipynb)", ".md)").replace("![png](", "![What the lines above draw](")
        title, _, rest = page.partition("\n")
        page = f"{title}\n\n{NOTE.format(name=stem)}\n{rest}"
        files.append(File.generated(config, f"notebooks/{stem}.md", content=page))
    return files

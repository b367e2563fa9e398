"""Parts of README made from the code: `python -m tests.readme` writes them, tests/test_docs.py checks them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from server.config import settings_table

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def files_tree() -> str:
    """Every module of the package with the first sentence of its docstring, folder by folder."""
    lines = ["```text"]
    folders = sorted({path.parent for path in (ROOT / "server").rglob("*.py")})
    for folder in folders:
        modules = sorted(folder.glob("*.py"))
        lines.append(f"{folder.relative_to(ROOT)}/  {_first_sentence(folder / '__init__.py')}")
        lines += [
            f"  {module.name:<18} {_first_sentence(module)}" for module in modules if module.name != "__init__.py"
        ]
    return "\n".join([*lines, "```"])


def _first_sentence(module: Path) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph)[0].rstrip(".")


PARTS = {"settings": settings_table, "files": files_tree}
"""Name of the markers -> what stands between them."""


def between(name: str, text: str) -> str:
    """What stands in `text` between the markers of one part."""
    return text.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- end of {name} -->")[0].strip()


def write() -> None:
    text = README.read_text("utf-8")
    for name, make in PARTS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make().strip()}\n{end}{rest.split(end)[1]}"
    README.write_text(text, "utf-8")


if __name__ == "__main__":
    write()

"""Count the words in the docstrings of Python's standard library: a map-reduce of two functions.

    nomadfn run examples/word_count.py
    nomadfn run examples/word_count.py --package email --top 20

Shows: a function that uses another function of its app from inside a container. `count` reads one module;
`total` runs in a container of its own, maps `count` over all of them and adds up, so that only the sum travels
back here. `order_outputs=False`, because a sum does not care who comes first.
"""

import ast
import re
import sysconfig
from collections import Counter
from pathlib import Path

import nomadfn

app = nomadfn.App("word-count")

LIBRARY = Path(sysconfig.get_path("stdlib"))
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@app.function()
def count(module: str) -> Counter[str]:
    """How often each word of four letters or more stands in the docstrings of one module."""
    tree = ast.parse((LIBRARY / module).read_bytes())
    texts = (ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, DOCUMENTED))
    return Counter(re.findall(r"[a-z]{4,}", " ".join(texts).lower()))


@app.function()
def total(modules: list[str]) -> Counter[str]:
    """The words of many modules, counted in parallel."""
    return sum(count.map(modules, order_outputs=False), Counter())


@app.local_entrypoint()
def main(package: str = "json", top: int = 10) -> None:
    modules = [path.relative_to(LIBRARY).as_posix() for path in sorted((LIBRARY / package).glob("**/*.py"))]
    if not modules:
        raise SystemExit(f"{package} is no package of the standard library; try json, email or asyncio.")
    words = total.remote(modules)
    print(f"{package}: {len(modules)} modules, {words.total():,} words in docstrings, {len(words):,} different ones")
    for word, times in words.most_common(top):
        print(f"{times:6,}  {word}")

"""The Nomad job specs of nomadfn: plain HCL2, usable by hand, read as resources of this package."""

import ast
from importlib.resources import files


def read(name: str) -> str:
    """The text of `function.nomad.hcl` or `control.nomad.hcl`."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def start() -> str:
    """What a function's task has Python run, without what explains it: a job's spec is read by people, too."""
    code = ast.parse(read("start.py"))
    for node in ast.walk(code):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for one in node.args.args:
                one.annotation = None
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(code)

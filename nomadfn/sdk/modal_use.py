"""What a program uses of Modal's API, read from its source without importing it.

Each use has a name: `Image.pip_install`, or `App.function(gpu=)` for a setting. What a value is follows from where
it came from: what `modal.App(...)` gives is an `App`, what stands under `@app.function()` is a `Function`, and
`Function.remote` is a verb of it. A name that is bound to different things in one file is taken for all of them,
and what came from elsewhere is left alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from nomadfn_agent.alias import VIEWS

MODULES = ("modal", "nomadfn")
_MODULE = "(module)"
_RESULTS = {
    "App.function": "App.function()",
    "App.cls": "App.cls()",
    "App.run": "App",
    "Function.from_name": "Function",
    "Function.with_options": "Function",
    "Function.with_concurrency": "Function",
    "Function.with_batching": "Function",
    "Function.spawn": "FunctionCall",
    "Function.spawn_map": "FunctionCall",
    "FunctionCall.from_id": "FunctionCall",
    "Cls": "Obj",
    "Cls.from_name": "Cls",
    "Cls.with_options": "Cls",
    "Cls.with_concurrency": "Cls",
    "Cls.with_batching": "Cls",
}
"""What a call gives. A class that is called gives a value of it."""
_MADE_BY_METHODS = ("Image", "Secret", "Volume", "Dict", "Queue", "NetworkFileSystem", "Sandbox")
"""Classes whose methods give values of the class, as far as they give anything with an API."""
_DECORATORS = {"App.function()": "Function", "App.cls()": "Cls"}
_VERBS = ("remote", "local", "remote_gen", "spawn")
_USERS_KEYWORDS = {"Cls", "Obj", "Function", _MODULE, *(f"Function.{verb}" for verb in _VERBS)}
"""Calls whose keywords are the user's own."""
_ROUNDS = 8
"""How many assignments from one name to the next are followed."""


@dataclass(frozen=True, order=True)
class Use:
    """One use of Modal's API in one line of one file."""

    path: str
    line: int
    name: str


def uses(source: str, path: str) -> list[Use]:
    """Every use in a file, in the order of its lines. Raises SyntaxError."""
    reader = _Reader(ast.parse(source, path), path)
    return sorted(reader.found)


class _Scope:
    """The names of one module, class or function, each with what it may stand for; nothing where it is not Modal's."""

    def __init__(self, body: list[ast.AST], parent: _Scope | None) -> None:
        self.parent = parent
        self.nodes: list[ast.AST] = []
        """What is evaluated in this scope itself."""
        self.inner: list[_Scope] = []
        self._kinds: dict[str, set[str]] = {}
        for node in body:
            self._collect(node)

    def _collect(self, node: ast.AST) -> None:
        self.nodes.append(node)
        match node:
            case ast.FunctionDef(args=arguments) | ast.AsyncFunctionDef(args=arguments) | ast.Lambda(args=arguments):
                outside = [*getattr(node, "decorator_list", []), *arguments.defaults, *arguments.kw_defaults]
                body = node.body if isinstance(node.body, list) else [node.body]
                scope = _Scope(list(body), self)
                names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                for one in [*names, *filter(None, (arguments.vararg, arguments.kwarg))]:
                    scope.bind(one.arg, set())
                self.inner.append(scope)
                for part in filter(None, outside):
                    self._collect(part)
            case _:
                for part in ast.iter_child_nodes(node):
                    self._collect(part)

    def bind(self, name: str, kinds: set[str]) -> bool:
        """Add what a name may stand for; says whether that was news."""
        known = self._kinds.setdefault(name, set())
        news = not kinds <= known
        known |= kinds
        return news

    def look_up(self, name: str) -> set[str]:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope._kinds:
                return scope._kinds[name]
            scope = scope.parent
        return set()

    def all(self) -> Iterator[_Scope]:
        yield self
        for one in self.inner:
            yield from one.all()


class _Reader:
    """Reads one file: first what its names stand for, until nothing new is learnt, then what is done with them."""

    def __init__(self, tree: ast.Module, path: str) -> None:
        self._path = path
        self.found: set[Use] = set()
        scopes = list(_Scope(list(tree.body), None).all())
        for _ in range(_ROUNDS):
            if not sum(self._learn(node, scope) for scope in scopes for node in scope.nodes):
                break
        for scope in scopes:
            for node in scope.nodes:
                self._note(node, scope)

    def _learn(self, node: ast.AST, scope: _Scope) -> bool:
        """Take in what a statement binds names to; says whether anything was news."""
        bound: list[tuple[str, set[str]]] = []
        match node:
            case ast.Import(names):
                bound = [(one.asname or one.name.split(".")[0], _imported(one)) for one in names]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                ours = module.split(".")[0] in MODULES
                bound = [(one.asname or one.name, {_joined(module, one.name)} if ours else set()) for one in names]
            case ast.Assign(targets, value):
                bound = [(one.id, self._kinds_of(value, scope)) for one in targets if isinstance(one, ast.Name)]
            case ast.AnnAssign(target=ast.Name(name), value=ast.expr() as value):
                bound = [(name, self._kinds_of(value, scope))]
            case ast.withitem(context, ast.Name(name)):
                bound = [(name, self._kinds_of(context, scope))]
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                kinds = {kind for one in node.decorator_list for kind in self._kinds_of(one, scope)}
                bound = [(node.name, {_DECORATORS[kind] for kind in kinds & _DECORATORS.keys()})]
        return sum(scope.bind(name, kinds) for name, kinds in bound) > 0

    def _kinds_of(self, node: ast.expr, scope: _Scope) -> set[str]:
        """What a value may be, as far as it is of Modal's API."""
        match node:
            case ast.Name(name):
                return scope.look_up(name)
            case ast.Await(value):
                return self._kinds_of(value, scope)
            case ast.IfExp(body=body, orelse=orelse):
                return self._kinds_of(body, scope) | self._kinds_of(orelse, scope)
            case ast.Attribute(value, attribute):
                return {_attribute(owner, attribute) for owner in self._kinds_of(value, scope)}
            case ast.Call(function):
                return {kind for called in self._kinds_of(function, scope) for kind in _result(called)}
        return set()

    def _note(self, node: ast.AST, scope: _Scope) -> None:
        match node:
            case ast.ImportFrom(module=str(module), names=names, level=0) if module.split(".")[0] in MODULES:
                for one in names:
                    self._add(node.lineno, _joined(module, one.name))
            case ast.Attribute(value, attribute) if attribute != "aio" and not attribute.startswith("__"):
                for owner in self._kinds_of(value, scope):
                    name = _attribute(owner, attribute)
                    if owner != "Obj" and not owner.endswith("()") and name != _MODULE:
                        self._add(node.end_lineno or node.lineno, name)
            case ast.Call(function, _, keywords):
                for called in self._kinds_of(function, scope) - _USERS_KEYWORDS:
                    for keyword in keywords:
                        if keyword.arg is not None and not _is_none(keyword.value):
                            self._add(keyword.value.lineno, f"{called}({keyword.arg}=)")

    def _add(self, line: int, name: str) -> None:
        self.found.add(Use(self._path, line, name))


def _imported(one: ast.alias) -> set[str]:
    """`import modal` and `import modal.x` bind the module; `import modal.x as y` what it holds."""
    return {_MODULE} if one.name.split(".")[0] in MODULES else set()


def _joined(module: str, name: str) -> str:
    """`from modal.exception import TimeoutError` is `exception.TimeoutError`; most modules only hold public names."""
    return ".".join([*(part for part in module.split(".")[1:] if part not in VIEWS), name])


def _attribute(owner: str, attribute: str) -> str:
    if attribute == "aio":
        return owner
    if owner == "Obj":
        return "Obj.update_autoscaler" if attribute == "update_autoscaler" else "Function"
    if owner == _MODULE:
        return _MODULE if attribute in VIEWS else attribute
    return f"{owner}.{attribute}"


def _result(called: str) -> Iterator[str]:
    owner, _, method = called.partition(".")
    if called in _RESULTS:
        yield _RESULTS[called]
    elif not method or owner in _MADE_BY_METHODS:
        yield owner


def _is_none(value: ast.expr) -> bool:
    """A setting that is not given."""
    return isinstance(value, ast.Constant) and value.value is None

"""The package in figures: its modules and their imports, its longest functions, its density.

`python tests/benchmarks/house.py` reads the working tree, `--at d6e8df1` a commit: before and after
come from one program. Reads sources, imports none; knows nothing of what they do.
"""

import argparse
import ast
import io
import subprocess
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "aha_lib"
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def read(revision: str | None) -> dict[str, str]:
    """The package's sources by path, of a commit or (None) of the working tree."""
    if revision is None:
        paths = sorted((ROOT / PACKAGE).rglob("*.py"))
        return {str(path.relative_to(ROOT)): path.read_text() for path in paths}
    listed = git("ls-tree", "-r", "--name-only", revision, f"{PACKAGE}/").splitlines()
    return {path: git("show", f"{revision}:{path}") for path in listed if path.endswith(".py")}


def declared_order(revision: str | None) -> list[str]:
    """The names in `ORDER` of the commit's own tests/test_house.py."""
    path = "tests/test_house.py"
    text = git("show", f"{revision}:{path}") if revision else (ROOT / path).read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER":
            words = node.value.func.value if isinstance(node.value, ast.Call) else node.value
            order = ast.literal_eval(words)
            return order.split() if isinstance(order, str) else list(order)
    return []


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def module_name(path: str) -> str:
    """ "aha_lib/model/gemma.py" is "model.gemma"."""
    return ".".join(Path(path).relative_to(PACKAGE).with_suffix("").parts)


def imported(source: str, names: set[str]) -> set[str]:
    """Which of the modules a source imports, anywhere in it."""
    dotted = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            dotted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from aha_lib.model import gemma` and `from aha_lib.model.gemma import Gemma`
            dotted.add(str(node.module))
            dotted |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix(f"{PACKAGE}.") for name in dotted} & names


def documented(tree: ast.Module) -> set[int]:
    """Numbers of the lines that docstrings take."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node):
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def counts(source: str) -> Counter:
    """Of one source: lines of code, lines that are a comment alone, and its dense places."""
    tree = ast.parse(source)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    code = set()
    for token in tokens:
        if token.type not in NOT_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    found = Counter(code=len(code - documented(tree)))
    found["comment lines"] = sum(token.line.strip() == token.string for token in comments)
    found["skips"] = sum("fmt: " + "skip" in token.string for token in comments)
    for node in ast.walk(tree):
        found["comprehensions"] += isinstance(node, COMPREHENSIONS)
        found["tuple assignments"] += assigns_a_tuple(node)
        found["unpackings"] += unpacks(node) and not assigns_a_tuple(node)
    return found


def unpacks(node: ast.AST) -> bool:
    """Whether it is `a, b = …`, of whatever stands on the right."""
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)


def assigns_a_tuple(node: ast.AST) -> bool:
    """Whether it is `a, b = x, y`: several assignments in one statement."""
    return unpacks(node) and isinstance(node.value, ast.Tuple)


def functions(sources: dict[str, str]) -> list[tuple[int, str]]:
    """Length in lines, from `def` to the last one, and name of every function; longest first."""
    found = []
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, FUNCTIONS):
                length = node.end_lineno - node.lineno + 1
                found.append((length, f"{module_name(path)}.{node.name}"))
    return sorted(found, reverse=True)


def arrows(sources: dict[str, str]) -> set[tuple[str, str]]:
    """Every (module, a module that it imports)."""
    modules = {module_name(path): source for path, source in sources.items()}
    return {
        (name, other)
        for name, source in modules.items()
        for other in imported(source, set(modules)) - {name}
    }


def report(revision: str | None) -> str:
    """The figures as lines of text."""
    sources = read(revision)
    names = [module_name(path) for path in sources]
    modules = [name for name in names if not name.endswith("__init__")]
    rooms = {name.rpartition(".")[0] for name in modules} - {""}
    order = declared_order(revision)
    found = arrows(sources)
    known = [(a, b) for a, b in found if a in order and b in order]
    back_up = [(a, b) for a, b in known if order.index(b) >= order.index(a)]
    total = sum(map(counts, sources.values()), Counter())
    all_lines = sum(len(source.splitlines()) for source in sources.values())
    lines = [
        f"modules {len(modules)}, rooms {len(rooms)} {sorted(rooms)}",
        f"import arrows {len(found)}, of them back up {len(back_up)}",
        f"lines {all_lines}, of code {total['code']}; lines left unformatted {total['skips']}",
    ]
    for kind in ("tuple assignments", "unpackings", "comprehensions", "comment lines"):
        thousandth = 1000 * total[kind] / total["code"]
        lines.append(f"{kind} {total[kind]}, {thousandth:.0f} per thousand lines of code")
    lines.append("longest functions, lines:")
    lines += [f"  {length:4} {name}" for length, name in functions(sources)[:10]]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at", metavar="REVISION", help="a commit; default: the working tree")
    print(report(parser.parse_args().at))

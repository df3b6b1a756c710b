"""Lists the benchmarks, or runs one: `python benchmarks`, `python benchmarks codecs --elements 65536`."""

import ast
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def summaries() -> dict[str, str]:
    """The name of each benchmark, and the first line of what it says of itself."""
    found = {}
    for path in sorted(HERE.glob("[a-z]*.py")):
        first, *_ = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines() or [""]
        found[path.stem] = first
    return found


def main(words: list[str]) -> None:
    known = summaries()
    if not words:
        print("one of these measures what docs/records/ tells of; NAME --help lists its options\n")
        for name, summary in known.items():
            print(f"  {name:<14} {summary}")
        return
    name, *rest = words
    if name not in known:
        sys.exit(f"no benchmark is called {name!r}; known are {', '.join(known)}")
    sys.argv = [str(HERE / f"{name}.py"), *rest]
    sys.path[0] = str(HERE)  # some of them import each other
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])

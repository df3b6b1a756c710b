#!/usr/bin/env python3
"""Find places in the package that depend on state of the process which belongs to its user.

    torch.zeros(n)                    the default dtype and device    -> name dtype= and device=
    torch.rand(n), x.normal_()        torch's random state            -> generator=
    random.random(), np.random.rand() Python's or numpy's             -> a random.Random or Generator of one's own
    torch.set_num_threads(), os.chdir() and the like                  -> only a command, which owns its process, may do that

A user of the library may set any of these, before or after. Results must not change with it, and the user's own random numbers
must not change because a peer runs beside the loop.

    tools/check_process_state.py [FOLDER ...]      prints FILE:LINE: what; exit code 1 if there is anything
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FACTORIES = frozenset(
    [
        "arange",
        "as_tensor",
        "asarray",
        "empty",
        "empty_permuted",
        "empty_strided",
        "eye",
        "from_file",
        "full",
        "hann_window",
        "kaiser_window",
        "linspace",
        "logspace",
        "nested_tensor",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "range",
        "scalar_tensor",
        "sparse_coo_tensor",
        "sparse_csr_tensor",
        "tensor",
        "tril_indices",
        "triu_indices",
        "zeros",
    ]
)
"""Functions of torch that take what they are not told from the defaults of the process."""
DTYPE_ONLY = frozenset({"frombuffer"})
CONSTRUCTORS = frozenset(f"{kind}Tensor" for kind in ("", "Float", "Double", "Half", "BFloat16", "Int", "Long", "Byte", "Bool"))
DRAWS = frozenset(
    [
        "bernoulli",
        "multinomial",
        "normal",
        "poisson",
        "rand",
        "randint",
        "randn",
        "randperm",
        "rand_like",
        "randn_like",
        "randint_like",
    ]
)
DRAWS_IN_PLACE = frozenset(
    [
        "bernoulli_",
        "cauchy_",
        "exponential_",
        "geometric_",
        "log_normal_",
        "normal_",
        "random_",
        "uniform_",
        "trunc_normal_",
        "kaiming_uniform_",
        "kaiming_normal_",
        "xavier_uniform_",
        "xavier_normal_",
        "orthogonal_",
    ]
)
OWN_RANDOM = frozenset({"Random", "SystemRandom", "Generator", "PCG64", "Philox", "default_rng", "SeedSequence"})
SETTERS = {
    "torch": frozenset(
        [
            "manual_seed",
            "seed",
            "set_rng_state",
            "set_default_dtype",
            "set_default_device",
            "set_default_tensor_type",
            "set_num_threads",
            "set_num_interop_threads",
            "set_flush_denormal",
            "use_deterministic_algorithms",
            "set_grad_enabled",
            "set_float32_matmul_precision",
        ]
    ),
    "os": frozenset({"chdir", "umask", "putenv", "unsetenv"}),
    "socket": frozenset({"setdefaulttimeout"}),
    "locale": frozenset({"setlocale"}),
    "sys": frozenset({"setrecursionlimit", "setswitchinterval"}),
    "gc": frozenset({"disable", "freeze", "set_threshold"}),
    "signal": frozenset({"signal"}),
    "warnings": frozenset({"simplefilter", "filterwarnings"}),
}
OWNERS = (
    "cli",
    "net/patches.py",
    "scenarios/simulation.py",
    "scenarios/graph_training.py",
    "train/trainer.py",
    "train/resume.py",
)
"""Parts that only run where the process belongs to a command; patches.py changes libp2p's loggers, nothing of the user's, and
simulation.py and graph_training.py set the number of threads back."""


def faults_of(tree: ast.Module, owns_process: bool) -> Iterator[tuple[int, str]]:
    """(line, what) of each place."""
    modules: dict[str, str] = {}
    names: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = (node.module, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for what in _faults_of_call(node, modules, names, owns_process):
                yield node.lineno, what


def _faults_of_call(
    node: ast.Call, modules: dict[str, str], names: dict[str, tuple[str, str]], owns_process: bool
) -> Iterator[str]:
    given = {keyword.arg for keyword in node.keywords}
    if None in given:  # **options: whoever wrote that knows what is in there
        given |= {"dtype", "device", "generator"}
    module, name = _called(node.func, modules, names)
    if module == "torch" and name in FACTORIES | DTYPE_ONLY:
        needed = {"dtype"} if name in DTYPE_ONLY else {"dtype", "device"}
        if missing := sorted(needed - given):
            yield f"torch.{name} without {' and '.join(f'{m}=' for m in missing)}"
    if module == "torch" and name in CONSTRUCTORS:
        yield f"torch.{name}() takes the default dtype or device: use torch.tensor or torch.empty"
    draws = (module == "torch" and name in DRAWS) or (isinstance(node.func, ast.Attribute) and name in DRAWS_IN_PLACE)
    if draws and "generator" not in given:
        yield f"{name} without generator= draws from the process's random state"
    if module in ("random", "numpy.random") and name not in OWN_RANDOM:
        yield f"{module}.{name} uses the process's random state: use one of your own"
    if not owns_process and name in SETTERS.get(module, ()):
        yield f"{module}.{name} changes the user's process"


def _called(func: ast.expr, modules: dict[str, str], names: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """(module, function), as far as imports tell: torch.zeros is ("torch", "zeros"), x.normal_ is ("", "normal_")."""
    if isinstance(func, ast.Name):
        return names.get(func.id, ("", func.id))
    if not isinstance(func, ast.Attribute):
        return "", ""
    path: list[str] = []
    at: ast.expr = func.value
    while isinstance(at, ast.Attribute):
        path.insert(0, at.attr)
        at = at.value
    if isinstance(at, ast.Name) and at.id in modules:
        return ".".join([modules[at.id], *path]), func.attr
    return "", func.attr


def check(folder: Path) -> list[str]:
    """All faults below `folder`, as FILE:LINE: what."""
    found = []
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder).as_posix()
        owns_process = inside.startswith(OWNERS)
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        found += [f"{file}:{line}: {what}" for line, what in faults_of(tree, owns_process)]
    return found


def main() -> int:
    folders = [Path(name) for name in sys.argv[1:]] or [Path(__file__).parents[1] / "legion_p2p"]
    faults = [fault for folder in folders for fault in check(folder)]
    print("\n".join(faults) or "nothing depends on the process's defaults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())

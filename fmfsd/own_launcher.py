"""Import of this installation's package `launcher`, even if PYTHONPATH has another package of that name.

`python -m fmfsd.own_launcher MODULE ARGUMENT...` runs a module of it.
"""

import runpy
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

NAME = "launcher"
COMMAND = (sys.executable, "-P", "-m", "fmfsd.own_launcher")
FOLDER = Path(__file__).parents[1] / NAME


def pin_launcher() -> None:
    """Make `import launcher` import this installation's package in this process."""
    imported = sys.modules.get(NAME)
    if imported is not None and [str(FOLDER)] == list(getattr(imported, "__path__", ())):
        return
    spec = spec_from_file_location(NAME, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{FOLDER} is not a package: reinstall fmfsd")
    module = module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    pin_launcher()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

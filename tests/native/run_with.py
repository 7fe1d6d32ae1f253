"""Runs pytest or a script with another build of the native module, such as one with sanitizers.

python tests/native/run_with.py build/sanitize pytest tests/text/test_beam.py
python tests/native/run_with.py build/sanitize tests/native/fuzz_beam.py --minutes 10
"""

import importlib.util
import runpy
import sys
from pathlib import Path


def main() -> None:
    folder, program, *arguments = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    (built,) = Path(folder).glob("_beam*.so")
    name = "w2v_ray.text._beam"
    spec = importlib.util.spec_from_file_location(name, built)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)  # found before the one beside its source
    spec.loader.exec_module(sys.modules[name])
    sys.argv = [program, *arguments]
    if program == "pytest":
        import pytest

        raise SystemExit(pytest.main(arguments))
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()

"""Loading of llama.cpp's library, in a process that has not loaded it yet."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest

_NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def looks_after(call: str, variables: dict[str, str]) -> str:
    """Looks before a thread sleeps, as GNU's OpenMP is told, after a call in a new process."""
    code = f"import os; from ggufd.llama import library; {call}; print(os.environ.get('GOMP_SPINCOUNT'))"
    without = {name: value for name, value in os.environ.items() if name not in _NAMES}
    done = subprocess.run([sys.executable, "-c", code], env=without | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("variables", "looks"),
    [
        pytest.param({}, "70000", id="a short while"),
        pytest.param({"GOMP_SPINCOUNT": "7"}, "7", id="as the user says"),
        pytest.param({"OMP_WAIT_POLICY": "active"}, "None", id="as the user says in another way"),
    ],
)
def test_compute_threads_wait_a_short_while_before_they_sleep(variables: dict[str, str], looks: str) -> None:
    assert looks_after("library.load()", variables) == looks


def test_a_process_may_have_them_wait_less() -> None:
    assert looks_after("library.load(20_000)", {}) == "20000"


def told_by(code: str) -> str:
    """What a new process prints that has loaded the library."""
    code = f"import sys; from ggufd.llama import library; library.load(); {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_of_the_package_only_the_functions_of_c_are_imported() -> None:
    code = (
        "import llama_cpp, llama_cpp.llama_cpp as c;"
        "print(llama_cpp.llama_decode is c.llama_decode, {'llama_cpp.llama', 'numpy', 'jinja2'} & set(sys.modules))"
    )
    assert told_by(code) == "True set()"


def test_its_version_is_known_without_its_code() -> None:
    code = "import llama_cpp; print(llama_cpp.__version__, 'llama_cpp.llama' in sys.modules)"
    assert told_by(code) == f"{importlib.metadata.version('llama-cpp-python')} False"


def test_the_rest_of_the_package_is_there_for_who_asks_for_it() -> None:
    code = (
        "import llama_cpp; a = llama_cpp.llama_decode; from llama_cpp import Llama;"
        "print(Llama.__module__, llama_cpp.llama_decode is a, hasattr(llama_cpp, 'nothing'))"
    )
    assert told_by(code) == "llama_cpp.llama True False"


def test_a_look_for_what_every_module_may_have_runs_no_code() -> None:
    code = "import llama_cpp; print(hasattr(llama_cpp, '__wrapped__'), 'llama_cpp.llama' in sys.modules)"
    assert told_by(code) == "False False"


def test_a_binding_that_cannot_be_imported_leaves_no_package_behind() -> None:
    code = (
        "import sys; from ggufd.llama import library; sys.modules['llama_cpp._ctypes_extensions'] = None\n"
        "try: library.load()\n"
        "except Exception as error: print(type(error).__name__, 'llama_cpp' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "ModelError False", done.stderr

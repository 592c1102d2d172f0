"""A program's verdict, what may share a sandbox, and what happens without one."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest

from sandbox.conftest import LIMITS, open_sandbox, processes, run_one
from sft_atlas.errors import JobError, NoSandboxError
from sft_atlas.sandbox.program import Program
from sft_atlas.sandbox.sandbox import Sandbox

DOUBLE = "def double(x):\n    return 2 * x\n"


@pytest.mark.parametrize(
    ("code", "tests", "kind", "detail"),
    [
        (DOUBLE, "assert double(2) == 4", "passed", ""),
        (DOUBLE, "assert double(2) == 5", "assertion", "AssertionError: assert double(2) == 5"),
        (DOUBLE, "assert double(2) == 5, 'too few'", "assertion", "AssertionError: too few"),
        (DOUBLE, "triple(2)", "exception", "NameError: name 'triple' is not defined"),
        ("def f():\n    return 1 / 0", "f()", "exception", "ZeroDivisionError: division by zero"),
        ("class Odd(Exception): ...\nraise Odd('x\\ny\\x1b')", "f()", "exception", "y"),
        ("def f() return 1", "f()", "syntax", "SyntaxError: expected ':' (<program>, line 1)"),
        ("x = 1\0", "f()", "syntax", "source code string cannot contain null bytes"),
        (DOUBLE, "assert double(2) ==", "tests", "SyntaxError: invalid syntax"),
        (DOUBLE, "double(lambda: 1)", "tests", "a function cannot be sent to a program"),
        ("while True: pass", "f()", "timeout", "the program and its tests took too long"),
        ("def f():\n    return 'a' * (1 << 29)", "f()", "memory", "MemoryError"),
        ("def f():\n    return 'a' * (1 << 21)", "f()", "output", "a value of 2097"),
        ("import os\nos._exit(0)", "f()", "killed", "the program exited with status 0 before"),
        ("import sys\nsys.exit(0)", "f()", "exception", "SystemExit: 0"),
        ("import os\nos.abort()", "f()", "killed", "the program was killed by SIGABRT before"),
    ],
)
def test_a_verdict_says_what_went_wrong(
    sandbox: Sandbox, code: str, tests: str, kind: str, detail: str
) -> None:
    found = run_one(sandbox, code, tests)
    assert found.kind == kind, found
    assert detail in found.detail
    assert found.passed == (kind == "passed")
    assert found.detail.isprintable()


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def f(a): a.sort()", "a = [2, 1]\nf(a)\nassert a == [1, 2]"),
        (
            "def f(a, b): a.update(b); b.clear()",
            "a, b = {1: 2}, {3: 4}\nf(a, b)\nassert a and not b",
        ),
        ("def f(): yield from range(1000)", "assert list(f()) == list(range(1000))"),
        ("def f(): return {1: 2}.keys()", "assert f() == {1}\nassert list(f()) == [1]"),
        ("class P:\n    def __init__(s, x): s.x = x", "p = P(1)\np.x += 2\nassert p.x == 3"),
        ("class P: ...\ndef f(p): return p", "p = P()\nassert f(p) is p\nassert f(p) == p"),
        ("def f(): raise KeyError('k')", "try: f()\nexcept KeyError as e: assert e.args == ('k',)"),
        ("import math\ndef f(): return math.pi", "assert math.isclose(f(), 3.14159, rel_tol=1e-3)"),
        ("def sum(a, b): return a - b", "assert sum(3, 1) == 2"),
        ("def f(t): return isinstance(1, t)", "assert f(int) and not f(str)"),
        ("def f(x): return x", "assert f(2**70) == 2**70 and f((1, {2: {3}})) == (1, {2: {3}})"),
        ("def f(x): return x", "assert f(float('inf')) > 1 and f(float('nan')) != f(float('nan'))"),
        (
            "from dataclasses import dataclass\n@dataclass\nclass D:\n    x: int",
            "assert D(3).x == 3",
        ),
        ("if __name__ == '__main__': raise SystemExit\ndef f(): return 1", "assert f() == 1"),
        ("def f(): return hash('a'), list({'a', 'b', 'c'})", "assert f()[0] == f()[0]"),
        ("import asyncio\ndef f(): return asyncio.run(asyncio.sleep(0, 5))", "assert f() == 5"),
    ],
)
def test_tests_see_the_program_as_if_it_were_theirs(
    sandbox: Sandbox, code: str, tests: str
) -> None:
    found = run_one(sandbox, code, tests)
    assert found.passed, found


def test_a_name_that_the_tests_define_is_theirs_and_any_other_is_the_programs_word(
    sandbox: Sandbox,
) -> None:
    code = "def error(x): return 0\ndef solve(): return 9"
    check = "assert error(solve()) == 0"
    # The known limit: who calls a helper of the program believes the program.
    assert run_one(sandbox, code, check).passed
    assert not run_one(sandbox, code, f"def error(x): return x - 3\n{check}").passed


def test_the_same_program_gets_the_same_answer_in_a_new_sandbox(sandbox: Sandbox) -> None:
    code = "import random\ndef f(): return [random.random(), hash('text')]"
    with Sandbox(limits=LIMITS) as other:
        details = {run_one(box, code, "assert 0, f()").detail for box in (sandbox, other)}
    assert len(details) == 1


def test_order_is_kept_and_identical_programs_run_once() -> None:
    programs = [Program(code=DOUBLE, tests=f"assert double({i % 3}) == 4") for i in range(30)]
    with open_sandbox(num_workers=2) as box:
        found = box.run(programs)
        assert [v.passed for v in found] == [i % 3 == 2 for i in range(30)]
        assert box.num_run == 3
        assert box.run(programs) == found
        assert box.num_run == 3


def test_a_text_without_utf8_form_is_a_wrong_program_and_no_error(sandbox: Sandbox) -> None:
    assert run_one(sandbox, "x = '\ud800'", "assert x").kind == "syntax"


def test_nothing_is_left_after_the_sandbox_is_closed() -> None:
    before = processes()
    with open_sandbox(num_workers=2) as box:
        box.run([Program(code=f"x = {i}", tests=f"assert x == {i}") for i in range(8)])
        assert len(processes().keys() - before.keys()) in (4, 8)
    assert processes() == before


def test_two_sandboxes_work_at_once_and_from_threads_that_end() -> None:
    found: list[bool] = []
    before = processes()

    def work(box: Sandbox, start: int) -> None:
        programs = [
            Program(code=f"x = {i}", tests=f"assert x == {i}") for i in range(start, start + 5)
        ]
        found.extend(v.passed for v in box.run(programs))

    with open_sandbox() as one, open_sandbox() as other:
        for start in (0, 100):
            threads = [threading.Thread(target=work, args=(box, start)) for box in (one, other)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            # Whoever asked for the first program is gone; its workers are not.
            alive = processes()
        assert found == [True] * 20
        assert len(alive) == len(before) + 2 * 4
        assert processes() == alive


def test_a_killed_owner_leaves_nothing_even_in_the_middle_of_a_program() -> None:
    script = """
        import os, sys, threading, time
        from sft_atlas.sandbox.program import Program
        from sft_atlas.sandbox.sandbox import Sandbox
        box = Sandbox()
        box.run([Program(code="x = 1", tests="assert x")])
        code = "import os\\nfor _ in range(3): os.fork()\\nwhile True: pass"
        threading.Thread(target=box.run, args=([Program(code=code, tests="x")],)).start()
        time.sleep(0.5)
        print("running", flush=True)
        time.sleep(60)
    """
    with open_sandbox():
        pass
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "running\n"
    family = processes(owner.pid)
    assert len(family) >= 4 + 8
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    give_up = time.monotonic() + 5
    while (left := [pid for pid in family if is_alive(pid)]) and time.monotonic() < give_up:
        time.sleep(0.01)
    assert left == []


def test_a_worker_that_died_while_idle_is_replaced_and_costs_no_verdict() -> None:
    others = processes().keys()
    with open_sandbox() as box:
        assert run_one(box, "x = 1", "assert x == 1").passed
        for pid, name in processes().items():
            if name != "bwrap" and pid not in others:
                os.kill(pid, signal.SIGKILL)
        assert run_one(box, "x = 2", "assert x == 2").passed


def test_a_host_without_bubblewrap_refuses_and_runs_nothing(tmp_path: Path) -> None:
    done = in_new_process("print(why_unavailable())\nSandbox()", PATH=str(tmp_path))
    assert done.stdout == "bwrap is not installed\n"
    assert done.stderr.splitlines()[-1] == (
        "sft_atlas.errors.NoSandboxError: skipped (no sandbox): bwrap is not installed; programs "
        "that a model wrote run only in a sandbox. Install bubblewrap 0.8 or newer and allow user "
        "namespaces."
    )


def test_a_broken_bubblewrap_refuses_with_its_own_words(tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == os.getuid() and folder.is_relative_to(tempfile.gettempdir()):
            folder.chmod(folder.stat().st_mode | 0o055)
    done = in_new_process("print(why_unavailable())", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.stdout.endswith(
        "does not start in bwrap (bwrap: No permissions to create new namespace)\n"
    )
    assert issubclass(NoSandboxError, JobError)
    assert NoSandboxError.kind == "no-sandbox"


FORK_BOMB = """
import os, time
def attack():
    for count in range(10_000):
        try:
            if os.fork() == 0: time.sleep(60)
        except OSError as error:
            return os.getuid(), count, error.errno
"""


def test_an_ordinary_user_needs_no_root_and_a_fork_bomb_ends_the_same() -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests already run as an ordinary user")
    with open_sandbox():
        pass
    done = in_new_process(
        f"""
        import os
        from sft_atlas.sandbox.program import Limits
        os.setgroups([]); os.setgid(4242); os.setuid(4242)
        with Sandbox(limits=Limits(num_processes=16)) as box:
            bomb = Program(code={FORK_BOMB!r}, tests="assert attack() == (4242, 15, 11), attack()")
            print(box.run([bomb])[0].kind, box.memory_guard)
        """
    )
    assert done.stdout == "passed none\n", done.stdout + done.stderr


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def in_new_process(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    imports = (
        "import sft_atlas.sandbox.sandbox\n"
        "from sft_atlas.sandbox.program import Program\n"
        "from sft_atlas.sandbox.sandbox import Sandbox, why_unavailable\n"
    )
    return subprocess.run(
        [sys.executable, "-c", imports + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )

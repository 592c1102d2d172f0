"""Give the tests of this folder planted tables, and a browser where there is one."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

OF_THE_BROWSER = re.compile(r"https?://([a-z0-9-]+\.)*(google|googleapis|gvt1)\.com/")
"""What the browser asks for by itself: time, components, accounts."""

PLANTED = Path(__file__).parents[1] / "analyze" / "planted.py"


@pytest.fixture(scope="session")
def planted() -> ModuleType:
    name = "planted_tables"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, PLANTED)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What a browser made of a page."""

    dom: str
    console: list[str]
    requests: list[str]

    @property
    def num_drawn(self) -> int:
        found = re.search(r'data-drawn="(\d+)"', self.dom)
        return int(found.group(1)) if found else 0


@pytest.fixture(scope="session")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Visit]:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")

    def open_page(page: Path, width: int = 1280) -> Visit:
        place = tmp_path_factory.mktemp("browser")
        log = place / "net.json"
        command = [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            f"--user-data-dir={place / 'profile'}",
            f"--log-net-log={log}",
            "--enable-logging=stderr",
            f"--window-size={width},900",
            "--virtual-time-budget=60000",
            "--dump-dom",
            page.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        console = re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr)
        urls = re.findall(r'"url":"((?:https?|wss?)://[^"]+)"', log.read_text())
        text = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
        return Visit(
            dom=text,
            console=console,
            requests=[url for url in urls if not OF_THE_BROWSER.match(url)],
        )

    return open_page

"""Chromium and a stack for the browser tests; without Chromium they say so and are left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.stack import CHROMIUM_ARGUMENTS, Stack, find_chromium, running_stack


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("Chromium is not installed: the browser tests are left out (Debian: apt-get install chromium).")
    # Playwright runs an event loop in this thread, and Django would take that for asynchronous code.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
        yield instance
        instance.close()


@pytest.fixture(scope="session")
def stack(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One empty installation for the session; needs the browser, so that it is not started in vain."""
    var: Path = tmp_path_factory.mktemp("browser") / "var"
    for folder in (var.parent, var.parent.parent):
        folder.chmod(0o711)
    with running_stack(var, demo=False) as running:
        yield running

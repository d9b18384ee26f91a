"""``make shots``: the demo's pages as PNGs, light and dark, wide and narrow; to look at, and for the README."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, sync_playwright

from tests.browser.stack import CHROMIUM_ARGUMENTS, find_chromium, running_stack

MODEL, ENDPOINT, DATASET = "tumour-classifier", "tumour-triage", "tumour-triage-holdout"
# name -> (who looks, address)
PAGES = {
    "inbox": ("cora", "/"),
    "models": ("mira", "/models/"),
    "model": ("mira", f"/models/{MODEL}/"),
    "version": ("mira", f"/models/{MODEL}/versions/2/"),
    "version-upload": ("mira", f"/models/{MODEL}/versions/new/"),
    "evaluation": ("mira", f"/models/{MODEL}/versions/2/evaluation/"),
    "run": ("mira", "/evaluations/1/"),
    "load-tests": ("mira", f"/models/{MODEL}/versions/2/load-tests/"),
    "datasets": ("mira", "/datasets/"),
    "dataset": ("mira", f"/datasets/{DATASET}/"),
    "promote": ("mira", f"/models/{MODEL}/versions/2/promote/"),
    "approvals": ("cora", "/approvals/"),
    "approval": ("cora", "/approvals/3/"),
    "approval-done": ("jonas", "/approvals/1/"),
    "endpoints": ("omar", "/endpoints/"),
    "endpoint": ("omar", f"/endpoints/{ENDPOINT}/"),
    "traffic": ("omar", f"/endpoints/{ENDPOINT}/traffic/"),
    "guardrails": ("omar", f"/endpoints/{ENDPOINT}/guardrails/"),
    "guardrail-new": ("omar", f"/endpoints/{ENDPOINT}/guardrails/new/"),
    "endpoint-settings": ("omar", f"/endpoints/{ENDPOINT}/settings/"),
    "try": ("jonas", f"/endpoints/{ENDPOINT}/try/"),
    "predictions": ("jonas", f"/endpoints/{ENDPOINT}/predictions/"),
    "provenance": ("cora", f"/endpoints/{ENDPOINT}/provenance/?at=2099-01-01T00:00"),
    "audit": ("cora", "/audit/"),
    "audit-event": ("cora", "/audit/events/20/"),
    "audit-history": ("cora", "/audit/history/?of=registry.registeredmodel:1,registry.modelversion:1"),
    "risk": ("mira", f"/models/{MODEL}/risk/"),
    "card": ("mira", f"/models/{MODEL}/versions/2/card/"),
    "card-edit": ("mira", f"/models/{MODEL}/versions/2/card/edit/"),
    "policies": ("cora", "/policies/"),
    "policy": ("cora", "/policies/production/high/"),
    "policy-propose": ("cora", "/policies/production/high/propose/"),
    "checks": ("cora", "/policies/checks/"),
    "groups": ("ada", "/policies/groups/"),
    "protection": ("cora", "/policies/protection/"),
    "packs": ("cora", "/evidence-packs/"),
    "pack-new": ("cora", f"/evidence-packs/new/?kind=ENDPOINT&name={ENDPOINT}"),
    "requirements": ("cora", "/requirements/"),
    "jobs": ("mira", "/jobs/"),
    "job": ("mira", "/jobs/1/"),
    "security": ("cora", "/security/"),
    "members": ("ada", "/settings/members/"),
    "sign-in-settings": ("ada", "/settings/sign-in/"),
    "service-accounts": ("ada", "/settings/service-accounts/"),
    "tokens": ("jonas", "/settings/tokens/"),
}


def shoot(folder: Path, web: str, accounts: Path, only: set[str]) -> None:
    """Write one PNG for each page, theme and width."""
    passwords = {line.split()[-2].partition("@")[0]: line.split()[-1] for line in accounts.read_text().splitlines()}
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_ARGUMENTS)
        people: dict[str, BrowserContext] = {}
        for name, (who, address) in {"sign-in": ("", "/sign-in/"), **PAGES}.items():
            if only and name not in only:
                continue
            if who not in people:
                people[who] = browser.new_context(base_url=web)
                if who:
                    sign_in(people[who].new_page(), who, passwords[who])
            page = people[who].new_page()
            problems: list[str] = []
            page.on("console", lambda m, seen=problems: seen.append(m.text) if m.type == "error" else None)
            for theme in ("light", "dark"):
                for width, height in ((1440, 900), (390, 844)):
                    page.set_viewport_size({"width": width, "height": height})
                    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
                    page.goto(address)
                    page.wait_for_timeout(1_800 if "endpoint" in name or name == "inbox" else 600)
                    page.screenshot(path=folder / f"{name}-{theme}-{width}.png", full_page=width == 390)
            print(json.dumps({"page": name, "console errors": problems}))
            page.close()
        browser.close()


def sign_in(page: Page, who: str, password: str) -> None:
    """By the form, as a person does."""
    page.goto("/sign-in/")
    page.get_by_label("Email").fill(f"{who}@demo.example")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/")
    page.close()


def main() -> None:
    """Start the demo in a folder of its own, let it live for a minute, and take the pictures."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "var/shots")
    if find_chromium() is None:
        sys.exit("Chromium is not installed (Debian: apt-get install chromium).")
    with tempfile.TemporaryDirectory(prefix="countersign-shots-") as temporary:
        Path(temporary).chmod(0o711)
        var = Path(temporary) / "var"
        with running_stack(var, demo=True) as stack:
            time.sleep(60)  # a chart needs some traffic
            shoot(folder, stack.web, var / "demo-accounts.txt", set(sys.argv[2:]))


if __name__ == "__main__":
    main()

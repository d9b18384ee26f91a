"""Passkeys and an authenticator app in a real browser, under the page's own security policy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.accounts.test_sign_in import code_of
from tests.browser.stack import Stack

pytestmark = pytest.mark.browser

EMAIL, PASSWORD = "pia@example.com", "correct-horse-battery"
AUTHENTICATOR = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}


@pytest.fixture
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    """A browser with a passkey device, on the name that browsers accept without https."""
    context = browser.new_context(base_url=stack.web.replace("127.0.0.1", "localhost"))
    context.set_default_timeout(20_000)
    page = context.new_page()
    device = context.new_cdp_session(page)
    device.send("WebAuthn.enable")
    device.send("WebAuthn.addVirtualAuthenticator", {"options": AUTHENTICATOR})
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    assert complaints == []
    context.close()


def test_a_passkey_is_made_signs_in_and_confirms(page: Page, stack: Stack) -> None:
    stack.manage("create_admin", EMAIL, "Pia Key", "--team", "keys", stdin=f"{PASSWORD}\n")
    page.goto("/sign-in/")
    page.get_by_label("Email").fill(EMAIL)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Inbox")).to_be_visible()

    page.goto("/security/passkey/")
    page.get_by_label("Your password").fill(PASSWORD)
    page.get_by_role("button", name="Confirm").click()
    page.get_by_label("Name").fill("test device")
    page.get_by_role("button", name="Set up").click()
    expect(page.locator("#recovery-codes")).to_be_visible()
    page.goto("/security/")
    expect(page.get_by_role("rowheader", name="test device")).to_be_visible()

    page.goto("/security/authenticator-app/")
    secret = page.locator("#totp-secret").inner_text()
    page.get_by_label("The code that the app shows").fill(code_of(secret))
    page.get_by_role("button", name="Set up").click()
    expect(page.get_by_text("Your authenticator app is set up")).to_be_visible()

    page.locator("details.menu.up summary").click()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("button", name="Use a passkey").click()
    expect(page.get_by_role("heading", name="Inbox")).to_be_visible()

    page.goto("/security/confirm/")
    page.get_by_label("Your password").fill(PASSWORD)
    page.get_by_role("button", name="Use your passkey").click()
    expect(page.get_by_text("Your passkey answered")).to_be_visible()
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_role("heading", name="Second factors")).to_be_visible()

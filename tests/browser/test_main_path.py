"""The main job, walked in Chromium: upload, evaluate, countersign, serve, watch, prove, roll back."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from console.demo_data import DemoModel, breast_cancer
from tests.browser.stack import Stack

pytestmark = pytest.mark.browser

PASSWORD = "walnut-orbit-lantern"
NAME, ENDPOINT, DATASET = "tumour-classifier", "tumour-triage", "tumour-holdout"


@dataclass
class Person:
    """Somebody with a browser of their own, whose console must stay clean."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def go(self, address: str) -> None:
        self.page.goto(address)

    def choose(self, text: str) -> None:
        self.page.get_by_role("link", name=text, exact=True).first.click()

    def press(self, text: str) -> None:
        self.page.get_by_role("button", name=text).first.click()

    def check_access(self) -> None:
        """axe finds nothing, in neither theme."""
        for theme in ("light", "dark"):
            self.page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
            self.page.wait_for_timeout(300)  # colours may still be on their way from one theme to the other
            found = Axe().run(self.page)
            assert found.violations_count == 0, f"{self.page.url} ({theme}): {found.generate_report()}"


class Cast:
    """People by name, each in a browser context."""

    def __init__(self, browser: Browser, stack: Stack) -> None:
        self._browser, self._stack = browser, stack
        self._people: dict[str, Person] = {}

    def __getitem__(self, name: str) -> Person:
        if name not in self._people:
            context = self._browser.new_context(base_url=self._stack.web, viewport={"width": 1440, "height": 900})
            context.set_default_timeout(20_000)
            person = Person(context.new_page())
            person.page.on("console", lambda m: person.complaints.append(m.text) if m.type == "error" else None)
            person.page.on("pageerror", lambda error: person.complaints.append(str(error)))
            self._people[name] = person
        return self._people[name]

    def __iter__(self) -> Iterator[Person]:
        return iter(self._people.values())


@pytest.fixture(scope="module")
def cast(browser: Browser, stack: Stack) -> Cast:
    return Cast(browser, stack)


@pytest.fixture(scope="module")
def demo() -> DemoModel:
    return breast_cancer()


def sign_in(person: Person, email: str) -> None:
    person.go("/")
    person.page.get_by_label("Email").fill(email)
    person.page.get_by_label("Password").fill(PASSWORD)
    person.press("Sign in")
    expect(person.page.get_by_role("heading", name="Inbox")).to_be_visible()


def test_an_admin_invites_the_team(cast: Cast, stack: Stack) -> None:
    stack.manage("create_admin", "ada@example.com", "Ada Minh", stdin=f"{PASSWORD}\n")
    admin = cast["ada"]
    sign_in(admin, "ada@example.com")
    people = {
        "mira": ("Mira Sato", "Data scientist"),
        "cora": ("Cora Blom", "Compliance officer"),
        "omar": ("Omar Reyes", "Operator"),
        "jonas": ("Jonas Akin", "Analyst"),
    }
    for short, (name, role) in people.items():
        admin.go("/settings/members/")
        admin.page.get_by_label("Email").fill(f"{short}@example.com")
        admin.page.get_by_label(role).check()
        admin.press("Invite")
        link = admin.page.locator("code[data-copy]").first.inner_text()
        guest = cast[short]
        guest.go(link)
        guest.page.get_by_label("Name").fill(name)
        guest.page.get_by_label("Password").fill(PASSWORD)
        guest.press("Join")
        expect(guest.page.get_by_role("heading", name="Inbox")).to_be_visible()
    admin.go("/settings/members/")
    expect(admin.page.get_by_role("rowheader", name="Cora Blom")).to_be_visible()
    admin.check_access()


def push(person: Person, tmp_path: Path, content: bytes, notes: str, number: int) -> None:
    file = tmp_path / f"v{number}.onnx"
    file.write_bytes(content)
    person.go(f"/models/{NAME}/versions/new/")
    person.page.get_by_label("ONNX file").set_input_files(file)
    person.page.get_by_label("Notes").fill(notes)
    person.press("Upload")
    expect(person.page).to_have_url(re.compile(rf"/models/{NAME}/versions/{number}/"))
    expect(person.page.locator(".page-head .pill").first).to_contain_text("Ready", timeout=30_000)


def evaluate(person: Person, number: int) -> None:
    person.go(f"/models/{NAME}/versions/{number}/evaluation/")
    expect(person.page.get_by_label("Dataset version")).to_contain_text(DATASET)
    person.page.get_by_label("Target column").select_option("diagnosis")
    person.page.get_by_role("button", name=re.compile("Evaluate|Start|Run")).first.click()
    expect(person.page.get_by_role("rowheader", name="ROC AUC").first).to_be_visible(timeout=60_000)


def test_a_data_scientist_pushes_and_evaluates(cast: Cast, demo: DemoModel, tmp_path: Path) -> None:
    mira = cast["mira"]
    mira.go("/models/")
    mira.choose("Register a model")
    mira.page.get_by_label("Name").fill(NAME)
    mira.page.get_by_label("Task").select_option("CLASSIFICATION")
    mira.press("Register")
    push(mira, tmp_path, demo.versions[0][0], "Random forest", 1)
    expect(mira.page.get_by_role("rowheader", name="probabilities")).to_be_visible()
    mira.check_access()

    holdout = tmp_path / "holdout.csv"
    holdout.write_bytes(demo.holdout_csv)
    mira.go("/datasets/new/")
    mira.page.get_by_label("Name").fill(DATASET)
    mira.page.locator("input[type=file]").set_input_files(holdout)
    mira.press("Upload")
    expect(mira.page).to_have_url(re.compile(rf"/datasets/{DATASET}/"))
    expect(mira.page.get_by_text("Ready").first).to_be_visible(timeout=30_000)

    evaluate(mira, 1)
    chart = mira.page.locator("figure.chart .plot svg.main-svg").first
    expect(chart).to_be_visible()
    box = chart.bounding_box()
    assert box is not None
    assert box["width"] > 200
    assert box["height"] > 150
    assert mira.page.locator("figure.chart .plot path.js-line").first.evaluate("p => p.getTotalLength() > 50")
    mira.check_access()


def test_a_hostile_file_is_rejected_with_a_reason(cast: Cast, tmp_path: Path) -> None:
    mira = cast["mira"]
    file = tmp_path / "model.onnx"
    file.write_bytes(b"\x80\x04\x95pickle")
    mira.go(f"/models/{NAME}/versions/new/")
    mira.page.get_by_label("ONNX file").set_input_files(file)
    mira.press("Upload")
    expect(mira.page.get_by_role("alert")).to_contain_text("pickle")
    mira.complaints.clear()  # Chromium reports the 422 itself


def test_the_promotion_is_countersigned_by_somebody_else(cast: Cast) -> None:
    omar, mira, cora = cast["omar"], cast["mira"], cast["cora"]
    omar.go("/endpoints/new/")
    omar.page.get_by_label("Name").fill(ENDPOINT)
    omar.press("Create endpoint")
    expect(omar.page.get_by_role("heading", name=ENDPOINT)).to_be_visible()

    request_promotion(mira, 1)
    expect(mira.page.get_by_text("You requested this promotion, so somebody else must decide.")).to_be_visible()

    cora.go("/")
    cora.page.get_by_role("link", name=re.compile("^Review")).first.click()
    expect(cora.page.get_by_text("Evaluation evidence")).to_be_visible()
    cora.check_access()
    decide(cora, "not my password")
    expect(cora.page.get_by_role("alert")).to_contain_text("does not fit")
    cora.complaints.clear()
    decide(cora, PASSWORD)
    expect(cora.page.locator("#rollout")).to_contain_text("Live", timeout=30_000)
    expect(cora.page.get_by_text("I have reviewed the evidence and approve this promotion")).to_be_visible()


def request_promotion(person: Person, number: int) -> None:
    person.go(f"/models/{NAME}/versions/{number}/")
    person.choose("Request promotion")
    person.page.get_by_label("Endpoint").select_option(label=ENDPOINT)
    person.page.get_by_label("Why").fill("Better than the rule of thumb.")
    person.press("Submit for approval")
    expect(person.page.get_by_text("Submitted").first).to_be_visible()


def decide(person: Person, password: str) -> None:
    person.page.get_by_label("Approve", exact=True).check()
    person.page.get_by_label("I have reviewed the evidence and approve this promotion").check()
    person.page.get_by_label("Comment").fill("The intervals are convincing.")
    person.page.get_by_label("Your password").fill(password)
    person.press("Sign decision")


def test_an_analyst_predicts_and_finds_the_prediction(cast: Cast, stack: Stack) -> None:
    jonas = cast["jonas"]
    jonas.go(f"/endpoints/{ENDPOINT}/try/")
    jonas.press("Predict")
    expect(jonas.page.get_by_text("200 OK")).to_be_visible()
    expect(jonas.page.locator("pre")).to_contain_text("probabilities")
    request_id = jonas.page.locator("#try a code").first.inner_text()

    jonas.go(f"/endpoints/{ENDPOINT}/")
    live = jonas.page.locator("#live, #endpoint-live, [id^=live]").first
    expect(live).to_contain_text("p99", timeout=20_000)
    expect(jonas.page.locator("figure.chart .plot svg.main-svg").first).to_be_visible(timeout=20_000)
    jonas.check_access()

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        jonas.go(f"/endpoints/{ENDPOINT}/predictions/?request_id={request_id}")
        if jonas.page.locator("table").get_by_text(request_id[:8]).count():
            break
        time.sleep(1)
    expect(jonas.page.locator("table").get_by_text(request_id[:8]).first).to_be_visible()
    jonas.check_access()


@dataclass
class Load:
    """tritonclient in a thread, one request after the other, until stopped."""

    stack: Stack
    token: str
    row: np.ndarray
    versions: list[tuple[float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    is_stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        client = triton.InferenceServerClient(self.stack.inference.removeprefix("http://"))
        tensor = triton.InferInput("X", list(self.row.shape), "FP32")
        tensor.set_data_from_numpy(self.row)
        headers = {"Authorization": f"Bearer {self.token}"}
        while not self.is_stopped.is_set():
            try:
                answer = client.infer(ENDPOINT, [tensor], headers=headers).get_response()
                self.versions.append((time.monotonic(), answer["model_version"]))
            except Exception as error:
                self.failures.append(repr(error))


def test_a_new_version_and_a_rollback_drop_no_request(
    cast: Cast, stack: Stack, demo: DemoModel, tmp_path: Path
) -> None:
    mira, cora, omar, jonas = cast["mira"], cast["cora"], cast["omar"], cast["jonas"]
    push(mira, tmp_path, demo.versions[1][0], "Logistic regression", 2)
    evaluate(mira, 2)
    request_promotion(mira, 2)

    jonas.go("/settings/tokens/")
    jonas.page.get_by_label("Name").fill("load")
    jonas.page.get_by_label("Call inference endpoints").check()
    jonas.press("Create token")
    token = jonas.page.locator("#new-token").inner_text()
    time.sleep(1.5)  # the token is in the manifest within a second

    load = Load(stack, token, demo.features[:1])
    thread = threading.Thread(target=load.run)
    thread.start()
    try:
        cora.go("/")
        cora.page.get_by_role("link", name=re.compile("^Review")).first.click()
        expect(cora.page.get_by_text("Champion").first).to_be_visible()
        decide(cora, PASSWORD)
        expect(cora.page.locator("#rollout")).to_contain_text("Live", timeout=30_000)
        _wait_for_version(load, "2")
        omar.go(f"/endpoints/{ENDPOINT}/")
        pressed_at = time.monotonic()
        omar.page.get_by_role("button", name=re.compile("Roll back")).first.click()
        confirm = omar.page.locator("dialog[open] button.btn-danger, dialog[open] button[type=submit]")
        if confirm.count():
            pressed_at = time.monotonic()
            confirm.first.click()
        expect(omar.page.get_by_text("answers everything")).to_be_visible()
        _wait_for_version(load, "1", after=pressed_at)
    finally:
        load.is_stopped.set()
        thread.join(10)
    assert load.failures == []
    rolled_back_at = next(at for at, version in load.versions if version == "1" and at > pressed_at)
    last_of_two = max(at for at, version in load.versions if version == "2")
    assert rolled_back_at - pressed_at < 1.0
    assert last_of_two - pressed_at < 1.0


def _wait_for_version(load: Load, number: str, *, after: float = 0.0) -> None:
    deadline = time.monotonic() + 20
    while not any(version == number and at > after for at, version in load.versions[-50:]):
        assert time.monotonic() < deadline, f"version {number} never answered: {load.failures[:3]}"
        time.sleep(0.02)


def test_an_auditor_can_prove_it(cast: Cast, stack: Stack) -> None:
    cora = cast["cora"]
    cora.go("/audit/?action=promotion.")
    expect(cora.page.get_by_role("cell", name="promotion.approved").first).to_be_visible()
    expect(cora.page.get_by_role("cell", name="Cora Blom").first).to_be_visible()
    cora.check_access()
    assert "OK: " in stack.manage("verify_audit")


def test_pages_work_on_a_phone(cast: Cast) -> None:
    page = cast["jonas"].page
    page.set_viewport_size({"width": 390, "height": 844})
    for address in ("/", "/models/", f"/models/{NAME}/versions/1/", f"/endpoints/{ENDPOINT}/", "/approvals/1/"):
        page.goto(address)
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{address} is {overflow} px too wide"
    page.set_viewport_size({"width": 1440, "height": 900})


def test_nobodys_console_complained(cast: Cast) -> None:
    assert {complaint for person in cast for complaint in person.complaints} == set()

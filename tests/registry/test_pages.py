"""The registry's pages as the different people see them."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse

from apps.jobs.runner import run_inline
from apps.registry.models import ModelVersion
from tests import builders
from tests.conftest import Cast
from tests.registry import hostile

QUERIES = {"/models/": 8, "/models/busy/": 9}


def page(cast: Cast, role: str, name: str, *args: Any, **query: str) -> Any:
    """GET a page of the registry."""
    return cast.browser(role).get(reverse(f"registry:{name}", args=args), query)


def test_upload_in_the_browser(cast: Cast) -> None:
    """Without scripts a redirect; with htmx the instruction to load the version's page."""
    model = builders.model(cast)
    url = reverse("registry:version-upload", args=[model.name])
    browser = cast.browser("data_scientist")
    file = SimpleUploadedFile("m.onnx", hostile.harmless())
    response = browser.post(url, {"file": file, "notes": "First"})
    assert response.status_code == 302
    assert response["Location"] == reverse("registry:version-detail", args=[model.name, 1])
    file = SimpleUploadedFile("m.onnx", hostile.harmless(bias=2.0))
    response = browser.post(url, {"file": file}, headers={"HX-Request": "true"})
    assert response.status_code == 204
    assert response["HX-Redirect"] == reverse("registry:version-detail", args=[model.name, 2])


def test_a_refused_upload_says_why(cast: Cast, settings: Any) -> None:
    """In the form, with the right status; htmx gets 422, because it shows nothing else."""
    model = builders.model(cast)
    url = reverse("registry:version-upload", args=[model.name])
    browser = cast.browser("data_scientist")
    response = browser.post(url, {"file": SimpleUploadedFile("m.onnx", hostile.a_pickle())})
    assert response.status_code == 422
    assert "never opened" in response.text
    assert browser.post(url, {}).status_code == 422
    settings.UPLOAD_MAX_BYTES = 10
    for headers, status in (({}, 413), ({"HX-Request": "true"}, 422)):
        file = SimpleUploadedFile("m.onnx", hostile.harmless())
        response = browser.post(url, {"file": file}, headers=headers)
        assert response.status_code == status
        assert "cap of" in response.text


def test_a_version_through_its_states(cast: Cast) -> None:
    """Progress while it is validated, facts when it is ready, and a reason beside a button that does not work."""
    version = builders.uploaded_version(cast)
    place = (version.model.name, version.number)
    text = page(cast, "data_scientist", "version-detail", *place).text
    assert "It is being validated." in text
    assert reverse("jobs:job-progress", args=[version.job_id]) in text

    assert version.job is not None
    run_inline(version.job)
    promote = reverse("promotions:request-create", args=place)
    for role in ("data_scientist", "operator"):
        assert promote in page(cast, role, "version-detail", *place).text
    for role in ("analyst", "compliance_officer", "admin"):
        text = page(cast, role, "version-detail", *place).text
        assert promote not in text
        assert "A data scientist or an operator can request its promotion." in text
    text = page(cast, "analyst", "version-schema", *place).text
    assert "FP32" in text
    assert "[-1, 3]" in text

    response = cast.browser("data_scientist").post(reverse("registry:version-archive", args=place), follow=True)
    assert "It is archived." in response.text


def test_a_rejected_version_says_what_to_do(cast: Cast) -> None:
    """The reason of the sandbox, and the way on."""
    version = builders.uploaded_version(cast, content=bytes(hostile.custom_operator().SerializeToString()))
    assert version.job is not None
    run_inline(version.job)
    text = page(cast, "data_scientist", "version-detail", version.model.name, 1).text
    assert "of “evil.ops” is not served" in text
    assert "upload the next version" in text
    assert "It did not pass validation." in text


def test_markup_in_a_model_is_text(cast: Cast) -> None:
    """Names and metadata of the file, notes, alias: nothing of it becomes markup on any page."""
    version = builders.uploaded_version(cast, content=bytes(hostile.markup_everywhere().SerializeToString()))
    assert version.job is not None
    run_inline(version.job)
    version = ModelVersion.objects.get(pk=version.pk)
    assert version.state == "READY"
    assert version.producer == hostile.MARKUP
    for name in ("version-detail", "version-schema"):
        text = page(cast, "analyst", name, version.model.name, 1).text
        assert hostile.MARKUP not in text
        assert "&lt;script&gt;alert" in text


def test_aliases_in_the_browser(cast: Cast) -> None:
    """Set, shown, refused."""
    version = builders.ready_version(cast)
    url = reverse("registry:alias-set", args=[version.model.name, 1])
    browser = cast.browser("data_scientist")
    assert "@challenger" in browser.post(url, {"name": "challenger"}, follow=True).text
    refused = browser.post(url, {"name": "Not a slug"})
    assert refused.status_code == 422
    assert "Use lower-case letters" in refused.text
    assert "@challenger is v1" in page(cast, "analyst", "model-detail", version.model.name).text


def test_the_other_team_finds_nothing(cast: Cast) -> None:
    """404 on every page and action, for somebody with every role elsewhere."""
    version = builders.ready_version(cast)
    browser = cast.browser("outsider")
    place = (version.model.name, 1)
    for name, args in (
        ("model-detail", place[:1]),
        ("version-upload", place[:1]),
        ("version-detail", place),
        ("version-schema", place),
        ("version-download", place),
    ):
        assert browser.get(reverse(f"registry:{name}", args=args)).status_code == 404, name
    for name in ("alias-set", "version-archive"):
        assert browser.post(reverse(f"registry:{name}", args=place), {"name": "x"}).status_code == 404, name
    assert version.model.name not in browser.get(reverse("registry:model-list")).text


def test_lists_ask_the_same_number_of_queries_however_long(cast: Cast, django_assert_num_queries: Any) -> None:
    """Pinned: the session, the person, the team, the inbox's count and what the page itself needs."""
    model = builders.model(cast, "busy")
    for _ in range(3):
        builders.uploaded_version(cast, model)
    browser = cast.browser("analyst")
    for url, extra in ((reverse("registry:model-list"), builders.model), (model.get_absolute_url(), None)):
        browser.get(url)
        with django_assert_num_queries(QUERIES[url]):
            browser.get(url)
        for _ in range(3):
            extra(cast) if extra else builders.uploaded_version(cast, model)
        with django_assert_num_queries(QUERIES[url]):
            browser.get(url)


@pytest.mark.parametrize(("query", "status"), [({"q": "BUS"}, 200), ({"q": "nul\0"}, 422), ({"page": "-1"}, 200)])
def test_filtering_the_list(cast: Cast, query: dict[str, str], status: int) -> None:
    """By a part of the name, in any case; what cannot be a name is refused."""
    builders.model(cast, "busy")
    response = page(cast, "analyst", "model-list", **query)
    assert response.status_code == status
    assert ("busy" in response.text) == (status == 200)

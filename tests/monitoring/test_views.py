"""The pages of traffic and of the inference log, as a browser and htmx ask for them."""

from __future__ import annotations

import html
import json
import re
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from django.conf import settings
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from apps.accounts.models import ApiToken
from apps.deployments.models import Endpoint, Guardrail
from apps.monitoring.traffic import reported_until
from tests.conftest import Cast
from tests.monitoring.conftest import NOON, Log, deploy, roll_up, rows

HTMX = {"HX-Request": "true"}


def live(endpoint: Endpoint, window: str = "5m") -> str:
    return reverse("monitoring:endpoint-live", args=[endpoint.name]) + f"?window={window}"


def predictions(endpoint: Endpoint, **query: str) -> str:
    return reverse("monitoring:prediction-list", args=[endpoint.name], query=query)


def detail(endpoint: Endpoint, request_id: str) -> str:
    return reverse("monitoring:prediction-detail", args=[endpoint.name, request_id])


def chart(text: str, name: str) -> dict[str, Any]:
    found = re.search(rf'id="{name}" data-chart="([^"]+)"', text)
    assert found
    figure: dict[str, Any] = json.loads(html.unescape(found[1]))
    return figure


class TestLive:
    def test_charts_and_tiles_of_two_versions(self, cast: Cast, endpoint: Endpoint) -> None:
        until = reported_until()
        old = deploy(cast, endpoint, 1, until - timedelta(days=1), retired_at=until - timedelta(seconds=100))
        new = deploy(cast, endpoint, 2, until - timedelta(seconds=100))
        for second in range(60, 160):
            roll_up(old if second > 100 else new, until - timedelta(seconds=second), [2_000] * 4)
        for second in range(1, 11):
            roll_up(new, until - timedelta(seconds=second), [2_000] * 4, errors=1)

        text = cast.browser("analyst").get(live(endpoint), headers=HTMX).text

        assert 'id="live"' in text
        assert 'hx-trigger="every 2s"' in text
        assert "<html" not in text
        rate = chart(text, "live-rate")
        assert [(trace["name"], trace["line"]["color"], trace["line"]["dash"]) for trace in rate["data"]] == [
            ("v2", "c1", "solid"),
            ("v1", "c2", "dash"),
        ]
        assert max(value for value in rate["data"][0]["y"] if value is not None) == 4.0
        assert [note["text"] for note in rate["layout"]["annotations"]] == ["v2"]
        assert rate["layout"]["shapes"][0]["line"]["dash"] == "dot"
        latency = chart(text, "live-latency")
        assert [trace["name"] for trace in latency["data"]][:3] == ["v2 p50", "v2 p95", "v2 p99"]
        assert max(value for value in latency["data"][2]["y"] if value) == pytest.approx(2.0, rel=0.45)
        assert max(value for value in chart(text, "live-errors")["data"][0]["y"] if value) == 25.0
        assert "style=" not in text

    def test_the_window_goes_on_in_the_polling_url(self, cast: Cast, endpoint: Endpoint) -> None:
        deployment = deploy(cast, endpoint, 1, NOON)
        roll_up(deployment, reported_until() - timedelta(minutes=30), [1_000])
        browser = cast.browser("analyst")

        hour = browser.get(live(endpoint, "1h"), headers=HTMX).text
        assert f'hx-get="{live(endpoint, "1h")}" hx-trigger="every 5s"' in hour
        assert "At most" in hour
        assert "No requests in this window." in browser.get(live(endpoint), headers=HTMX).text
        refused = browser.get(live(endpoint, "1y"))
        assert refused.status_code == 422
        assert "5m, 1h, 24h" in html.unescape(refused.text)

    def test_without_traffic_it_shows_the_command_of_the_first_prediction(self, cast: Cast, endpoint: Endpoint) -> None:
        deploy(cast, endpoint, 1, NOON)

        text = html.unescape(cast.browser("analyst").get(live(endpoint)).text)

        assert "<html" in text
        assert f"{settings.INFERENCE_URL}/v2/models/credit-risk/infer" in text
        body = re.search(r"-d '(.+)' ", text)
        assert body
        assert json.loads(body[1])["inputs"][0]["name"] == "age"
        assert "data-chart" not in text

    def test_nothing_promoted_yet(self, cast: Cast, endpoint: Endpoint) -> None:
        assert "Promote a model version" in cast.browser("analyst").get(live(endpoint)).text

    def test_shadows_are_apart(self, cast: Cast, endpoint: Endpoint) -> None:
        until = reported_until()
        champion = deploy(cast, endpoint, 1, until - timedelta(minutes=2))
        shadow = deploy(cast, endpoint, 2, until - timedelta(minutes=2), role="shadow", weight=0)
        for second in range(1, 21):
            roll_up(champion, until - timedelta(seconds=second), [2_000] * 5, cpu_us=5_000)
            roll_up(shadow, until - timedelta(seconds=second), [9_000] * 5, errors=5)

        response = cast.browser("analyst").get(live(endpoint), headers=HTMX)

        assert response.context["tiles"].requests == 100
        assert response.context["tiles"].error_percent == 0
        assert [trace["name"] for trace in chart(response.text, "live-rate")["data"]] == ["v1"]
        first, second_row = response.context["versions"]
        assert (first.share_percent, first.sample.cpu_s_per_thousand) == (100.0, 1.0)
        assert (second_row.is_shadow, second_row.share_percent, second_row.sample.error_percent) == (True, None, 100.0)
        overview = cast.browser("analyst").get(reverse("monitoring:overview"), headers=HTMX)
        assert overview.context["rows"][0]["totals"].requests == 100

    def test_cpu_is_money_where_a_price_is_set(self, cast: Cast, endpoint: Endpoint, settings: Any) -> None:
        settings.CPU_HOUR_PRICE, settings.CURRENCY = 0.036, "EUR"
        roll_up(deploy(cast, endpoint, 1, NOON), reported_until() - timedelta(seconds=9), [1_000], cpu_us=1_000)
        text = cast.browser("analyst").get(live(endpoint), headers=HTMX).text
        assert "EUR per thousand" in text
        assert '<td class="num">0.000010</td>' in text

    def test_violations_are_counted_by_rule(self, cast: Cast, endpoint: Endpoint) -> None:
        until = reported_until()
        deployment = deploy(cast, endpoint, 1, NOON)
        for name in ("bounded", "known"):
            Guardrail.objects.create(endpoint=endpoint, name=name, requires="age > 0")
        roll_up(deployment, until - timedelta(minutes=5), [1_000], guardrails={"bounded": 3, "removed": 9})
        roll_up(deployment, until - timedelta(hours=5), [1_000], guardrails={"bounded": 4})
        roll_up(deployment, until - timedelta(hours=25), [1_000], guardrails={"bounded": 5})

        response = cast.browser("analyst").get(reverse("monitoring:guardrail-counts", args=[endpoint.name]))

        counted = [(rule.name, rule.last_hour, rule.last_day) for rule in response.context["rules"]]
        assert counted == [("bounded", 3, 7), ("known", 0, 0)]
        assert sum(chart(response.text, "violations")["data"][0]["y"]) == 7
        assert "7 violations in the last 24 hours" in response.text

    def test_the_query_count_does_not_grow_with_the_traffic(self, cast: Cast, endpoint: Endpoint) -> None:
        until = reported_until()
        for number in range(1, 4):
            part = {"weight": 80} if number == 1 else {"weight": 10, "role": "canary"}
            deployment = deploy(cast, endpoint, number, until - timedelta(minutes=2), **part)
            for second in range(20):
                roll_up(deployment, until - timedelta(seconds=second), [1_000])
        assert queries(cast.browser("analyst"), live(endpoint), headers=HTMX) == 8


class TestOverview:
    def test_a_row_for_each_endpoint_with_a_sparkline(self, cast: Cast, endpoint: Endpoint) -> None:
        deployment = deploy(cast, endpoint, 3, NOON)
        roll_up(deployment, reported_until() - timedelta(seconds=5), [4_000] * 30)

        text = cast.browser("analyst").get(reverse("monitoring:overview"), headers=HTMX).text

        assert "risk v3" in text
        assert re.search(r'<path d="M0\.0 [\d.]+L', text)
        assert '<td class="num">3.0</td>' in text
        assert '<td class="num">30</td>' in text

    def test_nothing_without_an_endpoint(self, cast: Cast) -> None:
        assert cast.browser("analyst").get(reverse("monitoring:overview")).content == b""

    def test_another_teams_endpoints_are_not_in_it(self, cast: Cast, endpoint: Endpoint) -> None:
        assert cast.browser("outsider").get(reverse("monitoring:overview")).content == b""

    def test_the_query_count_does_not_grow_with_the_endpoints(self, cast: Cast, endpoint: Endpoint) -> None:
        browser = cast.browser("analyst")
        few = queries(browser, reverse("monitoring:overview"))
        for number in range(5):
            more = Endpoint.objects.create(team=cast.team, name=f"more-{number}", created_by=cast.operator.user)
            deploy(cast, more, number + 1, NOON)
        assert queries(browser, reverse("monitoring:overview")) == few == 6


class TestPredictionList:
    def test_rows_with_filters_in_the_query_string(self, cast: Cast, endpoint: Endpoint, log: Log) -> None:
        deploy(cast, endpoint, 1, NOON)
        log.segment(endpoint, [*rows(1, 2), *rows(3, outcome="failed", request_id="a/b c?")])
        browser = cast.browser("analyst")

        everything = browser.get(predictions(endpoint))
        assert everything.status_code == 200
        assert everything.text.count('scope="row"') == 3
        assert detail(endpoint, "a/b c?") in everything.text
        failed = browser.get(predictions(endpoint, outcome="failed", since="2026-03-04T12:00:00"), headers=HTMX)
        assert failed.text.count('scope="row"') == 1
        assert "<html" not in failed.text
        assert "HX-Request" in failed["Vary"]

    def test_older_keeps_the_filters(self, cast: Cast, endpoint: Endpoint, log: Log) -> None:
        log.segment(endpoint, rows(*range(120)))
        browser = cast.browser("analyst")
        url, seen = predictions(endpoint, outcome="ok"), 0
        for expected in (50, 50, 20):
            text = browser.get(url).text
            assert text.count('scope="row"') == expected
            seen += expected
            older = re.search(r'href="(\?[^"]+)" rel="next"', text)
            url = predictions(endpoint) + html.unescape(older[1]) if older else ""
            assert not older or "outcome=ok" in url
        assert (seen, url) == (120, "")

    @pytest.mark.parametrize(
        "query",
        [{"since": "x"}, {"outcome": "x"}, {"model_version": "0"}, {"since": "2026-03-05", "until": "2026-03-04"}],
    )
    def test_a_filter_that_is_none_is_explained(self, cast: Cast, endpoint: Endpoint, query: dict[str, str]) -> None:
        response = cast.browser("analyst").get(predictions(endpoint, **query))
        assert response.status_code == 422
        assert "error-summary" in response.text

    def test_a_place_that_is_none_is_refused(self, cast: Cast, endpoint: Endpoint) -> None:
        assert cast.browser("analyst").get(predictions(endpoint, before="x")).status_code == 422

    def test_a_damaged_segment_is_named(self, cast: Cast, endpoint: Endpoint, log: Log) -> None:
        log.segment(endpoint, rows(1))
        bad = log.segment(endpoint, rows(2))
        (settings.INSTALLATION.store / bad.path).write_bytes(b"")

        text = cast.browser("analyst").get(predictions(endpoint)).text
        assert bad.path in text
        assert text.count('scope="row"') == 1

    def test_the_query_count_does_not_grow_with_the_log(self, cast: Cast, endpoint: Endpoint, log: Log) -> None:
        browser = cast.browser("analyst")
        log.segment(endpoint, rows(1))
        few = queries(browser, predictions(endpoint))
        for second in range(20):
            log.segment(endpoint, rows(second))
        assert queries(browser, predictions(endpoint)) == few == 10  # three of them write that it was read


class TestShadows:
    def test_copies_are_compared_with_the_answers(self, cast: Cast, endpoint: Endpoint, log: Log) -> None:
        seconds = range(4)
        answers = {"output.score": pa.array([0.1, 0.2, 0.3, 0.4]), "output.label": pa.array([1, 1, 0, 0])}
        log.segment(endpoint, rows(*seconds), **answers)
        copies = rows(*seconds, role="shadow", outcome="shadow")
        log.segment(
            endpoint,
            copies,
            version=2,
            **{"output.score": pa.array([0.1, 0.3, 0.3, 0.6]), "output.label": pa.array([1, 0, 0, 0])},
        )

        response = cast.browser("analyst").get(reverse("monitoring:shadow-agreement", args=[endpoint.name]))

        label, score = response.context["rows"]
        assert (label.version, label.rows, label.equal_percent, label.mean_difference) == ("risk v2", 4, 75.0, None)
        assert (score.output, score.equal_percent) == ("score", 50.0)
        assert score.mean_difference == pytest.approx(0.075)

    def test_without_copies(self, cast: Cast, endpoint: Endpoint) -> None:
        response = cast.browser("analyst").get(reverse("monitoring:shadow-agreement", args=[endpoint.name]))
        assert "No copy is in the log" in response.text


class TestReplay:
    def test_a_rule_is_tried_on_what_was_logged(self, cast: Cast, endpoint: Endpoint, log: Log) -> None:
        deploy(cast, endpoint, 1, NOON)
        log.segment(endpoint, rows(*range(10)), **{"input.age": pa.array([*map(float, range(9)), None], pa.float32())})
        log.segment(endpoint, rows(11, role="shadow"), version=2)
        address = reverse("monitoring:guardrail-replay", args=[endpoint.name])

        response = cast.browser("analyst").get(address, {"requires": "age < 7"}, headers=HTMX)

        found = response.context["replay"]
        assert (found.checked, found.violated, found.unchecked) == (9, 2, 1)
        assert [row.columns["request_id"] for row in found.examples] == ["r8", "r7"]
        assert "2 of the newest 9 predictions violate it" in response.text
        refused = cast.browser("analyst").get(address, {"requires": "size < 7"}, headers=HTMX)
        assert refused.status_code == 422
        assert "has no “size”" in refused.text

    def test_nothing_to_try_it_on(self, cast: Cast, endpoint: Endpoint) -> None:
        address = reverse("monitoring:guardrail-replay", args=[endpoint.name])
        assert "Nothing answers" in cast.browser("analyst").get(address, {"requires": "age < 7"}).text
        deploy(cast, endpoint, 1, NOON)
        assert "no predictions" in cast.browser("analyst").get(address, {"requires": "age < 7"}).text


class TestPredictionDetail:
    def test_the_answer_and_the_shadows_stand_beside_each_other(self, cast: Cast, endpoint: Endpoint, log: Log) -> None:
        answers = [{"at": 1, "request_id": "x", "row": row, "guardrails": ["bounded"]} for row in (0, 1)]
        copies = [{"at": 1, "request_id": "x", "row": row, "role": "shadow", "outcome": "shadow"} for row in (0, 1)]
        log.segment(endpoint, answers, **{"output.score": pa.array([0.25, 0.5])})
        log.segment(endpoint, copies, version=2, **{"output.score": pa.array([0.75, 1.0])})

        response = cast.browser("analyst").get(detail(endpoint, "x"))

        beside = [[one.columns["model_version"] for one in shadows] for _, _, shadows in response.context["rows"]]
        assert beside == [[1, 2], [1, 2]]
        assert response.text.count("what shadows made of the same row") == 2
        assert "bounded" in response.text

    def test_everything_of_a_request(self, cast: Cast, endpoint: Endpoint, log: Log) -> None:
        cast.token("data_scientist")
        token = ApiToken.objects.get()
        log.segment(
            endpoint,
            [{"at": 1, "request_id": "x/1", "token_id": token.pk, "outcome": "failed", "error": "out of <memory>"}],
            **{"input.age": pa.array([41.5]), "output.score": pa.array(["<b>"])},
        )

        response = cast.browser("analyst").get(detail(endpoint, "x/1"))

        assert response.status_code == 200
        text = response.text
        for shown in (
            "risk v1",
            "41.5",
            "&lt;b&gt;",
            "out of &lt;memory&gt;",
            "Mira Sato",
            "sha256:0101…0101",
            "unchanged",
        ):
            assert shown in text

    def test_a_file_that_was_changed_is_shown_as_such(self, cast: Cast, endpoint: Endpoint, log: Log) -> None:
        segment = log.segment(endpoint, rows(1, request_id="x"))
        segment.sha256 = "0" * 64
        segment.save()
        assert "changed since it was written" in cast.browser("analyst").get(detail(endpoint, "x")).text

    def test_what_is_not_shipped_yet_is_looked_for_again(self, cast: Cast, endpoint: Endpoint, log: Log) -> None:
        browser = cast.browser("analyst")
        page = browser.get(detail(endpoint, "soon"))
        assert page.status_code == 404
        again = re.search(r'hx-get="([^"]+)" hx-trigger="every 2s"', page.text)
        assert again
        fragment = browser.get(again[1], headers=HTMX)
        assert fragment.status_code == 200
        assert "attempt=2" in fragment.text

        shift = (reported_until() - NOON).total_seconds()
        log.segment(endpoint, rows(int(shift), request_id="soon"))
        found = browser.get(again[1], headers=HTMX).text
        assert "unchanged" in found
        assert "every 2s" not in found

    def test_looking_again_comes_to_an_end(self, cast: Cast, endpoint: Endpoint) -> None:
        browser = cast.browser("analyst")
        for attempt in ("20", "999", "9999", "-1", "x"):
            response = browser.get(detail(endpoint, "never") + f"?attempt={attempt}", headers=HTMX)
            assert ("hx-trigger" in response.text) == (attempt in ("9999", "-1", "x"))

    def test_the_same_log_holds_many_rows_of_a_request(self, cast: Cast, endpoint: Endpoint, log: Log) -> None:
        log.segment(endpoint, [{"at": 1, "request_id": "big", "row": row} for row in range(150)])
        text = cast.browser("analyst").get(detail(endpoint, "big")).text
        assert text.count("Rows run together") == 100
        assert predictions(endpoint, request_id="big") in text


@pytest.mark.parametrize("view", ["endpoint-live", "prediction-list"])
def test_another_teams_endpoint_is_not_found(cast: Cast, endpoint: Endpoint, view: str) -> None:
    assert cast.browser("outsider").get(reverse(f"monitoring:{view}", args=[endpoint.name])).status_code == 404


def test_another_teams_prediction_is_not_found(cast: Cast, endpoint: Endpoint, log: Log) -> None:
    log.segment(endpoint, rows(1, request_id="x"))
    response = cast.browser("outsider").get(detail(endpoint, "x"))
    assert response.status_code == 404
    assert "Not in the log" not in response.text


def queries(browser: Client, url: str, **options: Any) -> int:
    with CaptureQueriesContext(connection) as captured:
        assert browser.get(url, **options).status_code == 200
    return len(captured)

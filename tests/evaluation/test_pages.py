"""The pages and the API, walked with real jobs."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from apps.audit.models import AuditEvent
from apps.evaluation import services
from apps.evaluation.evidence import evaluation_evidence
from apps.evaluation.models import Dataset, DatasetVersion, EvaluationRun
from apps.jobs.models import Job
from apps.jobs.runner import run_inline
from apps.registry import services as registry
from apps.registry.models import ModelVersion
from tests import builders
from tests.conftest import Cast


def csv_of(features: Any, target: Any, names: list[str], target_name: str = "label") -> bytes:
    """A CSV with the target last."""
    lines = [",".join([*names, target_name])]
    lines += [",".join([*(repr(float(x)) for x in row), str(y)]) for row, y in zip(features, target, strict=True)]
    return "\n".join(lines).encode()


def ready_dataset(cast: Cast, content: bytes, name: str = "holdout") -> DatasetVersion:
    """An uploaded dataset version after its job."""
    version = services.upload_dataset(
        cast.actor("data_scientist"),
        team=cast.team,
        name=name,
        description="",
        file=builders.upload(content, "rows.csv"),
    )
    run_inline(version.job)
    version.refresh_from_db()
    return version


def ready_classifier(cast: Cast, onnx: bytes, name: str = "classifier", task: str = "CLASSIFICATION") -> ModelVersion:
    """A model version after its validation."""
    actor = cast.actor("data_scientist")
    model = registry.register_model(actor, team=cast.team, name=name, task=task)
    version = registry.upload_model_version(actor, model=model, file=builders.upload(onnx))
    run_inline(version.job)
    version.refresh_from_db()
    assert version.is_ready, version.rejected_reason
    return version


@pytest.fixture
def cancer() -> Any:
    """(ONNX, CSV of held-out rows, labels, probabilities) of a real classifier."""
    data = load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names]
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(data.data[::2], data.target[::2])
    rows, labels = data.data[1::2].astype(np.float32), data.target[1::2]
    onnx = to_onnx(fitted, rows[:1], options={"zipmap": False}).SerializeToString()
    return onnx, csv_of(rows, labels, names), labels, fitted.predict_proba(rows)


def test_a_dataset_is_uploaded_evaluated_and_shown(cast: Cast, cancer: Any) -> None:
    """The whole path in a browser: upload, read, evaluate, look."""
    onnx, csv, labels, probabilities = cancer
    scientist = cast.browser("data_scientist")
    answer = scientist.post(
        reverse("evaluation:dataset-upload"),
        {"name": "holdout", "description": "Held out", "file": SimpleUploadedFile("holdout.csv", csv, "text/csv")},
    )
    assert answer.status_code == 302, answer.content
    assert b"Queued" in scientist.get(answer.url).content
    version = DatasetVersion.objects.get()
    assert run_inline(version.job).state == "SUCCEEDED"
    page = scientist.get(answer.url).content.decode()
    assert f"{len(labels)} rows" in page
    assert page.count('class="spark"') == 31

    model_version = ready_classifier(cast, onnx)
    tab = reverse("evaluation:version-evaluation", args=["classifier", 1])
    analyst = cast.browser("analyst")
    assert "Start evaluation" in analyst.get(tab).content.decode()
    start = reverse("evaluation:run-start", args=["classifier", 1])
    answer = analyst.post(start, {"dataset_version": version.pk, "target": "label", "features": ""})
    assert answer.status_code == 302, answer.content.decode()
    run = EvaluationRun.objects.get()
    assert "hx-trigger" in analyst.get(answer.url).content.decode()
    assert run_inline(run.job).state == "SUCCEEDED", Job.objects.get(pk=run.job_id).log_tail

    metrics = {metric.name: metric for metric in run.metrics.all()}
    assert metrics["accuracy"].value == pytest.approx(accuracy_score(labels, probabilities.argmax(axis=1)))
    assert metrics["roc_auc"].value == pytest.approx(roc_auc_score(labels, probabilities[:, 1]), abs=1e-4)
    assert metrics["log_loss"].value == pytest.approx(log_loss(labels, probabilities), rel=1e-3)
    page = analyst.get(answer.url).content.decode()
    for word in ("ROC AUC", "ROC curve", "Confusion matrix", "95% confidence intervals", version.sha256[:4]):
        assert word in page
    assert "ROC AUC" in analyst.get(tab).content.decode()
    assert model_version.number == 1
    actions = set(AuditEvent.objects.values_list("action", flat=True))
    assert actions >= {
        "dataset.created",
        "dataset_version.uploaded",
        "dataset_version.accepted",
        "evaluation.requested",
        "evaluation.finished",
    }


def test_the_same_path_over_rest(cast: Cast, cancer: Any) -> None:
    """The same over the API, as a script does it."""
    onnx, csv, labels, _ = cancer
    api = cast.api("data_scientist")
    assert api.post("/api/v1/datasets/", {"name": "holdout"}, format="json").status_code == 201
    assert api.post("/api/v1/datasets/", {"name": "holdout"}, format="json").status_code == 409
    file = SimpleUploadedFile("holdout.csv", csv, "text/csv")
    answer = api.post("/api/v1/datasets/holdout/versions/", {"file": file}, format="multipart")
    assert answer.status_code == 201, answer.content
    run_inline(Job.objects.get(pk=answer.json()["job"]))
    version = api.get("/api/v1/datasets/holdout/versions/1/").json()
    assert (version["state"], version["row_count"]) == ("READY", len(labels))
    assert version["profile"][0]["histogram"]["counts"]
    again = SimpleUploadedFile("other-name.csv", csv, "text/csv")
    answer = api.post("/api/v1/datasets/holdout/versions/", {"file": again}, format="multipart")
    assert answer.status_code == 409
    assert "holdout v1 already" in answer.json()["detail"]

    ready_classifier(cast, onnx)
    asked = {"model": "classifier", "model_version": 1, "dataset": "holdout", "dataset_version": 1, "target": "label"}
    answer = api.post("/api/v1/evaluations/", asked, format="json")
    assert answer.status_code == 201, answer.content
    body = answer.json()
    assert body["state"] == "QUEUED"
    run_inline(Job.objects.get(pk=body["job"]))
    run = api.get(f"/api/v1/evaluations/{body['id']}/").json()
    assert run["state"] == "SUCCEEDED"
    assert [metric["name"] for metric in run["metrics"]] == ["roc_auc", "accuracy", "log_loss"]
    assert len(run["result"]["roc"]["threshold"]) <= 200
    listed = api.get("/api/v1/evaluations/", {"model": "classifier", "model_version": 1}).json()["results"]
    assert [one["id"] for one in listed] == [body["id"]]
    assert api.get("/api/v1/evaluations/", {"model_version": "x"}).status_code == 422
    answer = api.post("/api/v1/evaluations/", asked | {"target": "nothing"}, format="json")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/target"
    answer = api.post("/api/v1/evaluations/", asked | {"features": ["mean_radius"]}, format="json")
    assert answer.status_code == 422
    assert "30 columns" in answer.json()["detail"]


def test_evidence_is_the_same_every_time_and_a_second_run_of_the_job_changes_nothing(cast: Cast, cancer: Any) -> None:
    """Evidence is frozen by its digest, so it may not depend on when it is asked for."""
    onnx, csv, labels, _ = cancer
    dataset_version, model_version = ready_dataset(cast, csv), ready_classifier(cast, onnx)
    actor = cast.actor("analyst")
    run = services.start_evaluation(actor, model_version=model_version, dataset_version=dataset_version, target="label")
    run_inline(run.job)
    first = evaluation_evidence(EvaluationRun.objects.finished().get())
    events = AuditEvent.objects.count()
    Job.objects.filter(pk=run.job_id).update(state="QUEUED")
    assert run_inline(run.job).state == "SUCCEEDED"
    assert evaluation_evidence(EvaluationRun.objects.finished().get()) == first
    assert AuditEvent.objects.count() == events
    assert first["row_count"] == len(labels)
    assert first["dataset"]["sha256"] == dataset_version.sha256


def test_pages_belong_to_a_team_and_to_roles(cast: Cast, cancer: Any) -> None:
    """Another team's objects are 404, a missing role is 403."""
    onnx, csv, _, _ = cancer
    dataset_version, model_version = ready_dataset(cast, csv), ready_classifier(cast, onnx)
    run = services.start_evaluation(
        cast.actor("analyst"), model_version=model_version, dataset_version=dataset_version, target="label"
    )
    pages = ["/datasets/holdout/", f"/evaluations/{run.pk}/", "/models/classifier/versions/1/evaluation/"]
    apis = ["datasets/holdout/", "datasets/holdout/versions/", "datasets/holdout/versions/1/", f"evaluations/{run.pk}/"]
    outsider, insider = cast.browser("outsider"), cast.browser("compliance_officer")
    for page in pages:
        assert insider.get(page).status_code == 200, page
        assert outsider.get(page).status_code == 404, page
    stranger = cast.api("outsider")
    for path in apis:
        assert stranger.get(f"/api/v1/{path}").status_code == 404, path
    start = reverse("evaluation:run-start", args=["classifier", 1])
    assert outsider.post(start, {}).status_code == 404
    assert insider.post(start, {}).status_code == 403
    assert insider.get("/datasets/new/").status_code == 403
    assert cast.browser("analyst").get("/datasets/new/").status_code == 403
    asked = {"model": "classifier", "model_version": 1, "dataset": "holdout", "dataset_version": 1, "target": "label"}
    assert stranger.post("/api/v1/evaluations/", asked, format="json").status_code == 404
    assert cast.api("compliance_officer").post("/api/v1/evaluations/", asked, format="json").status_code == 403


@pytest.mark.parametrize("query", ["?q=%00", "?q=%27%3B--", "?page=0", "?page=99999999999999999999", "?page=%00"])
def test_odd_query_strings_of_the_list_are_harmless(cast: Cast, query: str) -> None:
    """A list answers with a page, whatever stands in its address."""
    assert cast.browser("analyst").get(f"/datasets/{query}").status_code == 200


@pytest.mark.parametrize(
    "query", ["?version=%00", "?version=9999999999999999999999", "?version=-1", "?page=-5&version=x"]
)
def test_a_version_that_is_not_there_is_said(cast: Cast, query: str) -> None:
    """And what it was."""
    services.create_dataset(cast.actor("data_scientist"), team=cast.team, name="empty")
    assert cast.browser("analyst").get(f"/datasets/empty/{query}").status_code == 422
    assert cast.browser("analyst").get("/datasets/empty/").status_code == 200


def test_labels_that_a_page_cannot_show_are_shortened(cast: Cast) -> None:
    """A NUL or a megabyte in a label breaks neither the result's column nor the page."""
    long = "x" * 5_000
    table = pa.table({"x": [0.0, 1.0], "y": ["a\x00b", long]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    nodes = [
        helper.make_node("Greater", ["x", "half"], ["is_high"]),
        helper.make_node("Where", ["is_high", "high", "low"], ["label"]),
    ]
    constants = [
        helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
        helper.make_tensor("high", TensorProto.STRING, [], [long.encode()]),
        helper.make_tensor("low", TensorProto.STRING, [], [b"other"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])]
    outputs = [helper.make_tensor_value_info("label", TensorProto.STRING, ["n"])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=constants)
    onnx = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    model_version = ready_classifier(cast, onnx)
    dataset_version = ready_dataset(cast, buffer.getvalue())
    run = services.start_evaluation(
        cast.actor("analyst"), model_version=model_version, dataset_version=dataset_version, target="y"
    )
    assert run_inline(run.job).state == "SUCCEEDED", Job.objects.get(pk=run.job_id).message
    run.refresh_from_db()
    assert max(map(len, run.result["confusion"]["labels"])) <= 60
    assert cast.browser("analyst").get(run.get_absolute_url()).status_code == 200


def test_what_does_not_fit_is_said_in_the_form(cast: Cast, cancer: Any) -> None:
    """A 422 with the bound form, naming the field."""
    onnx, csv, _, _ = cancer
    version, _ = ready_dataset(cast, csv), ready_classifier(cast, onnx)
    start = reverse("evaluation:run-start", args=["classifier", 1])
    asked = {"dataset_version": version.pk, "target": "label", "features": "mean_radius\nmean_texture"}
    answer = cast.browser("analyst").post(start, asked)
    assert answer.status_code == 422
    assert "30 columns" in answer.content.decode()
    assert not EvaluationRun.objects.exists()
    answer = cast.browser("analyst").post(start, {"dataset_version": "7e9", "target": "", "features": ""})
    assert answer.status_code == 422


def test_the_form_suggests_what_fits_and_versions_stand_beside_each_other(cast: Cast, cancer: Any) -> None:
    """A newer dataset that does not fit is not suggested; a second version is compared on the same rows."""
    onnx, csv, labels, _ = cancer
    fitting = ready_dataset(cast, csv)
    other = ready_dataset(cast, b"a,b\n1,2\n3,4\n", "newer")
    first = ready_classifier(cast, onnx)
    tab = reverse("evaluation:version-evaluation", args=["classifier", 1])
    browser = cast.browser("analyst")
    page = browser.get(tab).content.decode()
    assert f'<option value="{fitting.pk}" selected>' in page
    assert '<option value="label" selected>' in page
    fragment = browser.get(tab, {"dataset_version": other.pk}, headers={"HX-Request": "true"}).content.decode()
    assert '<option value="b" selected>' in fragment
    assert "<html" not in fragment

    rows = load_breast_cancer().data[1::2].astype(np.float32)
    refitted = LogisticRegression(max_iter=5_000).fit(rows, labels)
    second_onnx = to_onnx(refitted, rows[:1], options={"zipmap": False}).SerializeToString()
    second = builders.ready_version(cast, first.model, second_onnx)
    actor = cast.actor("analyst")
    for version in (first, second):
        run = services.start_evaluation(actor, model_version=version, dataset_version=fitting, target="label")
        assert run_inline(run.job).state == "SUCCEEDED"
        assert ("Versions on the same rows" in browser.get(tab).content.decode()) == (version == second)


def test_lists_take_a_fixed_number_of_queries(cast: Cast, cancer: Any) -> None:
    """As many for three rows as for one."""
    onnx, csv, _, _ = cancer
    version, model_version = ready_dataset(cast, csv), ready_classifier(cast, onnx)
    actor, browser, api = cast.actor("data_scientist"), cast.browser("analyst"), cast.api("analyst")
    tab = reverse("evaluation:version-evaluation", args=["classifier", 1])

    def counts() -> list[int]:
        found = []
        for client, url in (
            (browser, "/datasets/"),
            (browser, tab),
            (api, "/api/v1/datasets/"),
            (api, "/api/v1/evaluations/"),
            (api, "/api/v1/datasets/holdout/versions/"),
        ):
            client.get(url)
            with CaptureQueriesContext(connection) as queries:
                assert client.get(url).status_code == 200
            found.append(len(queries))
        return found

    services.start_evaluation(actor, model_version=model_version, dataset_version=version, target="label")
    few = counts()
    assert few == [7, 11, 3, 4, 4]
    for number in range(2):
        services.start_evaluation(actor, model_version=model_version, dataset_version=version, target="label")
        services.create_dataset(actor, team=cast.team, name=f"more-{number}")
        services.upload_dataset_version(
            actor,
            dataset=Dataset.objects.get(name="holdout"),
            file=builders.upload(csv + b"\n" * (number + 1), "x.csv"),
        )
    assert counts() == few


def test_a_model_whose_rows_depend_on_each_other_gets_them_one_by_one(cast: Cast) -> None:
    """As it does when it serves: alone, each row is its own mean, so the model answers 0."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in ("x", "centred")]
    graph = helper.make_graph(nodes, "centre", values[:1], values[1:])
    onnx = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    model_version = ready_classifier(cast, onnx, "centring", "REGRESSION")
    dataset_version = ready_dataset(cast, b"x,y\n1,1\n2,2\n6,3\n")
    run = services.start_evaluation(
        cast.actor("analyst"), model_version=model_version, dataset_version=dataset_version, target="y"
    )
    assert run_inline(run.job).state == "SUCCEEDED"
    assert run.metrics.get(name="mae").value == pytest.approx(2.0)


def test_parquet_and_a_wrong_file(cast: Cast) -> None:
    """Parquet is read by its content, whatever its name; a rejection is told on the page."""
    table = pa.table({"x": pa.array([1.5, None, 3.0]), "y": pa.array(["a", "b", "a"])})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    version = ready_dataset(cast, buffer.getvalue(), "typed")
    assert version.state == "READY", version.rejected_reason
    assert [column["type"] for column in version.schema] == ["float", "text"]
    version = ready_dataset(cast, b"a,b\n1,2\n3\n", "ragged")
    assert version.state == "REJECTED"
    assert "Line 3" in version.rejected_reason
    assert "Line 3" in cast.browser("analyst").get("/datasets/ragged/").content.decode()

"""Pages of datasets, and the evaluation and load test pages of a model version."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Count, OuterRef, Subquery
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.core.errors import DomainError
from apps.core.htmx import render
from apps.core.pagination import KeysetPage
from apps.core.permissions import require
from apps.evaluation import charts, load_charts, services
from apps.evaluation.forms import DatasetForm, EvaluationForm, LoadTestForm
from apps.evaluation.load_results import caveats, representative_step, where
from apps.evaluation.models import METRIC_LABELS, Dataset, DatasetVersion, EvaluationRun, LoadTest
from apps.registry.models import ModelVersion

MAX_CHOICES = 200
MAX_SUGGESTIONS = 10
MAX_BESIDE = 10
COLUMNS_PER_PAGE = 100


@require_GET
@require("team.view")
def dataset_list(request: HttpRequest) -> HttpResponse:
    """The team's datasets with the latest version of each."""
    latest = DatasetVersion.objects.filter(dataset=OuterRef("pk")).order_by("-number")
    datasets = Dataset.objects.for_team(request.team).select_related("created_by")
    if query := request.GET.get("q", "").replace("\x00", "").strip()[:63]:
        datasets = datasets.filter(name__icontains=query)
    datasets = datasets.annotate(
        version_count=Count("versions"),
        latest_number=Subquery(latest.values("number")[:1]),
        latest_state=Subquery(latest.values("state")[:1]),
        latest_rows=Subquery(latest.values("row_count")[:1]),
        latest_at=Subquery(latest.values("uploaded_at")[:1]),
    ).order_by("name")  # a grouped query forgets the model's order
    page = Paginator(datasets, 50).get_page(request.GET.get("page"))
    context = {"page": page, "query": query}
    return render(request, "evaluation/dataset_list.html", context, fragment="evaluation/_datasets.html")


@require_http_methods(["GET", "POST"])
@require("registry.upload")
def dataset_upload(request: HttpRequest) -> HttpResponse:
    """Upload a new dataset or the next version of one."""
    form = DatasetForm(request.POST or None, request.FILES or None, initial={"name": request.GET.get("name", "")})
    if request.method == "POST" and form.is_valid():
        try:
            version = services.upload_dataset(request.actor, team=request.team, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field if error.field in form.fields else None, error.message)
        else:
            messages.success(request, f"Uploaded {version}. It is being read.")
            return _go_to(request, version.get_absolute_url())
    context = {"form": form}
    status = 422 if form.errors else 200
    page, fragment = "evaluation/dataset_upload.html", "evaluation/_upload_form.html"
    return render(request, page, context, fragment=fragment, status=status)


@require_GET
@require("team.view")
def dataset_detail(request: HttpRequest, name: str) -> HttpResponse:
    """A dataset: its versions, and the columns of the one in ``?version=`` or else of the newest."""
    dataset = get_object_or_404(Dataset.objects.for_team(request.team).select_related("created_by"), name=name)
    versions = list(dataset.versions.with_names()[:MAX_CHOICES])
    wanted = request.GET.get("version", "")
    known = {str(version.number): version for version in versions}
    shown = known.get(wanted) if wanted else next(iter(versions), None)
    if wanted and shown is None:
        raise DomainError(f"{dataset} has no version “{wanted[:20]}”. Choose one from its list.", field="version")
    columns = [
        column | {"path": charts.spark_path((column.get("histogram") or {}).get("counts", []))}
        for column in (shown.profile if shown else [])
    ]
    context = {
        "dataset": dataset,
        "versions": versions,
        "shown": shown,
        "page": Paginator(columns, COLUMNS_PER_PAGE).get_page(request.GET.get("page")),
    }
    return render(request, "evaluation/dataset_detail.html", context)


@require_GET
@require("team.view")
def version_evaluation(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """The evaluation tab of a model version: its runs, and the form that starts one."""
    version = _model_version(request, name, number)
    context = _tab_context(request, version, _evaluation_form(request, version, None))
    page, fragment = "evaluation/version_evaluation.html", "evaluation/_start_form.html"
    return render(request, page, context, fragment=fragment)


@require_POST
@require("evaluation.run")
def run_start(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """Start an evaluation; 422 with the form when the dataset does not fit the model."""
    version = _model_version(request, name, number)
    form = _evaluation_form(request, version, request.POST)
    if form.is_valid():
        chosen = form.cleaned_data
        dataset_version = _ready(request).get(pk=chosen["dataset_version"])
        try:
            run = services.start_evaluation(
                request.actor,
                model_version=version,
                dataset_version=dataset_version,
                target=chosen["target"],
                features=chosen["features"] or None,
                slice_by=chosen["slice_by"],
                reference=_ready(request).get(pk=chosen["reference"]) if chosen["reference"] else None,
            )
        except DomainError as error:
            form.add_error(error.field if error.field in form.fields else None, error.message)
        else:
            return redirect(run)
    return render(request, "evaluation/version_evaluation.html", _tab_context(request, version, form), status=422)


@require_GET
@require("team.view")
def run_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """A run: its progress, then its metrics and curves."""
    runs = EvaluationRun.objects.for_team(request.team).with_facts()
    run = get_object_or_404(runs, pk=pk)
    metrics = list(run.metrics.all())
    context = {
        "run": run,
        "metrics": metrics,
        "intervals": charts.metric_intervals(metrics),
        "charts": charts.run_charts(run),
        "slice_metrics": [METRIC_LABELS[one["name"]] for slice_ in run.slices[:1] for one in slice_["metrics"]],
    }
    return render(request, "evaluation/run_detail.html", context)


@require_GET
@require("team.view")
def version_load_tests(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """The load test tab of a model version: its tests, and the form that starts one."""
    version = _model_version(request, name, number)
    context = _load_tab_context(request, version, _load_test_form(request, version, None))
    return render(request, "evaluation/version_load_tests.html", context)


@require_POST
@require("evaluation.run")
def load_test_start(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """Start a load test; 422 with the form when it cannot be driven that way."""
    version = _model_version(request, name, number)
    form = _load_test_form(request, version, request.POST)
    if form.is_valid():
        chosen = form.cleaned_data["dataset_version"]
        dataset_version = _ready(request).get(pk=chosen) if chosen is not None else None
        try:
            test = services.start_load_test(
                request.actor, model_version=version, dataset_version=dataset_version, **form.options()
            )
        except DomainError as error:
            form.add_error(error.field if error.field in form.fields else None, error.message)
        else:
            return redirect(test)
    return render(request, "evaluation/version_load_tests.html", _load_tab_context(request, version, form), status=422)


@require_GET
@require("team.view")
def load_test_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """A load test: its progress, then its figures and charts, and the other versions beside it."""
    test = get_object_or_404(LoadTest.objects.for_team(request.team).with_facts(), pk=pk)
    context: dict[str, Any] = {"test": test}
    if test.finished_at is not None:
        others = LoadTest.objects.for_team(request.team).beside(test).with_names()
        context |= {
            "beside": list(others.prefetch_related("model_version__aliases")[:MAX_BESIDE]),
            "caveats": caveats(test.result),
            "charts": load_charts.load_charts(test),
            "where": where(representative_step(test.result)),
        }
    return render(request, "evaluation/load_test_detail.html", context)


def _load_tab_context(request: HttpRequest, version: ModelVersion, form: LoadTestForm) -> dict[str, Any]:
    tests = LoadTest.objects.for_team(request.team).filter(model_version=version).with_names()
    return {"model_version": version, "page": KeysetPage.of(tests, request.GET), "form": form}


def _load_test_form(request: HttpRequest, version: ModelVersion, data: Any) -> LoadTestForm:
    choices = list(_ready(request).defer("profile", "schema").order_by("-pk")[:MAX_CHOICES])
    suggested = _suggested(request, version)[0] if data is None and version.is_ready else None
    return LoadTestForm(data, choices=choices, chosen=suggested)


def _tab_context(request: HttpRequest, version: ModelVersion, form: EvaluationForm) -> dict[str, Any]:
    runs = EvaluationRun.objects.for_team(request.team)
    page = KeysetPage.of(runs.filter(model_version=version).with_names(), request.GET)
    newest = next((run for run in page.rows if run.finished_at), None)
    beside = list(runs.comparable_to(newest).with_names()[:MAX_CHOICES]) if newest else []
    chart = charts.metric_by_version(newest, beside) if newest else None
    return {"model_version": version, "page": page, "form": form, "newest": newest, "comparison": chart}


def _evaluation_form(request: HttpRequest, version: ModelVersion, data: Any) -> EvaluationForm:
    """The form with the columns of the dataset version that was chosen, or else of the one that suggests itself."""
    choices = list(_ready(request).defer("profile", "schema").order_by("-pk")[:MAX_CHOICES])
    wanted = (data or request.GET).get("dataset_version", "")
    chosen, target = next((one for one in choices if str(one.pk) == wanted), None), ""
    if chosen is None and version.is_ready:
        chosen, target = _suggested(request, version)
    url = reverse("evaluation:version-evaluation", args=[version.model.name, version.number])
    return EvaluationForm(data, choices=choices, chosen=chosen or next(iter(choices), None), target=target, url=url)


def _suggested(request: HttpRequest, version: ModelVersion) -> tuple[DatasetVersion | None, str]:
    """What the model was evaluated on last; else the newest dataset that fits it with the last column as the target."""
    runs = EvaluationRun.objects.for_team(request.team).filter(model_version__model=version.model)
    last = runs.select_related("dataset_version__dataset").defer("result", "dataset_version__profile").first()
    if last is not None:
        return last.dataset_version, last.target
    for one in _ready(request).order_by("-pk")[:MAX_SUGGESTIONS]:
        target = one.schema[-1]["name"]
        if services.fits(model_version=version, dataset_version=one, target=target):
            return one, target
    return None, ""


def _ready(request: HttpRequest) -> Any:
    return DatasetVersion.objects.for_team(request.team).ready().select_related("dataset").defer("profile")


def _model_version(request: HttpRequest, name: str, number: int) -> ModelVersion:
    versions = ModelVersion.objects.for_team(request.team).with_facts().prefetch_related("aliases")
    version: ModelVersion = get_object_or_404(versions, model__name=name, number=number)
    return version


def _go_to(request: HttpRequest, url: str) -> HttpResponse:
    """Redirect; htmx, which follows redirects by itself, is told to load the page as a whole."""
    if not request.htmx:
        return redirect(url)
    response = HttpResponse(status=204)
    response["HX-Redirect"] = url
    return response

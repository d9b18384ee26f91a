"""URLs of datasets, evaluations and load tests."""

from django.urls import path

from apps.evaluation import views

app_name = "evaluation"
urlpatterns = [
    path("datasets/", views.dataset_list, name="dataset-list"),
    path("datasets/new/", views.dataset_upload, name="dataset-upload"),
    path("datasets/<slug:name>/", views.dataset_detail, name="dataset-detail"),
    path("models/<slug:name>/versions/<int:number>/evaluation/", views.version_evaluation, name="version-evaluation"),
    path("models/<slug:name>/versions/<int:number>/evaluation/new/", views.run_start, name="run-start"),
    path("models/<slug:name>/versions/<int:number>/load-tests/", views.version_load_tests, name="version-load-tests"),
    path("models/<slug:name>/versions/<int:number>/load-tests/new/", views.load_test_start, name="load-test-start"),
    path("load-tests/<int:pk>/", views.load_test_detail, name="load-test-detail"),
    path("evaluations/<int:pk>/", views.run_detail, name="run-detail"),
]

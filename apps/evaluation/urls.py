"""URLs of datasets and evaluations."""

from django.urls import path

from apps.evaluation import views

app_name = "evaluation"
urlpatterns = [
    path("datasets/", views.dataset_list, name="dataset-list"),
    path("datasets/new/", views.dataset_upload, name="dataset-upload"),
    path("datasets/<slug:name>/", views.dataset_detail, name="dataset-detail"),
    path("models/<slug:name>/versions/<int:number>/evaluation/", views.version_evaluation, name="version-evaluation"),
    path("models/<slug:name>/versions/<int:number>/evaluation/new/", views.run_start, name="run-start"),
    path("evaluations/<int:pk>/", views.run_detail, name="run-detail"),
]

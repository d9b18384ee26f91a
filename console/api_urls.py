"""Every route of the REST API."""

from django.urls import path
from drf_spectacular.views import SpectacularAPIView
from rest_framework.routers import SimpleRouter

from apps.accounts.api import ApiTokenViewSet, MembershipViewSet
from apps.accounts.scim import ScimUserViewSet
from apps.audit.api import AuditEventViewSet, AuditExportViewSet, CheckpointViewSet
from apps.core.permissions import PUBLIC
from apps.deployments.api import EndpointViewSet, GuardrailViewSet
from apps.evaluation.api import DatasetVersionViewSet, DatasetViewSet, EvaluationRunViewSet, LoadTestViewSet
from apps.jobs.api import JobViewSet
from apps.monitoring.api import KeptRowsViewSet, PredictionExportViewSet, PredictionViewSet, ProvenanceViewSet
from apps.packs.api import CardRevisionViewSet, EvidencePackViewSet
from apps.policies.api import PolicyVersionViewSet, RiskAssessmentViewSet
from apps.promotions.api import PromotionRequestViewSet
from apps.promotions.check_api import CheckResultViewSet
from apps.registry.api import ModelVersionViewSet, RegisteredModelViewSet


class SchemaView(SpectacularAPIView):
    """The OpenAPI 3.1 description of this API; it holds no data, so it is public."""

    action = "schema"
    permissions = {"schema": PUBLIC}


router = SimpleRouter()
router.register("models", RegisteredModelViewSet, "model")
router.register("models/(?P<model_name>[^/\\x00]+)/versions", ModelVersionViewSet, "model-version")
router.register(
    "models/(?P<model_name>[^/\\x00]+)/versions/(?P<version_number>[0-9]{1,9})/card",
    CardRevisionViewSet,
    "card-revision",
)
router.register("datasets", DatasetViewSet, "dataset")
router.register("datasets/(?P<dataset_name>[^/\\x00]+)/versions", DatasetVersionViewSet, "dataset-version")
router.register("evaluations", EvaluationRunViewSet, "evaluation")
router.register("load-tests", LoadTestViewSet, "load-test")
router.register("endpoints", EndpointViewSet, "endpoint")
router.register("endpoints/(?P<endpoint_name>[^/\\x00]+)/guardrails", GuardrailViewSet, "guardrail")
router.register("endpoints/(?P<endpoint_name>[^/\\x00]+)/predictions", PredictionViewSet, "prediction")
router.register("endpoints/(?P<endpoint_name>[^/\\x00]+)/datasets", KeptRowsViewSet, "kept-rows")
router.register(
    "endpoints/(?P<endpoint_name>[^/\\x00]+)/prediction-export", PredictionExportViewSet, "prediction-export"
)
router.register("endpoints/(?P<endpoint_name>[^/\\x00]+)/provenance", ProvenanceViewSet, "provenance")
router.register("policies", PolicyVersionViewSet, "policy")
router.register("models/(?P<model_name>[^/\\x00]+)/risk", RiskAssessmentViewSet, "model-risk")
router.register("promotions", PromotionRequestViewSet, "promotion")
router.register("evidence-packs", EvidencePackViewSet, "evidence-pack")
router.register("promotions/(?P<promotion_pk>[0-9]{1,18})/checks", CheckResultViewSet, "promotion-check")
router.register("jobs", JobViewSet, "job")
router.register("audit-events", AuditEventViewSet, "audit-event")
router.register("audit-checkpoints", CheckpointViewSet, "audit-checkpoint")
router.register("audit-export", AuditExportViewSet, "audit-export")
router.register("members", MembershipViewSet, "member")
router.register("tokens", ApiTokenViewSet, "token")

# SCIM's addresses end without a slash.
scim = SimpleRouter(trailing_slash=False)
scim.register("scim/v2/Users", ScimUserViewSet, "scim-user")

app_name = "api"
urlpatterns = [path("schema/", SchemaView.as_view(), name="schema"), *router.urls, *scim.urls]

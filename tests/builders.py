"""Objects for tests, made the way the product makes them: through services and jobs."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils import timezone
from onnx import TensorProto, helper, numpy_helper

from apps.accounts.confirmation import Confirmation
from apps.deployments import services as deployments
from apps.deployments.models import Deployment, Endpoint
from apps.evaluation import services as evaluation
from apps.evaluation.models import DatasetVersion, EvaluationRun, LoadTest
from apps.jobs.runner import run_inline
from apps.policies import services as policies
from apps.policies.documents import ApprovalRule, PolicyDocument, Tier
from apps.policies.models import PolicyVersion
from apps.promotions import reviews, rollouts
from apps.promotions import services as promotions
from apps.promotions.models import MEANINGS, Decision, Finding, PromotionRequest, Review
from apps.registry import artifact_signing
from apps.registry import card_services as cards
from apps.registry import services as registry
from apps.registry.cards import KEYS
from apps.registry.models import Artifact, CardRevision, ModelVersion, RegisteredModel, TrustedSigner

if TYPE_CHECKING:
    from tests.conftest import Cast

_numbers = count(1)


def linear_onnx(scale: float = 2.0, *, width: int = 3) -> bytes:
    """``y = scale * sum(x)`` for float32 rows ``x`` [n, width]; ``y`` is [n, 1]. Equal scales give equal bytes."""
    weights = numpy_helper.from_array(np.full((width, 1), scale, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        initializer=[weights],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def upload(content: bytes, name: str = "model.onnx") -> SimpleUploadedFile:
    """A file as the upload handler hands it on."""
    file = SimpleUploadedFile(name, content)
    file.sha256 = hashlib.sha256(content).hexdigest()
    return file


def model(cast: Cast, name: str = "") -> RegisteredModel:
    """A registered regression model of the team."""
    name = name or f"model-{next(_numbers)}"
    return registry.register_model(cast.actor("data_scientist"), team=cast.team, name=name, task="REGRESSION")


def uploaded_version(cast: Cast, of: RegisteredModel | None = None, content: bytes | None = None) -> ModelVersion:
    """A version as it is right after its upload."""
    content = content or linear_onnx(float(next(_numbers)))
    of = of or model(cast)
    return registry.upload_model_version(cast.actor("data_scientist"), model=of, file=upload(content))


def ready_version(cast: Cast, of: RegisteredModel | None = None, content: bytes | None = None) -> ModelVersion:
    """A version that its real validation job accepted."""
    version = uploaded_version(cast, of, content)
    assert version.job is not None
    assert run_inline(version.job).state == "SUCCEEDED"
    return ModelVersion.objects.with_facts().get(pk=version.pk)


def recorded_version(cast: Cast, of: RegisteredModel, *, takes: str = "x", width: int = 3) -> ModelVersion:
    """A ready version on record only, for tests that never load it: no file, no validation job, no time."""
    digest = hashlib.sha256(str(next(_numbers)).encode()).hexdigest()
    signature = {
        "inputs": [{"name": takes, "datatype": "FP32", "shape": [-1, width]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
    }
    return ModelVersion.objects.create(
        model=of,
        number=of.versions.count() + 1,
        artifact=Artifact.objects.create(sha256=digest, size_bytes=1, path=f"artifacts/{digest}"),
        state="READY",
        signature=signature,
        file_name="model.onnx",
        uploaded_by=cast.data_scientist.user,
    )


def complete_card(cast: Cast, version: ModelVersion, *, is_reviewed: bool = False) -> CardRevision:
    """The next revision of a version's card, every section written; in review and approved if ``is_reviewed``."""
    number = version.card_revisions.count()
    sections = {key: f"What there is to say about {key}, part {number}." for key in KEYS}
    scientist = cast.actor("data_scientist")
    card = cards.save_card(scientist, model_version=version, sections=sections, based_on=number)
    if is_reviewed:
        card = cards.request_card_review(scientist, revision=card)
        card = cards.review_card(cast.actor("compliance_officer"), revision=card, is_approved=True, comment="Seen.")
    return card


def trusted_signer(cast: Cast) -> tuple[TrustedSigner, bytes]:
    """A key that the team trusts for signatures of artifacts, and its private half as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signer = artifact_signing.trust_signer(
        cast.actor("compliance_officer"), team=cast.team, name="Training pipeline", pem=public.decode()
    )
    no_password = serialization.NoEncryption()
    return signer, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password)


def ready_dataset(cast: Cast, rows: int = 40) -> DatasetVersion:
    """A dataset with columns a, b, c and target, read by its real job; the target is twice the sum plus a little."""
    random = np.random.default_rng(next(_numbers))
    features = random.normal(size=(rows, 3))
    target = 2 * features.sum(axis=1) + random.normal(scale=0.1, size=rows)
    lines = ["a,b,c,target", *(",".join(f"{x:.6f}" for x in row) for row in np.column_stack([features, target]))]
    version = evaluation.upload_dataset(
        cast.actor("data_scientist"),
        team=cast.team,
        name=f"dataset-{next(_numbers)}",
        description="",
        file=upload("\n".join(lines).encode(), "rows.csv"),
    )
    assert version.job is not None
    assert run_inline(version.job).state == "SUCCEEDED"
    return DatasetVersion.objects.select_related("dataset").get(pk=version.pk)


def finished_run(cast: Cast, version: ModelVersion | None = None) -> EvaluationRun:
    """An evaluation that its real job finished."""
    run = evaluation.start_evaluation(
        cast.actor("analyst"),
        model_version=version or ready_version(cast),
        dataset_version=ready_dataset(cast),
        target="target",
    )
    assert run.job is not None
    assert run_inline(run.job).state == "SUCCEEDED"
    return EvaluationRun.objects.get(pk=run.pk)


def started_load_test(cast: Cast, version: ModelVersion | None = None) -> LoadTest:
    """A load test of three seconds whose job waits."""
    return evaluation.start_load_test(
        cast.actor("analyst"), model_version=version or ready_version(cast), step_s=1, max_concurrency=1
    )


def endpoint(cast: Cast, name: str = "") -> Endpoint:
    """An endpoint of the team on which nothing serves."""
    return deployments.create_endpoint(
        cast.actor("operator"), team=cast.team, name=name or f"endpoint-{next(_numbers)}"
    )


def submitted_request(
    cast: Cast, version: ModelVersion | None = None, to: Endpoint | None = None, *, initial_weight: int = 100
) -> PromotionRequest:
    """A promotion request that waits for a decision."""
    return promotions.request_promotion(
        cast.actor("data_scientist"),
        team=cast.team,
        model_version=version or ready_version(cast),
        endpoint=to or endpoint(cast),
        justification="It is better.",
        initial_weight=initial_weight,
    )


def confirmed() -> Confirmation:
    """What confirming one's identity gives, just now."""
    return Confirmation(("password",), timezone.now())


def sign(cast: Cast, request: PromotionRequest, decision: Decision = Decision.APPROVED, **changes: object) -> Review:
    """The compliance officer's decision."""
    meaning = MEANINGS[decision][0]
    values = {
        "decision": decision,
        "meaning": meaning,
        "comment": "Seen.",
        "confirmation": confirmed(),
        "approval_digest": request.approval_digest,
    }
    actor = changes.pop("actor", cast.actor("compliance_officer"))
    return reviews.review_promotion(actor, request=request, **(values | changes))  # type: ignore[arg-type]


def finding(cast: Cast, request: PromotionRequest, *, due_in_days: float = 7) -> Finding:
    """A condition that the data scientist owns."""
    now = timezone.now()
    return Finding.objects.create(
        request=request,
        title="Evaluate it on the rows of March",
        owner=cast.data_scientist.user,
        due_at=now + timedelta(days=due_in_days),
        opened_by="Cora Blom",
        opened_at=now,
    )


def proposed_policy(cast: Cast, **demands: Any) -> PolicyVersion:
    """A proposal of the compliance officer's for models of limited risk in production; two approvals unless told."""
    document = PolicyDocument(**({"approvals": (ApprovalRule("role:compliance_officer", 2),)} | demands))
    return policies.propose_policy(
        cast.actor("compliance_officer"),
        team=cast.team,
        environment="production",
        tier=Tier.LIMITED,
        document=document,
        reason="Stricter.",
    )


def live_request(
    cast: Cast, version: ModelVersion | None = None, to: Endpoint | None = None, *, initial_weight: int = 100
) -> PromotionRequest:
    """An approved request that the controller has put into the manifest."""
    request = submitted_request(cast, version, to, initial_weight=initial_weight)
    sign(cast, request)
    rollouts.apply_promotions()
    return PromotionRequest.objects.with_names().get(pk=request.pk)


def deployment(cast: Cast) -> Deployment:
    """A champion on an endpoint."""
    return Deployment.objects.select_related("endpoint", "model_version__model").get(
        pk=live_request(cast).deployment_id
    )

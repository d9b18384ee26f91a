"""Registered models, artifacts, versions, aliases, model cards and signatures of artifacts."""

from __future__ import annotations

from typing import Any, Self

from django.db import models
from django.urls import reverse

from apps.accounts.models import slug_validator
from apps.core.querysets import TeamScopedQuerySet


class Task(models.TextChoices):
    """What a model predicts."""

    CLASSIFICATION = "CLASSIFICATION", "Classification"
    REGRESSION = "REGRESSION", "Regression"


class RegisteredModelQuerySet(TeamScopedQuerySet):
    """Reads of models."""

    def with_latest_version(self) -> Self:
        """With the latest version's ``latest_number``, ``latest_state`` and ``latest_at``; None without a version."""
        latest = ModelVersion.objects.filter(model=models.OuterRef("pk")).order_by("-number")
        return self.annotate(
            latest_number=models.Subquery(latest.values("number")[:1]),
            latest_state=models.Subquery(latest.values("state")[:1]),
            latest_at=models.Subquery(latest.values("uploaded_at")[:1]),
        )


class RegisteredModel(models.Model):
    """A model by name; what it is worth is in its versions."""

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="registered_models")
    name = models.CharField(max_length=63, validators=[slug_validator])
    task = models.CharField(max_length=16, choices=Task.choices)
    description = models.CharField(max_length=1_000, blank=True)
    created_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = RegisteredModelQuerySet.as_manager()

    class Meta:
        ordering = ("name",)
        constraints = (models.UniqueConstraint(fields=("team", "name"), name="model_name_once_per_team"),)

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        """Its page."""
        return reverse("registry:model-detail", args=[self.name])


class Artifact(models.Model):
    """The bytes of a model, named by their SHA-256; ``path`` is relative to the store."""

    sha256 = models.CharField(max_length=64, unique=True)
    size_bytes = models.BigIntegerField()
    path = models.CharField(max_length=200)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.sha256[:12]


class ModelVersionState(models.TextChoices):
    """Whether a version may serve."""

    VALIDATING = "VALIDATING", "Validating"
    READY = "READY", "Ready"
    REJECTED = "REJECTED", "Rejected"
    ARCHIVED = "ARCHIVED", "Archived"


class ModelVersionQuerySet(TeamScopedQuerySet):
    """Reads of versions."""

    team_path = "model__team"

    def ready(self) -> Self:
        """Those that may be evaluated and promoted."""
        return self.filter(state=ModelVersionState.READY)

    def with_facts(self) -> Self:
        """Everything that a page shows of a version, in one query."""
        return self.select_related("model", "artifact", "uploaded_by", "trained_by", "job")


class ModelVersion(models.Model):
    """One immutable version of a model. Validation fills in what the artifact says of itself."""

    model = models.ForeignKey(RegisteredModel, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    artifact = models.ForeignKey(Artifact, on_delete=models.PROTECT, related_name="versions")
    state = models.CharField(max_length=10, choices=ModelVersionState.choices, default=ModelVersionState.VALIDATING)
    signature: models.JSONField[Any, Any] = models.JSONField(null=True)  # {"inputs": [...], "outputs": [...]}
    opset = models.PositiveSmallIntegerField(null=True)
    producer = models.CharField(max_length=120, blank=True)
    node_count = models.PositiveIntegerField(null=True)
    warmup_ms = models.FloatField(null=True)
    validation = models.JSONField(default=dict)
    rejected_reason = models.TextField(blank=True)
    file_name = models.CharField(max_length=200)
    notes = models.TextField(max_length=4_000, blank=True)
    # None: whoever uploaded it. Neither of the two approves it.
    trained_by = models.ForeignKey("accounts.User", null=True, on_delete=models.PROTECT, related_name="+")
    training_data = models.JSONField(default=list)  # [{"name", "sha256"}, ...]
    uploaded_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    uploaded_at = models.DateTimeField(auto_now_add=True)
    job = models.ForeignKey("jobs.Job", null=True, on_delete=models.SET_NULL, related_name="+")

    objects = ModelVersionQuerySet.as_manager()

    class Meta:
        ordering = ("-number",)
        constraints = (
            models.UniqueConstraint(fields=("model", "number"), name="version_number_once"),
            models.CheckConstraint(
                condition=~models.Q(state__in=("READY", "ARCHIVED")) | models.Q(signature__isnull=False),
                name="version_ready_has_signature",
            ),
            models.CheckConstraint(
                condition=~models.Q(state="REJECTED") | ~models.Q(rejected_reason=""),
                name="version_rejected_has_reason",
            ),
        )

    def __str__(self) -> str:
        return f"{self.model.name} v{self.number}"

    def get_absolute_url(self) -> str:
        """Its page."""
        return reverse("registry:version-detail", args=[self.model.name, self.number])

    @property
    def is_ready(self) -> bool:
        """True if it may be evaluated and promoted."""
        return self.state == ModelVersionState.READY


class Alias(models.Model):
    """A name that points at a version of a model and may be moved, e.g. ``challenger``."""

    model = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="aliases")
    name = models.CharField(max_length=63, validators=[slug_validator])
    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="aliases")

    class Meta:
        ordering = ("name",)
        constraints = (models.UniqueConstraint(fields=("model", "name"), name="alias_once_per_model"),)

    def __str__(self) -> str:
        return f"{self.model.name}@{self.name}"


class CardState(models.TextChoices):
    """How far people are with a revision of a model card."""

    DRAFT = "DRAFT", "Draft"
    IN_REVIEW = "IN_REVIEW", "In review"
    CHANGES_REQUESTED = "CHANGES_REQUESTED", "Changes requested"
    REVIEWED = "REVIEWED", "Reviewed"


class CardRevisionQuerySet(TeamScopedQuerySet):
    """Reads of card revisions."""

    team_path = "model_version__model__team"

    def in_review(self) -> Self:
        """Waiting for a reviewer, with no newer revision of the same card."""
        newer = CardRevision.objects.filter(
            model_version=models.OuterRef("model_version"), number__gt=models.OuterRef("number")
        )
        return self.filter(~models.Exists(newer), state=CardState.IN_REVIEW)

    def with_version(self) -> Self:
        """With everything that a page says of the version, in one query."""
        return self.select_related("model_version__model")


class CardRevision(models.Model):
    """One saved state of a version's model card. What it says never changes; a new edit is a new revision."""

    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="card_revisions")
    number = models.PositiveIntegerField()
    sections = models.JSONField()  # section key -> Markdown
    sha256 = models.CharField(max_length=64)
    summary = models.CharField(max_length=200, blank=True)  # what was changed
    author = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    author_name = models.CharField(max_length=120)
    saved_at = models.DateTimeField()
    state = models.CharField(max_length=17, choices=CardState.choices, default=CardState.DRAFT)
    reviewer = models.ForeignKey("accounts.User", null=True, on_delete=models.PROTECT, related_name="+")
    reviewer_name = models.CharField(max_length=120, blank=True)
    review_comment = models.TextField(max_length=4_000, blank=True)
    reviewed_at = models.DateTimeField(null=True)

    objects = CardRevisionQuerySet.as_manager()

    class Meta:
        ordering = ("-number",)
        constraints = (
            models.UniqueConstraint(fields=("model_version", "number"), name="card_revision_number_once"),
            models.CheckConstraint(
                condition=models.Q(state__in=("DRAFT", "IN_REVIEW"), reviewer=None, reviewed_at=None)
                | models.Q(
                    state__in=("CHANGES_REQUESTED", "REVIEWED"), reviewer__isnull=False, reviewed_at__isnull=False
                ),
                name="card_reviewed_has_reviewer",
            ),
            models.CheckConstraint(
                condition=models.Q(reviewer=None) | ~models.Q(reviewer=models.F("author")),
                name="card_reviewed_by_another",
            ),
        )

    def __str__(self) -> str:
        return f"Card of {self.model_version}, revision {self.number}"

    def get_absolute_url(self) -> str:
        """The page of the card, at this revision."""
        version = self.model_version
        return f"{reverse('packs:card-detail', args=[version.model.name, version.number])}?revision={self.number}"


class SignerKind(models.TextChoices):
    """How a trusted signer is known."""

    KEY = "KEY", "Public key"
    CERTIFICATE = "CERTIFICATE", "Certificate authority"


class TrustedSignerQuerySet(TeamScopedQuerySet):
    """Reads of trusted signers."""

    def trusted(self) -> Self:
        """Those that still count."""
        return self.filter(revoked_at=None)


class TrustedSigner(models.Model):
    """Whose signatures on artifacts a team believes: a key, or everybody a certificate authority vouches for."""

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="trusted_signers")
    name = models.CharField(max_length=120)
    kind = models.CharField(max_length=11, choices=SignerKind.choices)
    pem = models.TextField()
    fingerprint = models.CharField(
        max_length=64
    )  # hex SHA-256: of a key's PEM as bundles name it, of a certificate's DER
    added_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    added_at = models.DateTimeField(auto_now_add=True)
    revoked_at = models.DateTimeField(null=True)

    objects = TrustedSignerQuerySet.as_manager()

    class Meta:
        ordering = ("name", "id")
        constraints = (
            models.UniqueConstraint(
                fields=("team", "fingerprint"), condition=models.Q(revoked_at=None), name="trusted_signer_once"
            ),
        )

    def __str__(self) -> str:
        return self.name


class SignatureOrigin(models.TextChoices):
    """Who signed."""

    UPLOAD = "UPLOAD", "Came with the upload"
    INSTALLATION = "INSTALLATION", "Made here after approval"


class SignatureState(models.TextChoices):
    """What a check found."""

    PENDING = "PENDING", "Not checked yet"
    VERIFIED = "VERIFIED", "Verified"
    UNTRUSTED = "UNTRUSTED", "Untrusted"
    FAILED = "FAILED", "Failed"


class ArtifactSignature(models.Model):
    """An OpenSSF model signature (a Sigstore bundle) over a version's artifact."""

    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="signatures")
    origin = models.CharField(max_length=12, choices=SignatureOrigin.choices)
    bundle = models.TextField()
    sha256 = models.CharField(max_length=64)  # of the bundle
    state = models.CharField(max_length=9, choices=SignatureState.choices, default=SignatureState.PENDING)
    signer_name = models.CharField(max_length=200, blank=True)
    reason = models.CharField(max_length=500, blank=True)
    checked_at = models.DateTimeField(null=True)
    promotion_request_id = models.BigIntegerField(null=True)  # a plain number: promotions are a room above this one

    class Meta:
        ordering = ("id",)
        constraints = (
            models.UniqueConstraint(
                fields=("model_version",), condition=models.Q(origin="UPLOAD"), name="signature_one_upload"
            ),
            models.UniqueConstraint(
                fields=("model_version",), condition=models.Q(origin="INSTALLATION"), name="signature_one_installation"
            ),
            models.CheckConstraint(
                condition=models.Q(state="PENDING") | models.Q(checked_at__isnull=False), name="signature_checked_at"
            ),
        )

    def __str__(self) -> str:
        return f"Signature of {self.model_version}"


class AliasProtection(models.Model):
    """An alias, of any model of the team, that moves only by an approved request.

    One compliance officer protects; to lift the protection takes two, the one of ``lifting_proposed_by`` and another.
    """

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="alias_protections")
    name = models.CharField(max_length=63, validators=[slug_validator])
    protected_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    protected_at = models.DateTimeField(auto_now_add=True)
    lifting_proposed_by = models.ForeignKey("accounts.User", null=True, on_delete=models.PROTECT, related_name="+")

    objects = TeamScopedQuerySet.as_manager()

    class Meta:
        ordering = ("name",)
        constraints = (models.UniqueConstraint(fields=("team", "name"), name="alias_protected_once"),)

    def __str__(self) -> str:
        return f"@{self.name}"

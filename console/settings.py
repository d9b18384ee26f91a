"""Django settings: one file, read from the environment and from the installation's ``var/`` directory."""

import os
from pathlib import Path
from typing import Any

from csp.constants import NONE, SELF
from psycopg.conninfo import conninfo_to_dict

from console.installation import Installation

BASE_DIR = Path(__file__).resolve().parent.parent
INSTALLATION = Installation.from_environ()


def env_bool(name: str, *, default: bool) -> bool:
    """Read a switch: ``1``, ``true``, ``yes`` and ``on`` are true, anything else is false."""
    value = os.environ.get(name)
    return default if value is None else value.strip().lower() in {"1", "true", "yes", "on"}


def env_int(name: str, *, default: int) -> int:
    """Read a whole number."""
    return int(os.environ.get(name, default))


def env_number(name: str) -> float | None:
    """Read a number; None if it is not set."""
    text = os.environ.get(name, "").strip()
    return float(text) if text else None


def env_list(name: str, *, default: str) -> list[str]:
    """Read a comma-separated list, blanks dropped."""
    return [item.strip() for item in os.environ.get(name, default).split(",") if item.strip()]


def database(role: str) -> dict[str, Any]:
    """Django's connection settings for one of the two database roles, ``app`` or ``owner``."""
    parts = conninfo_to_dict(INSTALLATION.database_dsn(role))
    known = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    settings: dict[str, Any] = {name: str(parts.pop(key, "") or "") for key, name in known.items()}
    return settings | {
        "ENGINE": "django.db.backends.postgresql",
        # A persistent connection makes enqueuing and polling 13 to 15 times faster than one per request.
        "CONN_MAX_AGE": 300,
        "CONN_HEALTH_CHECKS": True,
        # psycopg's pool is not used: django-q2 forks, and forked children would share it.
        "OPTIONS": {"connect_timeout": 5, **parts},
        "TEST": {"NAME": os.environ.get("TEST_DATABASE_NAME", "test_countersign")},
    }


def openid_connect(server_url: str) -> dict[str, Any]:
    """The one provider for single sign-on, as django-allauth wants it; none without an address."""
    if not server_url:
        return {}
    app = {
        "provider_id": "organisation",
        "name": os.environ.get("OIDC_NAME", "Single sign-on"),
        "client_id": os.environ.get("OIDC_CLIENT_ID", ""),
        "secret": os.environ.get("OIDC_CLIENT_SECRET", ""),
        "settings": {"server_url": server_url, "oauth_pkce_enabled": True},
    }
    return {"openid_connect": {"APPS": [app], "SCOPE": env_list("OIDC_SCOPES", default="openid,profile,email")}}


DEBUG = env_bool("DEBUG", default=False)
SECRET_KEY = INSTALLATION.secret("django_secret_key")
ALLOWED_HOSTS = env_list("ALLOWED_HOSTS", default="localhost,127.0.0.1,[::1]")
CSRF_TRUSTED_ORIGINS = env_list("CSRF_TRUSTED_ORIGINS", default="")

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.postgres",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.usersessions",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "django_htmx",
    "django_q",
    "csp",
    "heroicons",
    "rest_framework",
    "drf_spectacular",
    "apps.core",
    "apps.audit",
    "apps.accounts",
    "apps.jobs",
    "apps.registry",
    "apps.evaluation",
    "apps.deployments",
    "apps.monitoring",
    "apps.policies",
    "apps.promotions",
    "apps.packs",
    "console",
]

MIDDLEWARE = [
    "apps.core.middleware.RequestIdMiddleware",
    "apps.core.middleware.PeerAddressMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "apps.core.middleware.UploadCapMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    # Before the CSRF check: that check reads the body, and a stranger's upload must not be read.
    "apps.accounts.middleware.ActorMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "apps.core.middleware.DomainErrorMiddleware",
]

ROOT_URLCONF = "console.urls"
WSGI_APPLICATION = "console.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "apps.accounts.context.navigation",
                "apps.promotions.context.inbox",
            ],
        },
    }
]

# Web and workers connect as a role that can only INSERT and SELECT on the audit log; migrations and tests as the owner.
DATABASES = {"default": database(os.environ.get("COUNTERSIGN_DATABASE_ROLE", "app"))}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Throttles and used codes are counted where all processes see them; the table is made by a migration.
CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "console_cache"}}

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
LOGIN_URL = "accounts:sign-in"
LOGIN_REDIRECT_URL = "promotions:inbox"
LOGOUT_REDIRECT_URL = "accounts:sign-in"
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
# How many proxies in front append the address that they saw to X-Forwarded-For; 0 ignores the header.
TRUSTED_PROXY_COUNT = env_int("TRUSTED_PROXY_COUNT", default=0)

# django-allauth does signing in; of its pages only those in apps/accounts/urls.py exist, so nobody can sign up.
ACCOUNT_ADAPTER = "apps.accounts.adapters.AccountAdapter"
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_SESSION_REMEMBER = False
ACCOUNT_FORMS = {"login": "apps.accounts.forms.SignInForm"}
# Failed tries, per account, known or not, and per address: the peer's, never what a header says.
ACCOUNT_RATE_LIMITS = {
    "login": "120/m/ip",
    "login_failed": "8/5m/key",
    "login_failed_address": "50/5m/ip",
    "reauthenticate": "20/5m/user",
}
MFA_ADAPTER = "apps.accounts.adapters.FactorAdapter"
MFA_FORMS = {
    "authenticate": "apps.accounts.forms.CodeForm",
    "authenticate_webauthn": "apps.accounts.forms.PasskeyCheckForm",
    "login_webauthn": "apps.accounts.forms.PasskeySignInForm",
}
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_WEBAUTHN_USER_VERIFICATION = "required"
MFA_TOTP_ISSUER = "Countersign"
MFA_TOTP_TOLERANCE = 1  # codes of the step before and after hold, too; CodeForm keeps one from being used twice
MFA_RECOVERY_CODES_SHOW_ONCE = True
MFA_REAUTHENTICATION_REQUIRED = False  # apps.accounts.confirmation asks instead, the same way as for a signature

# Single sign-on by the organisation's OpenID Connect provider, when OIDC_SERVER_URL names one.
OIDC_NAME = os.environ.get("OIDC_NAME", "Single sign-on")
OIDC_GROUPS_CLAIM = os.environ.get("OIDC_GROUPS_CLAIM", "groups")
SOCIALACCOUNT_ADAPTER = "apps.accounts.sign_on.SignOnAdapter"
SOCIALACCOUNT_PROVIDERS = openid_connect(os.environ.get("OIDC_SERVER_URL", ""))

SESSION_COOKIE_AGE = 12 * 60 * 60
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env_bool("HTTPS", default=False)
SESSION_COOKIE_NAME = "countersign_session"
CSRF_COOKIE_NAME = "countersign_csrf"
CSRF_COOKIE_SAMESITE = SESSION_COOKIE_SAMESITE = "Lax"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "img-src": [SELF, "data:"],
        "base-uri": [NONE],
        "object-src": [NONE],
        "frame-ancestors": [NONE],
        "form-action": [SELF],
    }
}

LANGUAGE_CODE = "en"
USE_TZ = True
TIME_ZONE = "UTC"

STATIC_URL = "static/"
STATIC_ROOT = INSTALLATION.static_root
STATICFILES_DIRS = [BASE_DIR / "static"]
STATICFILES_FINDERS = [
    "django.contrib.staticfiles.finders.FileSystemFinder",
    "django.contrib.staticfiles.finders.AppDirectoriesFinder",
    "apps.core.finders.PlotlyFinder",
]
WHITENOISE_KEEP_ONLY_HASHED_FILES = True  # pages use no other names; compressing both takes twice as long
STORAGES = {
    "default": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": INSTALLATION.store, "file_permissions_mode": 0o640},
    },
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}

UPLOAD_MAX_BYTES = env_int("UPLOAD_MAX_BYTES", default=2 * 1024**3)
FILE_UPLOAD_TEMP_DIR = INSTALLATION.uploads
FILE_UPLOAD_HANDLERS = ["apps.core.uploads.HashingUploadHandler"]
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024**2  # forms and JSON bodies; files go through the upload handler
DATA_UPLOAD_MAX_NUMBER_FIELDS = 2000

# The audit log's checkpoints go to a folder and, if this names one, to a webhook (https://…) or a bucket (s3://…), too.
AUDIT_ANCHOR_DIR = Path(os.environ.get("AUDIT_ANCHOR_DIR", "").strip() or INSTALLATION.anchors)
AUDIT_ANCHOR_URL = os.environ.get("AUDIT_ANCHOR_URL", "").strip()
# Outgoing requests go to public addresses only, and to what lies in these networks.
OUTGOING_NETWORKS = env_list("OUTGOING_NETWORKS", default="")

INFERENCE_URL = os.environ.get("INFERENCE_URL", f"http://127.0.0.1:{env_int('INFERENCE_PORT', default=8080)}")

# What an hour of one CPU core costs: with it, the traffic page shows predictions in money, too.
CPU_HOUR_PRICE = env_number("COUNTERSIGN_CPU_HOUR_PRICE")
CURRENCY = os.environ.get("COUNTERSIGN_CURRENCY", "").strip()

Q_CLUSTER = {
    "name": "countersign",
    "orm": "default",
    "workers": env_int("WORKERS", default=2),
    "poll": 0.2,
    "timeout": 6 * 60 * 60,
    "retry": 7 * 60 * 60,
    # A job's own row counts attempts and decides on retries; the broker must never retry by itself.
    "max_attempts": 1,
    "ack_failures": True,
    "catch_up": False,
    "save_limit": -1,
    "label": "Jobs",
    "queue_limit": 4,
    "scheduler": False,
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "apps.accounts.authentication.TokenAuthentication",
        "apps.accounts.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["apps.core.permissions.HasDeclaredPermission"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": [
        "rest_framework.parsers.JSONParser",
        "rest_framework.parsers.FormParser",
        "rest_framework.parsers.MultiPartParser",
    ],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "apps.core.api.problem_response",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Countersign API",
    "DESCRIPTION": "Models, evaluations, promotions, endpoints and the audit log.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "SERVE_INCLUDE_SCHEMA": False,
    "ENUM_NAME_OVERRIDES": {
        "JobState": "apps.jobs.models.JobState",
        "ModelVersionState": "apps.registry.models.ModelVersionState",
        "FindingState": "apps.promotions.models.FindingState",
        "CardState": "apps.registry.models.CardState",
        "RequestState": "apps.promotions.models.RequestState",
        "RolloutState": "apps.promotions.models.RolloutState",
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("LOG_LEVEL", "INFO")},
    "loggers": {"django-q": {"level": "WARNING"}, "django.request": {"level": "ERROR"}},
}

"""The pages on which a person signs in and looks after how they do."""

from __future__ import annotations

from typing import Any

from allauth.account.views import LoginView
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.mfa.base.views import AuthenticateView
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.forms import ActivateTOTPForm
from allauth.mfa.webauthn.internal import auth as passkeys
from allauth.mfa.webauthn.views import LoginWebAuthnView
from allauth.usersessions.models import UserSession
from django.contrib import messages
from django.contrib.auth import update_session_auth_hash
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.accounts import factors, services, sessions
from apps.accounts.confirmation import (
    PASSKEY,
    NotConfirmed,
    challenge_of,
    confirm_identity,
    factors_of,
    person_of,
    recently_confirmed,
)
from apps.accounts.entrance import may_sign_in, refused
from apps.accounts.forms import PasskeyForm, PasswordForm
from apps.accounts.sign_on import provider_name
from apps.core.errors import DomainError
from apps.core.htmx import render
from apps.core.permissions import SIGNED_IN, public, require


class SignInView(LoginView):  # type: ignore[misc]  # the library has no types
    """Email and password."""

    template_name = "accounts/sign_in.html"

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Whoever was on the way to this very page goes on to the inbox instead of round in a circle."""
        if request.GET.get("next", "").partition("?")[0] == request.path:
            return redirect("accounts:sign-in")
        return super().dispatch(request, *args, **kwargs)  # type: ignore[no-any-return]

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """The form, and what the organisation's own sign-in is called."""
        return super().get_context_data(**kwargs) | {"organisation": provider_name()}  # type: ignore[no-any-return]

    def form_invalid(self, form: Any) -> HttpResponse:
        """The bound form again, with the status that says that nothing happened."""
        return self.render_to_response(self.get_context_data(form=form), status=422)  # type: ignore[no-any-return]


class SecondFactorView(AuthenticateView):  # type: ignore[misc]  # the library has no types
    """The second step of signing in."""

    template_name = "accounts/second_factor.html"

    def form_invalid(self, form: Any) -> HttpResponse:
        """As on the first page."""
        return self.render_to_response(self.get_context_data(), status=422)  # type: ignore[no-any-return]

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """The form for a code, and whether a passkey would do."""
        has_passkey = PASSKEY in factors_of(self.stage.login.user)
        return super().get_context_data(**kwargs) | {"has_passkey": has_passkey}  # type: ignore[no-any-return]


class PasskeySignInView(LoginWebAuthnView):  # type: ignore[misc]  # the library has no types
    """A passkey instead of email and password: it holds both factors, because it asks for a finger or a PIN."""

    def form_valid(self, form: Any) -> HttpResponse:
        """Sign in, unless the person is no member any more."""
        if not may_sign_in(form.cleaned_data["credential"].user):
            return self.form_invalid(form)
        return super().form_valid(form)  # type: ignore[no-any-return]

    def form_invalid(self, form: Any) -> HttpResponse:
        """Back to the sign-in page."""
        return refused(self.request, "That passkey does not fit. Try again, or use email and password.")


sign_in = require_http_methods(["GET", "POST"])(public(SignInView.as_view()))
second_factor = require_http_methods(["GET", "POST"])(public(SecondFactorView.as_view()))
passkey_sign_in = require_POST(public(PasskeySignInView.as_view()))


@require_GET
@require(SIGNED_IN)
def security(request: HttpRequest) -> HttpResponse:
    """One's factors and sessions."""
    context = {
        "factors": Authenticator.objects.filter(user=person_of(request)).order_by("created_at"),
        "kinds": factors_of(person_of(request)),
        "sessions": sessions.sessions_of(person_of(request)),
        "session_key": request.session.session_key,
    }
    return render(request, "accounts/security.html", context)


@require_POST
@require(SIGNED_IN)
def session_end(request: HttpRequest, pk: int) -> HttpResponse:
    """Sign out another browser of one's own."""
    session = get_object_or_404(UserSession.objects.filter(user=person_of(request)), pk=pk)
    sessions.end_session(request.actor, session=session)
    messages.success(request, "That session has ended.")
    return redirect("accounts:security")


@never_cache
@require_http_methods(["GET", "POST"])
@require(SIGNED_IN)
@recently_confirmed
@sensitive_post_parameters("password")
def password_change(request: HttpRequest) -> HttpResponse:
    """Choose another password; every other session ends."""
    form = PasswordForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            user = services.change_password(request.actor, user=person_of(request), **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            update_session_auth_hash(request, user)
            sessions.end_sessions(request.actor, user=user, except_key=request.session.session_key)
            messages.success(request, "Changed. Your other sessions have ended.")
            return redirect("accounts:security")
    return render(request, "accounts/password.html", {"form": form}, status=422 if form.errors else 200)


@never_cache
@require_http_methods(["GET", "POST"])
@require(SIGNED_IN)
@sensitive_post_parameters("password", "code")
def confirm(request: HttpRequest) -> HttpResponse:
    """Prove once more that it is you, and go on."""
    wanted = request.POST.get("next") or request.GET.get("next") or ""
    is_ours = url_has_allowed_host_and_scheme(wanted, {request.get_host()}, request.is_secure())
    target = wanted if is_ours else "accounts:security"
    error = ""
    if request.method == "POST":
        try:
            confirm_identity(request, request.POST)
        except NotConfirmed as problem:
            error = problem.message
        except ImmediateHttpResponse as ended:
            return ended.response  # type: ignore[no-any-return]
        else:
            return redirect(target)
    context = {"challenge": challenge_of(request), "next": wanted, "error": error}
    return render(request, "accounts/confirm.html", context, status=422 if error else 200)


@require_POST
@require(SIGNED_IN)
def passkey_options(request: HttpRequest) -> JsonResponse:
    """What the browser needs to ask for one of the person's passkeys."""
    return JsonResponse(passkeys.begin_authentication(request.user))


@require_POST
@public
def passkey_sign_in_options(request: HttpRequest) -> JsonResponse:
    """What the browser needs to ask for a passkey of anybody."""
    return JsonResponse(passkeys.begin_authentication(None))


@require_POST
@require(SIGNED_IN)
def passkey_add_options(request: HttpRequest) -> JsonResponse:
    """What the browser needs to make a passkey that can be found again without a name."""
    return JsonResponse(passkeys.begin_registration(request.user, True))


def _after_adding(request: HttpRequest) -> HttpResponse:
    """The first factor brings recovery codes, which the person has to keep now."""
    has_new_codes = factors.has_unseen_codes(person_of(request))
    return redirect("accounts:recovery-codes" if has_new_codes else "accounts:security")


@never_cache
@require_http_methods(["GET", "POST"])
@require(SIGNED_IN)
@recently_confirmed
def passkey_add(request: HttpRequest) -> HttpResponse:
    """Set up a passkey."""
    form = PasskeyForm(user=person_of(request), data=request.POST or None)
    if request.method == "POST" and form.is_valid():
        credential = form.cleaned_data["credential"]
        factors.add_passkey(
            request.actor, user=person_of(request), name=form.cleaned_data["name"], credential=credential
        )
        messages.success(request, "Your passkey is set up.")
        return _after_adding(request)
    return render(request, "accounts/passkey_add.html", {"form": form}, status=422 if form.errors else 200)


@never_cache
@require_http_methods(["GET", "POST"])
@require(SIGNED_IN)
@recently_confirmed
def totp_add(request: HttpRequest) -> HttpResponse:
    """Set up an authenticator app."""
    form = ActivateTOTPForm(user=person_of(request), data=request.POST or None)
    if request.method == "POST" and form.is_valid():
        factors.add_totp(request.actor, user=person_of(request), secret=form.secret)
        messages.success(request, "Your authenticator app is set up. Signing in takes its code from now on.")
        return _after_adding(request)
    context = {"form": form, **factors.totp_setup(person_of(request), form.secret)}
    return render(request, "accounts/totp_add.html", context, status=422 if form.errors else 200)


@require_POST
@require(SIGNED_IN)
@recently_confirmed
def factor_remove(request: HttpRequest, pk: int) -> HttpResponse:
    """Take a factor away."""
    factor = get_object_or_404(Authenticator.objects.filter(user=person_of(request)), pk=pk)
    factors.remove_factor(request.actor, factor=factor)
    messages.success(request, "Removed.")
    return redirect("accounts:security")


@never_cache
@require_http_methods(["GET", "POST"])
@require(SIGNED_IN)
@recently_confirmed
def recovery_codes(request: HttpRequest) -> HttpResponse:
    """Fresh recovery codes are shown once; POST makes new ones and voids the old."""
    if request.method == "POST":
        factors.renew_recovery_codes(request.actor, user=person_of(request))
    return render(request, "accounts/recovery_codes.html", {"codes": factors.unseen_recovery_codes(person_of(request))})

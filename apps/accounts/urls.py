"""URLs of sign-in and settings."""

from django.urls import path

from apps.accounts import profile, sign_on, views

app_name = "accounts"
urlpatterns = [
    path("sign-in/", profile.sign_in, name="sign-in"),
    path("sign-in/passkey/", profile.passkey_sign_in, name="passkey-sign-in"),
    path("sign-in/passkey/options/", profile.passkey_sign_in_options, name="passkey-sign-in-options"),
    path("sign-in/organisation/", sign_on.begin, name="sign-on"),
    path("sign-out/", views.sign_out, name="sign-out"),
    path("team/", views.team_switch, name="team-switch"),
    path("invitations/<str:secret>/", views.invitation_accept, name="invitation-accept"),
    path("security/", profile.security, name="security"),
    path("security/confirm/", profile.confirm, name="confirm"),
    path("security/password/", profile.password_change, name="password-change"),
    path("security/sessions/<int:pk>/end/", profile.session_end, name="session-end"),
    path("security/passkey-options/", profile.passkey_options, name="passkey-options"),
    path("security/passkey/", profile.passkey_add, name="passkey-add"),
    path("security/passkey/options/", profile.passkey_add_options, name="passkey-add-options"),
    path("security/authenticator-app/", profile.totp_add, name="totp-add"),
    path("security/recovery-codes/", profile.recovery_codes, name="recovery-codes"),
    path("security/factors/<int:pk>/remove/", profile.factor_remove, name="factor-remove"),
    path("settings/", views.settings_home, name="settings"),
    path("settings/members/", views.member_list, name="member-list"),
    path("settings/members/<int:pk>/", views.member_edit, name="member-edit"),
    path("settings/invitations/<int:pk>/revoke/", views.invitation_revoke, name="invitation-revoke"),
    path("settings/service-accounts/", views.service_account_list, name="service-account-list"),
    path("settings/service-accounts/<int:pk>/", views.service_account_detail, name="service-account-detail"),
    path("settings/sign-in/", views.sign_in_settings, name="sign-in-settings"),
    path("settings/sign-in/groups/", views.group_mapping_add, name="group-mapping-add"),
    path("settings/sign-in/groups/<int:pk>/remove/", views.group_mapping_remove, name="group-mapping-remove"),
    path("settings/tokens/", views.token_list, name="token-list"),
    path("settings/tokens/<int:pk>/revoke/", views.token_revoke, name="token-revoke"),
]

# Under the names that django-allauth looks up when it leads from one step of signing in to the next.
steps = [
    path("sign-in/<slug:provider_id>/callback/", sign_on.finish, name="openid_connect_callback"),
    path("sign-in/", profile.sign_in, name="account_login"),
    path("sign-in/second-factor/", profile.second_factor, name="mfa_authenticate"),
]

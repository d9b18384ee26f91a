"""URLs of sign-in and settings."""

from django.urls import path

from apps.accounts import views

app_name = "accounts"
urlpatterns = [
    path("sign-in/", views.sign_in, name="sign-in"),
    path("sign-out/", views.sign_out, name="sign-out"),
    path("team/", views.team_switch, name="team-switch"),
    path("invitations/<str:secret>/", views.invitation_accept, name="invitation-accept"),
    path("settings/", views.settings_home, name="settings"),
    path("settings/members/", views.member_list, name="member-list"),
    path("settings/members/<int:pk>/", views.member_edit, name="member-edit"),
    path("settings/tokens/", views.token_list, name="token-list"),
    path("settings/tokens/<int:pk>/revoke/", views.token_revoke, name="token-revoke"),
]

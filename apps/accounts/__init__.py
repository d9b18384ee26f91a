"""People, teams, roles and tokens."""

"""What an endpoint does: its traffic by the second, and every prediction that it made."""

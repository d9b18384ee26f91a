"""Who must agree to what before a version answers: policies, gates, risk tiers, protection and attestation."""

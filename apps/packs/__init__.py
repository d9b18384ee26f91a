"""What is handed to auditors: model cards with their facts, evidence packs, and which record answers which clause."""

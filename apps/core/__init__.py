"""What every app may use: no models, no domain words."""

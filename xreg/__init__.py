"""xreg."""

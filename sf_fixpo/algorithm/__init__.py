"""The paper: losses, the multiplier, the trust region, and the settings of all three. torch and NumPy only, no sample-factory."""

"""Where sweeps run: one module for each backend, imported by `launcher.backend.find_backend` when it is asked for."""

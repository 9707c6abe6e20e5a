"""The stand-in for DeepMind Lab: its levels, drawn and played by ViZDoom, behind the engine's own interface."""

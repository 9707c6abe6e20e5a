"""Episodes: played for a figure or for a film. Imports `learning`, `running` and what they stand on, and `envs`."""

"""The processes of a run: started, watched, paced, shown, ended. Imports `learning` and what it stands on, and `envs`."""

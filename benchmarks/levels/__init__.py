"""The thirty levels as the stand-in plays them: how fast, what a random agent and a scripted player get, what they look like."""

"""One policy improvement step on a real network, and what may leave it. Imports `algorithm` and `records`."""

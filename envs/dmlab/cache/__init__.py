"""The level cache: compiled maps that many processes share, and the program that fills it."""

"""Scripted players of the stand-in's levels: they know the map, and show what can be had there."""

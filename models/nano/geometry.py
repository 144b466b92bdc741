"""The embedded model's sizes: those that the stand-in, its untrained double, has."""

from ds4_daemon.standin.drawing import GEOMETRY

__all__ = ["GEOMETRY"]

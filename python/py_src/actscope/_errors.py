"""Errors that the Python side raises, with the kinds of the native side. Owns `error`."""

from __future__ import annotations

from actscope._native import Error


def error(kind: str, message: str) -> Error:
    """`actscope.Error` of a kind."""
    made = Error(message)
    made.kind = kind
    return made

"""Whom an error is about."""

from __future__ import annotations


def said(owner: str) -> str:
    """`function f` for a name, and `class C` or `app a` for one that says so itself."""
    return owner if owner.startswith(("class ", "app ")) else f"function {owner}"

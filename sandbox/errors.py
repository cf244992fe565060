"""The sandbox's own exceptions. A program that fails is never one of them: that is a Verdict."""

from __future__ import annotations


class SandboxError(Exception):
    """The sandbox was used wrongly or cannot work; the message says what to do."""


class IsolationError(SandboxError):
    """This machine cannot isolate a program; the message names what is missing and how to get it."""

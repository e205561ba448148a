"""The suite's exceptions and the exit code each one ends the program with (DESIGN section 4)."""

from __future__ import annotations


class SuiteError(Exception):
    """A failure with a known meaning. Its message is one sentence for the user, never a traceback."""

    exit_code = 3


class InputError(SuiteError):
    """Bad usage or bad input: the sentence says what is wrong, where, and what would be right."""

    exit_code = 2


class UnitError(SuiteError):
    """A unit of work failed while it ran."""

    exit_code = 3


class StoppedError(SuiteError):
    """The user stopped it (Ctrl-C). What was finished is stored, and the sentence says how to go on."""

    exit_code = 130


class NothingMeasuredError(SuiteError):
    """The command ended without one measured unit."""

    exit_code = 4

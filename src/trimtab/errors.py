"""Everything trimtab raises on purpose.

    TrimtabError
    |- UsageError (ValueError)                 a value that cannot be used; exit code 2
    |  `- StrengthError                        NaN, negative, too many, beyond the trained range
    |- NotFound (FileNotFoundError)            a file, folder or package that is not there; exit code 3
    |- ModelError (ValueError)                 weights or a model folder that cannot be used; exit code 4
    |  |- NoChatTemplate                       asked to chat, has no template
    |  `- UnknownFamily                        no row in the site table
    |- SiteError (LookupError)                 a site that does not exist or has another width; exit code 4
    |- SteeringError (RuntimeError)            a steering that would be, or was, a silent no-op; exit code 4
    |- ArtifactError (ValueError)              a steering folder that is refused; exit code 5
    |  `- FingerprintMismatch                  made for other weights
    |- TaskError (ValueError)                  a task without usable items; exit code 6
    |  `- BadItem                              one item, named
    |- RunError (RuntimeError)                 a run folder that is taken, locked or of another run; exit code 7
    `- MissingExtra (ImportError)              an optional package is needed; exit code 8

A message says what was given, what was expected and what to do next. Each class also inherits the
standard type a caller would have caught without knowing trimtab.
"""

from __future__ import annotations


class TrimtabError(Exception):
    """Base of every deliberate error; `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(TrimtabError, ValueError):
    """A value that cannot be used."""

    exit_code = 2


class StrengthError(UsageError):
    """A strength that is NaN, negative, of the wrong number, or beyond the trained range."""


class NotFound(TrimtabError, FileNotFoundError):
    """A file, folder, model or package that is not there."""

    exit_code = 3

    def __str__(self) -> str:  # FileNotFoundError would format (errno, text, file)
        return " ".join(str(part) for part in self.args)


class ModelError(TrimtabError, ValueError):
    """Weights or a model folder that cannot be used."""

    exit_code = 4


class NoChatTemplate(ModelError):
    """The tokenizer has no chat template, and a chat was asked for."""


class UnknownFamily(ModelError):
    """The model's architecture has no row in the site table."""


class SiteError(TrimtabError, LookupError):
    """A site that does not exist in the model, or whose width differs from the steering's."""

    exit_code = 4

    def __str__(self) -> str:
        return " ".join(str(part) for part in self.args)


class SteeringError(TrimtabError, RuntimeError):
    """A steering that would do, or did, nothing."""

    exit_code = 4


class ArtifactError(TrimtabError, ValueError):
    """A steering folder that is refused."""

    exit_code = 5


class FingerprintMismatch(ArtifactError):
    """The steering was learned on other weights."""


class TaskError(TrimtabError, ValueError):
    """A task that is unknown or has no usable items."""

    exit_code = 6


class BadItem(TaskError):
    """One item cannot be used; the message names it."""


class RunError(TrimtabError, RuntimeError):
    """A run folder that is taken, locked, full, or belongs to another run."""

    exit_code = 7


class AnotherRun(RunError):
    """A run folder holds a run of other settings; the message names them."""


class MissingExtra(TrimtabError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""

    exit_code = 8

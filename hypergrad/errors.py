"""Every error that hypergrad raises on purpose.

Messages read ``where: argument has X, expected Y; do W``, with a ``because Z`` after Y where the reason is not obvious.
Each class is also the built-in exception that a caller would expect (ValueError, TypeError or RuntimeError), so
``except ValueError`` keeps working.

Example:
    >>> issubclass(hg.errors.ShapeError, ValueError), issubclass(hg.errors.ShapeError, hg.HypergradError)
    (True, True)
"""


class HypergradError(Exception):
    """Base class of all errors raised on purpose by hypergrad.

    Example:
        >>> try:
        ...     hg.matmul(np.ones((2, 3)), np.ones((2, 3)))
        ... except hg.HypergradError as error:
        ...     print(type(error).__name__)
        ShapeError
    """


class ShapeError(HypergradError, ValueError):
    """An array has a shape that the operation cannot take."""


class DTypeError(HypergradError, TypeError):
    """An array has an element type that the operation cannot take, or two arrays have different element types."""


class DeviceError(HypergradError, ValueError):
    """Arrays of one operation live on different devices, or on a device without a backend."""


class ArgumentError(HypergradError, ValueError):
    """An argument other than an array's shape or dtype is out of its range."""


class DifferentiationError(HypergradError, RuntimeError):
    """A derivative was asked for that the engine does not define; the message says what to use instead."""


class ExtensionError(HypergradError, RuntimeError):
    """A compiled extension, kernel, driver or device is missing."""


class DataError(HypergradError, ValueError):
    """A data set, image, cache or episode request is missing, damaged or impossible."""


class RunError(HypergradError, RuntimeError):
    """A run directory cannot be written, read or resumed."""


class InUseError(RunError):
    """A run directory is locked by another process."""


class EndedError(RunError):
    """Another of several processes has ended the job. Args: message; status: the exit status that it has given."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status

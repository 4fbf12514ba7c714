"""Start and end of a script without tracebacks: Ctrl-C, closed pipes, --help, and errors that a user can cause.

This module imports nothing slow, so that a script can call exit_on_interrupt before its other imports.
"""

import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import current_process

HELP = {"help", "h", "helpshort", "helpfull"}
INTERRUPTED, CLOSED_PIPE = 128 + signal.SIGINT, 128 + signal.SIGPIPE
"""Exit statuses, as shells name them."""
HOME = re.compile(r"^(--?[\w.]+=)(~(?=/|$))")
"""A flag whose value begins with the home folder."""
MISSING = re.compile(r"Flag --(\w+) must have a value other than None")
"""The error of absl for a required flag that is not given."""


def exit_on_interrupt(line: str = "interrupted") -> None:
    """End the process at once on Ctrl-C from now on: print a line and exit with status 130.

    Python's own KeyboardInterrupt would print a long traceback from within an import, and be ignored in a callback. Use
    `interruptible` around code that cleans up after itself. A process that was started with Ctrl-C ignored continues to
    ignore it. A worker of multiprocessing, which imports the script again, ignores it too: a terminal sends it to all
    processes.
    """

    def leave(number, frame):
        with suppress(Exception):  # the output may be closed, or be in use by the interrupted code
            sys.stdout.flush()
        os.write(2, f"\n{line}\n".encode() if os.isatty(2) else f"{line}\n".encode())
        os._exit(INTERRUPTED)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        is_worker = current_process().name != "MainProcess"
        signal.signal(signal.SIGINT, signal.SIG_IGN if is_worker else leave)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, and SystemExit on SIGTERM, in the block, so that it can remove its files."""

    def leave(number, frame):
        with suppress(OSError):  # a closed stderr
            os.write(2, b"terminated\n")
        sys.exit(128 + number)

    with handling(signal.SIGTERM, leave), handling(signal.SIGINT, signal.default_int_handler):
        yield


@contextmanager
def handling(number: int, handler: Callable | signal.Handlers) -> Iterator[None]:
    """Handle a signal with `handler` in the block, unless the process ignores it or code outside Python handles it."""
    previous = signal.getsignal(number)
    if previous in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Raise the KeyboardInterrupt of a Ctrl-C in the block at its end, so that what is written there is complete."""
    received = []
    with handling(signal.SIGINT, lambda number, frame: received.append(number)):
        yield
    if received:
        raise KeyboardInterrupt


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line and no traceback on an error that a user can cause.

    These are wrong values, problems with files, missing packages and Ctrl-C, after which no exit handlers run. If the
    reader of the output has closed it (`| head`), the process ends silently with status 141.
    """
    try:
        yield
    except BrokenPipeError as error:
        if not output_is_closed():
            sys.exit(f"{type(error).__name__}: {error}")
        discard_output()
        sys.exit(CLOSED_PIPE)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except MemoryError as error:
        details = f" ({error})" if str(error) else ""
        sys.exit(f"MemoryError: the memory is too small; use smaller batches or images{details}")
    except RuntimeError as error:  # libraries raise it instead of an OSError or a MemoryError
        if "No space left on device" in str(error):
            sys.exit(f"OSError: the disk is full; free space, then run the command again ({error})")
        if "RESOURCE_EXHAUSTED" in str(error):
            sys.exit(f"MemoryError: the device's memory is too small; use smaller batches or images ({error})")
        if "Unable to initialize backend" in str(error):  # as for a wrong JAX_PLATFORMS, which the error names
            sys.exit(f"RuntimeError: {' '.join(str(error).split())}")
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(INTERRUPTED)  # while XLA compiles in a thread, Python's own end would crash


def output_is_closed() -> bool:
    """Return True if nothing reads the pipe that stdout or stderr writes to."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def discard_output() -> None:
    """Write the rest of the output nowhere: Python would report a closed pipe once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)


def parse_flags(argv: Sequence[str], values=None) -> list[str]:
    """Parse the flags; end the process with one line on an error in a flag, a config file or a field of a config.

    `values` are absl's FlagValues, by default those of the program.
    """
    from absl import flags

    values = flags.FLAGS if values is None else values
    try:
        arguments = values([HOME.sub(expand_home, argument) for argument in argv])
        for value in values.flag_values_dict().values():
            getattr(value, "keys", None)  # raises the error of a config file that could not be read
        return arguments
    except BrokenPipeError:  # while help is printed
        raise
    except flags.Error as error:
        names = MISSING.findall(str(error))
        unset = [f"--{name} is missing: {values[name].help.splitlines()[0].rstrip('.;')}" for name in names]
        reason = "; ".join(unset) or last_error(str(error))
    except AttributeError as error:  # raised from the KeyError of a config's field
        missing = error.args[0].args[0] if isinstance(error.args[0], KeyError) else str(error)
        reason = "the config has no field " + ". ".join(missing.splitlines())
    except SyntaxError as error:
        reason = f"{error.filename}, line {error.lineno}: {error.msg}"
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[-1].strip()}"
        if isinstance(error, OSError):  # a config file that does not exist
            reason += near_configs(reason)
    sys.exit(f"{reason}; --help lists the flags")


def reject_arguments(argv: Sequence[str], hint: str = "") -> None:
    """Raise absl's UsageError if `argv`, the program and its arguments, has an argument that is not a flag."""
    from absl import app

    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}" + (hint and f"; {hint}"))


def positive_numbers(flag) -> tuple[int, ...]:
    """Return the numbers in a flag of absl's DEFINE_list; ValueError if a value is not a whole number above 0."""
    if not all(number.strip().isdecimal() and int(number) > 0 for number in flag.value):
        example = ",".join(flag.default)
        raise ValueError(f"--{flag.name}={','.join(flag.value)}; give numbers above 0, such as {example}")
    return tuple(map(int, flag.value))


def near_configs(error: str) -> str:
    """Return a hint with the files in configs/ whose names are nearest to that in the error; empty if none is near."""
    from difflib import get_close_matches
    from pathlib import Path

    known = {path.stem: path for path in Path("configs").glob("*.py")}
    name = Path(error.rpartition(": ")[2].strip("'")).stem
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(str(known[stem]) for stem in near)}?" if near else ""


def expand_home(match: re.Match) -> str:
    """Return the flag and the home folder of a value that begins with it, which shells do not expand after "="."""
    return match[1] + os.path.expanduser(match[2])


def last_error(text: str) -> str:
    """Return the first line of a flag's error and, if a traceback of a config file follows, its last line and place."""
    heading, *lines = text.strip().splitlines()
    if not lines:
        return heading
    error = lines[-1].strip()
    places = [line.strip() for line in lines if line.strip().startswith("File ")]
    is_intended = error.startswith("ValueError") or not places
    return f"{heading} {error}" + ("" if is_intended else f" ({places[-1]})")


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run `main` with absl's app.run and one_line_errors, also for its UsageError; `--help` exits with status 0."""
    from absl import app

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by the shell's >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8

    def complete(argv: Sequence[str]) -> None:
        try:
            with one_line_errors():
                main(argv)
                sys.stdout.flush()
        except app.UsageError as error:  # absl would print all flags before it
            sys.exit(f"{error}; --help lists the flags")

    try:
        with one_line_errors():  # also of reading the flags and of writing the help
            try:
                app.run(complete, flags_parser=parse_flags)
            finally:
                sys.stdout.flush()
    except SystemExit as ended:
        if ended.code == 1 and any(argument.lstrip("-") in HELP for argument in sys.argv[1:]):
            ended.code = 0
        raise

"""What servers share: their packages, and a socket that listens. Imports no torch."""

import errno
import socket

from masksmith.core.errors import InputError


def import_fastapi() -> None:
    """Import what the server needs.

    Raises:
        InputError: The extra ``serve`` is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the server needs packages that cannot be imported ({error}); run `pip install masksmith[serve]`"
        ) from error


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        InputError: The port is in use or not allowed, or no such host.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError, OverflowError) as error:
        raise InputError(
            f"--host {host} --port {port}: no such address ({error}); expected such as 127.0.0.1"
        ) from error
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            with bind(host, 0) as free:
                other = free.getsockname()[1]
            raise InputError(f"--port {port}: in use by another program; try --port {other}") from error
        raise InputError(f"--host {host} --port {port}: cannot be listened on ({error.strerror})") from error
    return listening

"""A node and its network: where others may reach it, and whether it reaches them. The standard library only."""

import fcntl
import socket
import struct
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress

REACH_S = 3.0
_OWN_CHARACTERS = len("/fmfsd-12345678")
_SIOCGIFADDR = 0x8915


MACHINES_OWN = ("HOME", "LOGNAME", "TMPDIR", "USER", "CUDA_VISIBLE_DEVICES")
"""Variables that each machine knows better than the one that a launch is started on."""


def own_variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in MACHINES_OWN if name in environment}


def scratch_folder(longest: int = 4096, parent: str = "") -> str:
    """A new folder of ours alone, with a path of so many characters at most if that can be had.

    It is in `parent` if one is named. torch reads its name as a part of a URL, in which # and ? have a meaning.
    """
    usual = parent or tempfile.gettempdir()
    unfit = set("#?") & set(usual) or len(usual) + _OWN_CHARACTERS > longest
    return tempfile.mkdtemp(prefix="fmfsd-", dir="/tmp" if unfit else usual)  # noqa: S108


def addresses(environment: Mapping[str, str], interface: str | None) -> dict[str, str]:
    """IPv4 addresses that others may reach this node at, the likeliest first, and the interface of each.

    Of all `interface`'s only, or the one that ssh came to, the host name's, and those of every interface. OSError if
    there are none.
    """
    own = interface_addresses()
    if interface is not None:
        if interface not in own:
            raise OSError(f"--interface {interface}: not here or without an IPv4 address; there are {', '.join(own)}")
        return {own[interface]: interface}
    by_address = {address: name for name, address in own.items() if not address.startswith("127.")}
    likely = [*environment.get("SSH_CONNECTION", "").split()[2:3], *_of_host_name(), *by_address]
    if found := {address: by_address[address] for address in likely if address in by_address}:
        return found
    raise OSError("it has no network but loopback")


def interface_addresses() -> dict[str, str]:
    """Each interface's IPv4 address."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


def interface_to(address: str) -> str:
    """The interface that this node reaches `address`, another node's, over. OSError if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 9))  # sends nothing
        source = sock.getsockname()[0]
    by_address = {own: name for name, own in interface_addresses().items()}
    if source not in by_address:
        raise OSError(f"no interface here has the address {source}, which {address} is reached from")
    return by_address[source]


def listen() -> socket.socket:
    """On a port that is free here."""
    listener = socket.create_server(("", 0))
    listener.setblocking(False)
    return listener


def hold(port: int) -> socket.socket:
    """Keep a port that nobody listens on from being given away as a free one; who knows of it may listen there.

    OSError if somebody does already.
    """
    holder = socket.socket()
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", port))
    except OSError:
        holder.close()
        raise
    return holder


def greet(listener: socket.socket, word: str) -> None:
    """Tell all who have connected meanwhile that it is us."""
    with suppress(BlockingIOError):  # nobody is left
        while True:
            with suppress(ConnectionError), listener.accept()[0] as caller:
                caller.sendall(word.encode())


def reached(candidates: Sequence[str], port: int, word: str) -> list[str]:
    """Those of the addresses at which somebody who knows the word answers."""
    return [address for address in candidates if _says(address, port) == word]


def _says(address: str, port: int) -> str:
    try:
        with socket.create_connection((address, port), REACH_S) as connection:
            connection.settimeout(REACH_S)
            return connection.makefile().read(1000)
    except (OSError, ValueError):
        return ""


def _of_host_name() -> list[str]:
    try:
        return [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    except OSError:
        return []

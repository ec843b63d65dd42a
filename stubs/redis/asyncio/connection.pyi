from abc import ABC
from collections.abc import Iterable

class AbstractConnection(ABC):
    socket_timeout: float | None

    @property
    def is_connected(self) -> bool: ...
    async def connect(self) -> None: ...
    async def disconnect(self, nowait: bool = ...) -> None: ...
    def pack_commands(self, commands: Iterable[Iterable[str | bytes | float]]) -> list[bytes]: ...
    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = ...
    ) -> None: ...
    async def read_response(
        self,
        disable_decoding: bool = ...,
        timeout: float | None = ...,
        *,
        disconnect_on_error: bool = ...,
        push_request: bool | None = ...,
    ) -> object: ...

class ConnectionPool:
    connection_kwargs: dict[str, object]

    def make_connection(self) -> AbstractConnection: ...

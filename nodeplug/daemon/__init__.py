"""What every long-lived process shares: plain modern Python with threads, no asyncio.

Each module stands alone: `lifecycle` (signals, service manager, drain), `hygiene` (no dumps, locked memory),
`listeners` (safe unix sockets), `relay` (adopted listeners and peer checks), `grpcserver`, `health`, `metrics` and
`httpserver` (their pages).
Imports `nodeplug.core` and libraries, never `nodeplug.kernel`: what a module needs of libc is handed to it.
"""

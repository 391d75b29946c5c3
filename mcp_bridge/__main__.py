"""Run the server as ``python -m mcp_bridge``."""

from mcp_bridge.cli import main

main()

"""An MCP server that offers the operations of pytest-esp to AI agents as ``esp_*`` tools."""

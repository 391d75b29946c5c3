"""FastMCP server that exposes the operations of pytest-esp as esp_* tools."""

"""A server on a rack of its own, and a client that calls its tools."""

import json
from contextlib import ExitStack

import anyio
import jsonschema
import pytest
from anyio.from_thread import start_blocking_portal
from fastmcp import Client

from mcp_bridge.bridge import Bridge
from mcp_bridge.settings import Settings, parse_allow
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import holder_of

RACK = """
[boards.c3]
backend = "sim"
chip = "esp32c3"

[boards.esp32]
backend = "sim"
chip = "esp32"

[boards.guarded]
backend = "sim"
chip = "esp32s3"
allow = ["read"]
"""


class Server:
    """A server and one client, connected in memory; `answer` is what a person says who is asked."""

    def __init__(self, stack, folder, **settings):
        self.folder = folder
        self.rack_file = folder / "boards.toml"
        self.questions = []
        self.answer = None
        portal = stack.enter_context(start_blocking_portal())
        settings = {
            "rack": self.rack_file,
            "roots": (folder,),
            "allow": parse_allow("read,write,erase,burn"),
            "tools": "all",
            "output_schemas": True,
        } | settings
        mode = settings.pop("mode", "auto")
        handlers = {"elicitation_handler": self._ask} if settings.pop("person", False) else {}
        self.progress = []
        client = Client(Bridge(Settings(**settings)).server(), mode=mode, progress_handler=self._progress, **handlers)
        self._client = stack.enter_context(portal.wrap_async_context_manager(client))
        self._portal = portal

    async def _ask(self, message, response_type, params, context):
        self.questions.append(message)
        return response_type(value=self.answer)

    async def _progress(self, done, total, message):
        self.progress.append((done, total))

    def call(self, name, **arguments):
        result = self._portal.call(lambda: self._client.call_tool(name, arguments, raise_on_error=False))
        assert result.structured_content is not None, result.content
        assert result.is_error != result.structured_content["success"]
        return result.structured_content

    def fits(self, name, arguments, success=True):
        """Check that a call succeeds, or fails, as is said, and that its answer fits the tool's schema."""
        answer = self.call(name, **arguments)
        assert answer["success"] is success, answer
        jsonschema.validate(answer, self.list_tools()[name].output_schema)

    def try_call(self, name, arguments, seconds):
        """Return the whole result of a call with any arguments, which must come in time."""

        async def call():
            with anyio.fail_after(seconds):
                return await self._client.call_tool(name, arguments, raise_on_error=False)

        return self._portal.call(call)

    def list_resources(self):
        return [str(resource.uri) for resource in self._portal.call(self._client.list_resources)]

    def read(self, uri):
        (content,) = self._portal.call(self._client.read_resource, uri)
        assert content.mime_type == "application/json"
        return json.loads(content.text)

    def list_prompts(self):
        return [prompt.name for prompt in self._portal.call(self._client.list_prompts)]

    def prompt(self, name, **arguments):
        result = self._portal.call(self._client.get_prompt, name, arguments)
        return result.messages[0].content.text

    def complete(self, argument, text, prompt="esp_backup_plan", **given):
        from mcp_types import PromptReference

        reference = PromptReference(type="ref/prompt", name=prompt)
        argument = {"name": argument, "value": text}
        return self._portal.call(lambda: self._client.complete(reference, argument, context_arguments=given)).values

    def list_tools(self):
        return {tool.name: tool for tool in self._portal.call(self._client.list_tools)}

    def held(self):
        rack = load_rack(self.rack_file)
        return [spec.name for spec in rack.boards.values() if holder_of(spec, rack)]


@pytest.fixture
def serve(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    folder = tmp_path / "project"
    folder.mkdir(exist_ok=True)
    (folder / "boards.toml").write_text(RACK)
    with ExitStack() as stack:
        yield lambda **settings: Server(stack, folder, **settings)


@pytest.fixture
def server(serve):
    return serve()

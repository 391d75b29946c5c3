"""The fixtures of pytest-embedded (`dut`, `app`, `target`, `config` ...) over this plugin's boards.

For suites that were written for pytest-embedded: switched on by ``esp_embedded = true`` in the ini file, or by
``--esp-embedded``. See docs/embedded.md.
"""

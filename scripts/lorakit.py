"""The webui loads this file: find the host and register everything."""

from lib_lora.host import callbacks

# A class at module level is what the webui looks for; None, outside of a webui we know, is passed over.
LorakitScript = callbacks.register()

"""InstantStyle in a browser: a page, and an API for `gradio_client`."""

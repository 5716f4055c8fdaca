"""Encoding, under the name by which `pipeline_instantstyle` asks for it."""

from instantstyle.styles.encode import encode as encode

"""Styles on a UNet, under the name by which `pipeline_instantstyle` asks for them."""

from instantstyle.styles.apply import worn as worn

"""Draw `reference.png`: one star, in a style that is easy to recognise, from the world of the embedded checkpoint.

python examples/make_reference.py
"""

from pathlib import Path

from instantstyle.hub.gallery import REFERENCES, draw_reference


def main() -> None:
    """Draw the picture beside this file."""
    draw_reference(REFERENCES["pink-dots"]).save(Path(__file__).with_name("reference.png"), optimize=True)


if __name__ == "__main__":
    main()
